"""The process as it takes shape on the destination: first empty, then laid out and filled, then restored and
released."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace

from migrate.destination import Destination, Running
from migrate.engine import restore, vdso
from migrate.engine.kinds import address_space, terminal, terminals
from migrate.engine.kinds.mapping import droppable, kept
from migrate.engine.kinds.node import Node
from migrate.engine.kinds.own_vdso import RestoredVDSO
from migrate.engine.kinds.pipe import Pipe, check_capacity
from migrate.engine.kinds.vma import VMA, memfds
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.program import Linked, Program
from migrate.errors import Failed, Problem, Refused


class Replica:
    """What there is of the process on the destination, and what it stands on."""

    def __init__(
        self, destination: Destination, ground: restore.Ground, pipe_max_size: int, pid: int, slot: int
    ) -> None:
        """``pipe_max_size``: bytes, what /proc/sys/fs has there."""
        self.destination, self.ground, self.slot = destination, ground, slot
        self._pipe_max_size = pipe_max_size
        self._vmas: Sequence[VMA] = ()
        self._asked: Sequence[VMA] = ()  # as the source has them
        self.laid_out = False
        self._filled: set[int] = set()  # starts of VMAs that were made writable against expectation
        self.nodes: set[Node] = set()  # of files that it has made beside their places
        self._remade: list[tuple[int, int]] = []
        self._running: list[Running] = []
        self._parked: tuple[vdso.Area, ...] = ()
        self._maker: Replica | None = None  # whose memory it has, until it is laid out
        self.neighbours: Sequence[Replica] = ()  # others that share its descriptor table, in the order of the tree
        self._owner: Replica = self  # the first of all who share it
        self.landlord: Replica | None = None  # the first of those whose memory it shares, if it is another
        self.expecting = False  # others, which find the vDSO where it waits; so it has none itself before it `bears`
        self._compiler = restore.Compiler()
        self._vdso = RestoredVDSO((), ground.verdict, ())
        self.pid = pid
        self.outer_pid = pid  # by which the destination knows the process: another one in a PID namespace of its own

    def move_in(self, table: Sequence[Replica]) -> None:
        """These share its descriptor table, it is one of them."""
        self.neighbours, self._owner = [each for each in table if each is not self], table[0]
        self._look_around()

    def _look_around(self) -> None:
        """Which numbers its neighbours have taken by now."""
        if not self.neighbours and not self.ground.others:
            return
        grounds = [each.ground for each in self.neighbours]
        taken = frozenset(number for each in grounds for number in (each.channels.control, *each.numbers.values()))
        made = self._owner._objects()
        if self._owner is not self:
            made = {key: number for key, number in made.items() if number != self.ground.numbers.get(key)}
        self.ground = replace(self.ground, others=taken, spare=made)

    def _objects(self) -> dict[tuple[int, int], int]:
        """What all who share its table have made, at the numbers at which the first of them uses it."""
        objects: dict[tuple[int, int], int] = {}
        for each in (self, *self.neighbours):
            objects = {**each.ground.numbers, **objects}
        return objects

    def stand(self, parked: tuple[vdso.Area, ...]) -> None:
        """It is there, and nothing in its address space but the restorer. ``parked``: where the vDSO waits."""
        own = [address_space.restorers(self.ground.whole)]
        self._parked = parked
        self._vdso = RestoredVDSO(parked, self.ground.verdict, own, self.ground.droppable)

    def bears(self, children: Sequence[Replica]) -> None:
        """They are there, with a copy of its memory, or with the very same."""
        for child in children:
            child.stand(self._parked)
            child._maker = self.landlord or self

    async def has_borne(self) -> None:
        """No more of them come; so it can have its vDSO."""
        self.expecting = False
        program = Program(f"the vDSO of pid {self.pid}")
        if self.laid_out:
            self._place_vdso(program)
        if len(program):
            self._running.append(await self.destination.run(self.slot, program))

    def inherit(self, parent: Replica) -> None:
        """It has been begotten by one that is laid out: what it has is a copy of that, without the memfds."""
        if self.landlord is not None:
            return
        parent = parent.landlord or parent
        self._vmas, self.laid_out = parent._vmas, parent.laid_out
        self._vdso = copy(parent._vdso)

    async def clear(self, parked: tuple[vdso.Area, ...]) -> None:
        """Nothing of what it has belongs to it, or does so any longer: as it is after `stand`."""
        if self.landlord is not None:
            return
        program = Program(f"the address space of pid {self.pid}, which is begun anew")
        if self.laid_out:
            self._vdso.withdraw(program)
            address_space.compile_difference(program, self._vmas, (), self.ground.whole)
        kept = {key: number for key, number in self.ground.numbers.items() if terminal.number_of(key) is not None}
        for key, number in self.ground.numbers.items():
            if key not in kept:
                program.syscall("close", number, label="a memfd that was mapped")
        self.ground = replace(self.ground, numbers=kept, lenders={})
        self._vmas, self.laid_out, self._remade = (), False, []
        self._filled.clear()
        self._compiler = restore.Compiler()
        self.stand(parked)
        if len(program):
            self._running.append(await self.destination.run(self.slot, program))

    def relend(self, known: dict[tuple[int, int], tuple[int, int]]) -> None:
        """Some of what was borrowed has another lender by now."""
        lenders = {key: known[key] for key in self.ground.lenders if key in known and known[key][0] != self.pid}
        if lenders != self.ground.lenders:
            self.ground = replace(self.ground, lenders=lenders)

    def hold_terminals(self, indexes: Collection[int]) -> Program | None:
        """That makes the masters of ptys with these numbers, which it keeps until its descriptors are restored; None:
        it has them. Raises NumberTaken."""
        missing = sorted(index for index in indexes if terminal.key(index) not in self.ground.numbers)
        if not missing:
            return None
        self._look_around()
        program = Program(f"terminals of pid {self.pid} and its descendants")
        for index in missing:
            number = self.ground.scratch
            terminals.make(program, index, number, self.ground.context)
            numbers = {**self.ground.numbers, terminal.key(index): number}
            self.ground = replace(self.ground, numbers=numbers)
        return program

    def drop_terminals(self, indexes: Collection[int]) -> Program | None:
        """That closes these again; None: it has none of them."""
        held = [terminal.key(index) for index in indexes if terminal.key(index) in self.ground.numbers]
        if not held:
            return None
        program, numbers = Program(f"terminals of pid {self.pid} and its descendants"), dict(self.ground.numbers)
        for key in held:
            program.syscall("close", numbers.pop(key), label=f"terminal {key[1]}")
        self.ground = replace(self.ground, numbers=numbers)
        return program

    async def lay_out(self, layout: Layout) -> None:
        """Follow what the source found at a look."""
        if self.landlord is not None:
            return
        if self._maker is not None:
            maker, self._maker = self._maker, None
            await self._keep(maker, layout.inherited)
        await self.follow(layout.vmas, layout.fill)

    async def _keep(self, maker: Replica, ranges: Sequence[tuple[int, int]]) -> None:
        """Of the copy of its maker's memory these ranges stay, with what was sent for them."""
        self._vmas = address_space.compile_kept(maker._vmas, ranges)
        program = Program(f"what pid {self.pid} has of its parent's memory")
        address_space.compile_inherit(program, ranges, self._parked, self.ground.whole)
        self._running.append(await self.destination.run(self.slot, program))

    async def follow(self, vmas: Sequence[VMA], fill: Sequence[int]) -> None:
        """Map what is new, unmap what is gone; the programs are on their way when this returns."""
        if self.landlord is not None:
            return
        program = Program(f"the address space of pid {self.pid}")
        self._number(vmas)
        nodes = {b.node for b in memfds(vmas) if b.node is not None and b.key not in self.ground.lenders} - self.nodes
        if nodes:
            self.nodes |= nodes
            await self.destination.announce([node.stage for node in nodes])
            await self._see_that_free([node.path for node in nodes])
        hole, numbers = self.ground.whole, self.ground.numbers
        self._asked, vmas = vmas, self._possible(vmas)
        if not self.laid_out and not self._vmas:
            address_space.compile_map(program, vmas, hole, numbers, self.ground.lenders)
            self._place_vdso(program)
        elif not self.laid_out or vmas != self._vmas:
            self._vdso.withdraw(program)
            made = address_space.compile_difference(
                program, self._vmas, vmas, hole, numbers, self.ground.lenders
            )
            self._remade += made
            self._place_vdso(program)
            self._filled -= {start for start in self._filled if any(low <= start < high for low, high in made)}
        unexpected = set(fill) - self._filled
        address_space.compile_fillable(program, (vma for vma in vmas if vma.start in unexpected))
        self._filled |= unexpected
        self._vmas, self.laid_out = vmas, True
        if len(program):
            self._running.append(await self.destination.run(self.slot, program))

    async def _see_that_free(self, names: Sequence[str]) -> None:
        """Of shared memory that has come since the needs were looked at, too: it would get no name in the commit."""
        if self.ground.one_machine:
            return
        there = await self.destination.stat(names)
        if taken := [name for name in names if "errno" not in there[name]]:
            what = f"has come to use shared memory {taken[0]}, a name that is taken on the destination"
            raise Refused([Problem(f"pid {self.pid}", what)])

    def _place_vdso(self, program: Program) -> None:
        if not self.expecting:
            self._vdso.place(program, self._asked)

    def _possible(self, vmas: Sequence[VMA]) -> Sequence[VMA]:
        """As the destination's kernel can have them."""
        if self.ground.droppable or not any(map(droppable, vmas)):
            return vmas
        return tuple(kept(vma) if droppable(vma) else vma for vma in vmas)

    def borrow(self, known: dict[tuple[int, int], tuple[int, int]], vmas: Sequence[VMA]) -> None:
        """Memory that is shared with other restorees is made by the first that maps it. ``known``: what has been made,
        its maker's PID and the number there; what is made here is added."""
        self._number(vmas)
        lenders = dict(self.ground.lenders)
        for backing in memfds(vmas):
            pid, number = known.setdefault(backing.key, (self.pid, self.ground.numbers[backing.key]))
            if pid != self.pid:
                lenders[backing.key] = pid, number
        if lenders != self.ground.lenders:
            self.ground = replace(self.ground, lenders=lenders)

    def _number(self, vmas: Sequence[VMA]) -> None:
        """A descriptor number for each memfd that is mapped, below those of the restorer."""
        self._look_around()
        numbers = dict(self.ground.numbers)
        for backing in memfds(vmas):
            numbers.setdefault(backing.key, self.ground.scratch)
            self.ground = replace(self.ground, numbers=numbers)

    def take_remade(self) -> list[tuple[int, int]]:
        """Ranges that were mapped anew since the last call: whatever was sent for them is gone."""
        remade, self._remade = self._remade, []
        return remade

    async def settle(self) -> None:
        """Until what is on its way has been done."""
        running, self._running = self._running, []
        for program in running:
            await program.done()

    # The end

    def judge(self, image: ProcessImage) -> tuple[list[Problem], list[str]]:
        """What the destination cannot give, and what will be different there."""
        there, where = self.ground.destination, f"pid {image.process.pid}"
        problems = image.process.problems(where, there, [thread.tid for thread in image.threads])
        pipes = [made for made in image.descriptors.objects if isinstance(made, Pipe)]
        problems += check_capacity(pipes, image.process.pid, self._pipe_max_size, there.can_raise)
        self._look_around()
        if self.ground.others:
            clash = self.ground.context.reserved & {each.number for each in image.descriptors.descriptors}
            what = "descriptors that the restorers of those need which share its table"
            problems += [Problem(f"{where} fd {number}", what, "give it a lower number") for number in sorted(clash)]
        warnings = []
        for thread in image.threads:
            place = f"thread {thread.tid}"
            problems += thread.state.problems(place, there)
            warnings += thread.state.warnings(place, there)
        return problems, list(dict.fromkeys(warnings))

    def compile(self, image: ProcessImage) -> tuple[list[list[Linked]], Linked]:
        """The programs that are left, in steps (see `restore.Compiler.steps`), and what the overseer runs then."""
        if len(image.threads) - 1 > self.ground.hole.threads:
            raise Failed(f"the process has started more than {self.ground.hole.threads} threads meanwhile; try again")
        self._look_around()
        return self._compiler.steps(image, self.ground, self._filled), self._compiler.arming(image, self.ground)
