"""All the processes that move together as they take shape on the destination.

The first is made by the overseer, every other one by its parent, generation by generation: a copy of a parent that has
its memory by then, so that what they share here they share there (`engine.kinds.heritage`). From then on each is a
`Replica` of its own. Their programs run one after the other: what one needs of another (memory and open files that they
share, process groups) is made in an earlier step by all that make it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from migrate import changes, faults
from migrate.destination import OVERSEER, RESTOREE, Destination, Staged
from migrate.engine import lineage, overseer, restore, vdso
from migrate.engine.descent import Descent
from migrate.engine.image.codec import decode
from migrate.engine.kernel import maps
from migrate.engine.kin import Kin
from migrate.engine.kinds import terminals
from migrate.engine.kinds.named import NamedMemory
from migrate.engine.kinds.node import Node, discard, place
from migrate.engine.kinds.sysv import Segment
from migrate.engine.kinds.unix_single import UnixSocket
from migrate.engine.kinds.vma import VMA, memfds
from migrate.engine.overseer import Hole
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.program import Linked, Program
from migrate.engine.shares import FILES, KINDS, MEMORY
from migrate.engine.sharing import Sharing
from migrate.errors import KinChanged, NoRoomToFork, NumberTaken, OpFailed, Problem
from migrate.replica import Replica
from migrate.transport.agent import making_sense


class Replicas:
    """The tree on the destination. ``members``: by position."""

    def __init__(
        self,
        destination: Destination,
        members: Sequence[Replica],
        tree: Sequence[Kin],
        as_init: bool,
        own_ipc: bool = False,
    ) -> None:
        """``own_ipc``: they have an IPC namespace of their own."""
        self.own_ipc = own_ipc
        self._segments: dict[int, Segment] = {}  # that are there
        self.destination, self.members, self.tree, self.as_init = destination, members, tree, as_init
        self._parked: tuple[vdso.Area, ...] = ()
        self._overseer = 0
        self._begun = False  # others have been begotten
        self._made: dict[tuple[int, int], tuple[int, int]] = {}  # memory that is shared, and by whom
        self._release: tuple[tuple[object, ...], Linked, int] | None = None

    @property
    def first(self) -> Replica:
        """The process that was named."""
        return self.members[0]

    async def create(self, mapped: Sequence[maps.Mapping], overseer: int) -> None:
        """The first, with its number, and nothing in its address space but the restorer. ``overseer``: as the agent
        sees it, with what it has ``mapped``."""
        ground, destination = self.first.ground, self.destination
        if ground.own_terminals:
            await (await destination.run(OVERSEER, terminals.own())).done()
        await destination.create(self.first.pid, ground.hole, ground.channels, ground.whole)
        program, self._parked = restore.clear_program(vdso.areas(mapped), ground.whole)
        self._overseer = overseer
        await (await destination.run(RESTOREE, program)).done()
        self.first.stand(self._parked)
        self._expect()
        if self.as_init and not ground.member:
            await self._number_outside([0])

    def _expect(self) -> None:
        makers = set(Descent(self.tree).maker.values())
        for position, member in enumerate(self.members):
            member.expecting = position in makers
        self._house(self.members[1:])

    def _house(self, new: Sequence[Replica]) -> None:
        """Who shares a descriptor table with others, if only until it has made these, has its socket at a number of its
        own. ``new``: those that have none yet."""
        sharing = Sharing(self.tree)
        if sharing.groups(FILES):
            grounds = [member.ground for member in self.members]
            taken = {number for each in grounds for number in (*each.channels.all, *each.numbers.values())}
            free = min(taken) - 1
            for member in new:
                channels = member.ground.channels
                member.ground = replace(member.ground, channels=replace(channels, control=free))
                free -= 1
            sockets = frozenset(member.ground.channels.control for member in self.members)
            for member in self.members:
                member.ground = replace(member.ground, sockets=sockets)
        for position, member in enumerate(self.members):
            member.move_in([self.members[each] for each in sharing.group(position, FILES)])
            landlord = self.members[sharing.group(position, MEMORY)[0]]
            member.landlord = None if landlord is member else landlord
        self._give_rooms([member for member in new if member.landlord is not None])

    def _give_rooms(self, tenants: Sequence[Replica]) -> None:
        """Of those who share memory each has its restorer in a hole of its own. Raises KinChanged."""
        whole, first = self.first.ground.whole, self.first.ground.hole
        rooms = [Hole(start, first.size) for start in range(first.end, whole.end, first.size)]
        taken = {member.ground.hole for member in self.members if member not in tenants}
        free = [room for room in rooms if room not in taken]
        if len(tenants) > len(free):
            raise KinChanged("more processes share their memory than did so before")
        for member, room in zip(tenants, free, strict=False):
            member.ground = replace(member.ground, hole=room)

    @property
    def generations(self) -> list[list[int]]:
        """Positions of the first, of those that it makes, and so on."""
        return list(Descent(self.tree).generations())

    async def beget(self, generation: int) -> None:
        """What this generation makes: others, with their numbers, and the sessions that it leads. Each has a copy of
        what its maker has by now, until it is laid out."""
        if not self.first.ground.member:
            return
        self._begun, generations = True, self.generations
        if self.first.laid_out and faults.pretended("fork"):
            raise NoRoomToFork("pretended: no memory to fork")
        makers, there = generations[generation], [each for some in generations[: generation + 1] for each in some]
        await self._make_terminals(makers)
        await self._run(lineage.creation(self.tree, self._nursery(), there, makers=makers))
        descent, sharing = Descent(self.tree), Sharing(self.tree)
        for maker in makers:
            self.members[maker].bears([self.members[each] for each in descent.makes(maker)])
        coming = {each for some in generations[generation + 1 :] for each in some if descent.makes(each)}
        for house in {tuple(sharing.group(maker, MEMORY)) for maker in makers if descent.makes(maker)}:
            if coming.isdisjoint(house):
                await self.members[house[0]].has_borne()
        if self.as_init and generation == len(generations) - 1:
            await self._number_outside(range(len(self.members)))

    async def _make_terminals(self, makers: Iterable[int]) -> None:
        """That become controlling terminals of these: before they have children, who inherit it."""
        leaders = [position for position in makers if Descent(self.tree).holds(position)]
        program = self.first.hold_terminals({self.tree[position].terminal for position in leaders})
        if program is None:
            return
        try:
            await (await self.destination.run(self.first.slot, program)).done()
        except OpFailed as error:
            raise NumberTaken(str(error)) from error

    def _nursery(self) -> lineage.Nursery:
        ground, seen = self.first.ground, 1 if self.as_init else self._overseer  # by the restorees
        grounds = [member.ground for member in self.members]
        return lineage.Nursery(
            ground.hole,
            [each.hole for each in grounds],
            [each.channels for each in grounds],
            seen,
            [member.slot for member in self.members],
            [frozenset(each.numbers.values()) for each in grounds],
        )

    async def _run(self, programs: Iterable[tuple[int, Program]]) -> None:
        linked = [(slot, program.link()) for slot, program in programs]
        if linked:
            await (await self.destination.run_all(linked)).done()

    async def _number_outside(self, born: Collection[int]) -> None:
        """The numbers where the agent is of those at these positions. Children are listed in the order in which they
        were made."""
        order: dict[int, list[Replica]] = {}
        for position in Sharing(self.tree).birth_order(born):
            order.setdefault(self.tree[position].parent, []).append(self.members[position])
        known = {member.outer_pid for position, member in enumerate(self.members) if position not in born}
        for position in range(-1, len(self.members)):
            made = order.get(position, [])
            if made:
                pid = self.members[position].outer_pid if position >= 0 else self._overseer
                reply = await self.destination.agent.request("read", paths=[f"/proc/{pid}/task/{pid}/children"])
                with making_sense(reply.who, "the number of the new process"):
                    numbers = [number for number in map(int, reply.blob.split()) if number not in known]
                    if len(numbers) != len(made):
                        raise ValueError(f"{len(numbers)} children where {len(made)} were made")
                    for member, number in zip(made, numbers, strict=True):
                        member.outer_pid = number

    async def adapt(self, members: Sequence[Replica], tree: Sequence[Kin], renewed: Collection[Replica]) -> None:
        """By now there are these. ``renewed``: those that have executed another program since."""
        if not self._begun:
            self.members, self.tree = members, tree
            self._expect()
            return
        was = self.members
        for member in was:
            await member.settle()
        gone = [member for member in was if member not in members]
        shared = Sharing(self.tree)
        before = {kind: dict(zip(was, shared.owners(kind), strict=True)) for kind in KINDS}
        parents = dict(self._parents())
        leaders = {member for member, each in zip(was, self.tree, strict=True) if each.session == each.pid}
        ended = dict(zip(was, self.tree, strict=True))
        self.members, self.tree = members, tree
        now = dict(self._parents())
        adopters = {now[member] for member in was if member in now and now[member] is not parents[member]}
        programs = [(adopter.slot, lineage.adopts()) for adopter in adopters if adopter is not None]
        for member in reversed(gone):  # children before their parents
            parent = parents[member]
            assert parent is not None
            programs += lineage.removal(ended[member], parent.slot)
        programs += changes.leaving(members, tree, before)
        await self._run(programs)
        for member in (*gone, *renewed):
            self._lend_by_others(member)
        self._house([member for member in members if member not in was])
        there = [position for position, member in enumerate(members) if member in was]
        leading = [position for position, member in enumerate(members) if member in leaders]
        changes.check_late(tree, there)
        holding = changes.still_holding(members, tree, ended, {member.pid for member in gone})
        await self._let_go_of_terminals({ended[member].terminal for member in gone if member in leaders})
        await self._make_terminals(range(len(members)))
        await self._run(lineage.creation(tree, self._nursery(), there, leading, holders=holding, settled=there))
        born = [position for position in range(len(members)) if position not in there]
        for position in born:
            members[position].inherit(members[tree[position].parent])
        for member in (*(members[position] for position in born), *renewed):
            await member.clear(self._parked)
        if self.as_init:
            await self._number_outside(born)

    async def _let_go_of_terminals(self, indexes: Collection[int]) -> None:
        """Whose leaders have ended: a terminal is hung up with that."""
        program = self.first.drop_terminals(indexes)
        if program is not None:
            await (await self.destination.run(self.first.slot, program)).done()

    def _parents(self) -> Iterator[tuple[Replica, Replica | None]]:
        for member, each in zip(self.members, self.tree, strict=True):
            yield member, self.members[each.parent] if each.parent >= 0 else None

    def _lend_by_others(self, lender: Replica) -> None:
        """What one has made that goes, or is begun anew, others have too: or nobody needs it."""
        for key, (pid, _) in list(self._made.items()):
            if pid == lender.pid:
                others = (member for member in self.members if member is not lender and key in member.ground.numbers)
                heir = next(others, None)
                if heir is None:
                    del self._made[key]
                else:
                    self._made[key] = heir.pid, heir.ground.numbers[key]
        for member in self.members:
            member.relend(self._made)

    # While they run

    async def lay_out(self, layouts: Mapping[int, bytes]) -> None:
        """Follow the layouts that the source found at a look, by position."""
        for position, blob in layouts.items():
            member, layout = self.members[position], decode(Layout, blob)
            await self.provide(layout.segments)
            self.borrow(member, layout.vmas)
            await member.lay_out(layout)
        for position in layouts:
            await self.members[position].settle()

    async def provide(self, segments: Sequence[Segment], last: bool = False) -> None:
        """Have these there, so that they can be attached to, and none but these at the ``last``. Raises KinChanged
        where that was not prepared for."""
        new = [each for each in segments if each.rights.id not in self._segments]
        if any(not each.same(self._segments[each.rights.id]) for each in segments if each not in new):
            raise KinChanged("System V shared memory has been made anew meanwhile")
        if new and not self.own_ipc:
            raise KinChanged("the process has come to use System V objects meanwhile")
        program = Program("System V shared memory")
        for each in new:
            each.make(program)
            self._segments[each.rights.id] = each
        for id in set(self._segments) - {each.rights.id for each in segments} if last else ():
            self._segments.pop(id).remove(program)
        if len(program):
            await self._run([(self.first.slot, program)])

    def check_ipc(self, images: Sequence[ProcessImage]) -> None:
        """Raises KinChanged where it was not prepared for what they have by now."""
        if images[0].ipc and not self.own_ipc:
            raise KinChanged("the process has come to use System V objects meanwhile")

    def borrow(self, member: Replica, vmas: Sequence[VMA]) -> None:
        """Before a layout is followed."""
        if len(self.members) > 1:
            member.borrow(self._made, vmas)

    # The end

    def judge(self, images: Sequence[ProcessImage]) -> tuple[list[Problem], list[str]]:
        """What the destination cannot give, and what will be different there."""
        self.check_ipc(images)
        problems: list[Problem] = []
        warnings: list[str] = []
        for member, image in zip(self.members, images, strict=True):
            its, more = member.judge(image)
            problems += its
            warnings += more
        if lost := [str(image.process.pid) for image in images if image.kin.outside]:
            who = f"pid {', '.join(lost[:3])}{', …' if len(lost) > 3 else ''}"
            warnings.append(f"the controlling terminal of {who} stays here: no Ctrl-C, no SIGHUP and no /dev/tty there")
        return problems, list(dict.fromkeys(warnings))

    def compile(self, images: Sequence[ProcessImage]) -> list[tuple[int, Linked]]:
        """The programs that are left, ready to be sent, and where each is run."""
        compiled = [member.compile(image) for member, image in zip(self.members, images, strict=True)]
        found: list[tuple[int, Linked]] = []
        if self.first.ground.member:
            made = lineage.groups([image.kin for image in images], self.first.ground.hole)
            found += [(self.members[position].slot, program.link()) for position, program in made]
        for step in zip(*(steps for steps, _ in compiled), strict=True):
            for member, some in zip(self.members, step, strict=True):
                found += [(member.slot, program) for program in some]
        # Who shares the memory of another one runs what is in it until it is held.
        arming = [(OVERSEER, arming) for _, arming in compiled]
        tenants = [member.landlord is not None for member in self.members]
        found += [each for each, tenant in zip(arming, tenants, strict=True) if tenant]
        return found + [each for each, tenant in zip(arming, tenants, strict=True) if not tenant]

    async def stage(self, images: Sequence[ProcessImage], records: overseer.Records) -> Staged:
        """Send them, and the program of the commit, while the source looks for the last pages. ``records``: of the
        commit, for the journal there."""
        release, revocable = self.releasing(images, records)
        people = [member.outer_pid for member in self.members]
        halted = [pid for pid, image in zip(people, images, strict=True) if image.process.stopped]
        rooms = [node.stage for _, node, _ in self._names(images)]
        return await self.destination.stage(self.compile(images), release, revocable, people, halted, rooms)

    def releasing(self, images: Sequence[ProcessImage], records: overseer.Records) -> tuple[Linked, int]:
        """The program of the commit, mostly that of the rehearsal, and how many of its ops can be revoked."""
        # Who wants a signal when its parent dies must not get it because the overseer leaves (PR_SET_PDEATHSIG).
        stay = self.as_init or any(thread.state.controls.parent_death_signal for thread in images[0].threads)
        members = tuple(
            overseer.Member(
                image.process.pid,
                tuple(thread.tid for thread in image.threads),
                image.threads[0].state.mask if len(images) > 1 else 0,
                image.process.stopped,
            )
            for image in images
        )
        names = self._names(images)
        staged = {node.stage for _, node, _ in names}
        left = [node for member in self.members for node in member.nodes if node.stage not in staged]
        inputs = members, stay, records, names, left
        if self._release is None or self._release[0] != inputs:
            only = members[0]

            def late(program: Program) -> None:
                for name, node, replaces in names:
                    place(program, name, node, replaces)
                for node in left:
                    discard(program, node)

            if len(members) > 1:
                program, revocable = overseer.release_all(members, stay, records, late)
            else:
                program, revocable = overseer.release(only.pid, only.tids, only.stopped, stay, records, late)
            self._release = inputs, program.link(), revocable
        return self._release[1:]

    def _names(self, images: Sequence[ProcessImage]) -> tuple[tuple[bytes, Node, bool], ...]:
        """Of files that the commit has to put in their places, and whether they replace what is there. Shared memory
        that goes by a name is somebody's, but on the machine that it comes from: there it may be the one here."""
        found: list[tuple[bytes, Node, bool]] = []
        memory = self.first.ground.one_machine
        for image in images:
            found += ((each.node.name, each.node, memory) for each in memfds(image.vmas) if each.node is not None)
            for made in image.descriptors.objects:
                if isinstance(made, UnixSocket):
                    found += ((name, node, True) for name, node in made.nodes)
                elif isinstance(made, NamedMemory):
                    found.append((made.node.name, made.node, memory))
        return tuple(dict.fromkeys(found))

    async def finish(self, programs: Staged) -> None:
        """All is restored, and stands still in the overseer's hands."""
        running = await self.destination.prepare(programs)
        for member in self.members:
            await member.settle()
        await running.done()
