"""The process as it takes shape on the destination: first empty, then laid out and filled, then restored and
released."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from migrate.destination import OVERSEER, RESTOREE, Destination, Running, Staged
from migrate.engine import overseer, restore, vdso
from migrate.engine.image.codec import decode
from migrate.engine.kernel.maps import Mapping
from migrate.engine.kinds import address_space
from migrate.engine.kinds.mapping import droppable, kept
from migrate.engine.kinds.own_vdso import RestoredVDSO
from migrate.engine.kinds.pipe import Pipe, check_capacity
from migrate.engine.kinds.vma import VMA, memfds
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.program import Linked, Program
from migrate.errors import Failed, Problem
from migrate.transport.agent import making_sense


class Replica:
    """What there is of the process on the destination, and what it stands on."""

    def __init__(self, destination: Destination, ground: restore.Ground, as_init: bool, pipe_max_size: int) -> None:
        """``pipe_max_size``: bytes, what /proc/sys/fs has there."""
        self.destination, self.ground, self.as_init = destination, ground, as_init
        self._pipe_max_size = pipe_max_size
        self._vmas: Sequence[VMA] = ()
        self._laid_out = False
        self._filled: set[int] = set()  # starts of VMAs that were made writable against expectation
        self._remade: list[tuple[int, int]] = []
        self._running: list[Running] = []
        self._compiler = restore.Compiler()
        self._vdso = RestoredVDSO((), ground.verdict, ())
        self._release: tuple[tuple[object, ...], Linked, int] | None = None
        self._pid = 0
        self.outer_pid = 0  # by which the destination knows the process: another one in a PID namespace of its own

    async def create(self, pid: int, maps: Sequence[Mapping], parent: int) -> None:
        """The restoree with its number, and nothing in its address space but the restorer."""
        self._pid = pid
        await self.destination.create(pid, self.ground.hole, self.ground.channels)
        program, parked = restore.clear_program(vdso.areas(maps), self.ground.hole)
        own = [address_space.restorers(self.ground.hole)]
        self._vdso = RestoredVDSO(parked, self.ground.verdict, own, self.ground.droppable)
        await (await self.destination.run(RESTOREE, program)).done()
        self.outer_pid = await self._numbered_outside(parent) if self.as_init else pid

    async def _numbered_outside(self, parent: int) -> int:
        """The restoree's number where the agent is: it is the one child of the overseer."""
        reply = await self.destination.agent.request("read", paths=[f"/proc/{parent}/task/{parent}/children"])
        with making_sense(reply.who, "the number of the new process"):
            return int(reply.blob.split()[0])

    async def lay_out(self, blob: bytes) -> None:
        """Follow the layout that the source found at a look."""
        layout = decode(Layout, blob)
        await self.follow(layout.vmas, layout.fill)
        await self._settle()

    async def follow(self, vmas: Sequence[VMA], fill: Sequence[int]) -> None:
        """Map what is new, unmap what is gone; the programs are on their way when this returns."""
        program = Program(f"the address space of pid {self._pid}")
        self._number(vmas)
        hole, numbers = self.ground.hole, self.ground.numbers
        asked, vmas = vmas, self._possible(vmas)
        if not self._laid_out:
            address_space.compile_map(program, vmas, hole, numbers)
            self._vdso.place(program, asked)
            self._laid_out = True
        elif vmas != self._vmas:
            self._vdso.withdraw(program)
            made = address_space.compile_difference(program, self._vmas, vmas, hole, numbers)
            self._remade += made
            self._vdso.place(program, asked)
            self._filled -= {start for start in self._filled if any(low <= start < high for low, high in made)}
        unexpected = set(fill) - self._filled
        address_space.compile_fillable(program, (vma for vma in vmas if vma.start in unexpected))
        self._filled |= unexpected
        self._vmas = vmas
        if len(program):
            self._running.append(await self.destination.run(RESTOREE, program))

    def _possible(self, vmas: Sequence[VMA]) -> Sequence[VMA]:
        """As the destination's kernel can have them."""
        if self.ground.droppable or not any(map(droppable, vmas)):
            return vmas
        return tuple(kept(vma) if droppable(vma) else vma for vma in vmas)

    def _number(self, vmas: Sequence[VMA]) -> None:
        """A descriptor number for each memfd that is mapped, below those of the restorer."""
        numbers = dict(self.ground.numbers)
        for backing in memfds(vmas):
            numbers.setdefault(backing.key, self.ground.scratch)
            self.ground = replace(self.ground, numbers=numbers)

    def take_remade(self) -> list[tuple[int, int]]:
        """Ranges that were mapped anew since the last call: whatever was sent for them is gone."""
        remade, self._remade = self._remade, []
        return remade

    async def _settle(self) -> None:
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
        warnings = []
        for thread in image.threads:
            place = f"thread {thread.tid}"
            problems += thread.state.problems(place, there)
            warnings += thread.state.warnings(place, there)
        return problems, list(dict.fromkeys(warnings))

    def compile(self, image: ProcessImage) -> list[tuple[int, Linked]]:
        """The programs that are left, ready to be sent, and where each is run."""
        if len(image.threads) - 1 > self.ground.hole.threads:
            raise Failed(f"the process has started more than {self.ground.hole.threads} threads meanwhile; try again")
        programs = self._compiler.programs(image, self.ground, self._filled)
        return [*((RESTOREE, program) for program in programs), (OVERSEER, self._compiler.arming(image, self.ground))]

    async def stage(self, image: ProcessImage, records: overseer.Records) -> Staged:
        """Send them, and the program of the commit, while the source looks for the last pages. ``records``: of the
        commit, for the journal there."""
        release, revocable = self.releasing(image, records)
        return await self.destination.stage(self.compile(image), release, revocable, self.outer_pid)

    def releasing(self, image: ProcessImage, records: overseer.Records) -> tuple[Linked, int]:
        """The program of the commit, mostly that of the rehearsal, and how many of its ops can be revoked."""
        # Who wants a signal when its parent dies must not get it because the overseer leaves (PR_SET_PDEATHSIG).
        stay = self.as_init or any(thread.state.controls.parent_death_signal for thread in image.threads)
        tids = tuple(thread.tid for thread in image.threads)
        inputs = image.process.pid, tids, image.process.stopped, stay, records
        if self._release is None or self._release[0] != inputs:
            program, revocable = overseer.release(*inputs)
            self._release = inputs, program.link(), revocable
        return self._release[1:]

    async def finish(self, programs: Staged) -> None:
        """All is restored, and stands still in the overseer's hands."""
        self._running.append(await self.destination.prepare(programs))
        await self._settle()
