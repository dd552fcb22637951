"""All the processes that move together as they take shape on the destination.

The first is made by the overseer, every other one by its parent, generation by generation: a copy of a parent that has
its memory by then, so that what they share here they share there (`engine.kinds.heritage`). From then on each is a
`Replica` of its own. Their programs run one after the other: what one needs of another (memory and open files that they
share, process groups) is made in an earlier step by all that make it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from migrate.destination import OVERSEER, RESTOREE, Destination, Staged
from migrate.engine import lineage, overseer, restore, vdso
from migrate.engine.image.codec import decode
from migrate.engine.kernel import maps
from migrate.engine.kin import Kin
from migrate.engine.kinds.vma import VMA
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.program import Linked
from migrate.errors import Problem
from migrate.replica import Replica
from migrate.transport.agent import making_sense


class Replicas:
    """The tree on the destination. ``members``: by position."""

    def __init__(
        self, destination: Destination, members: Sequence[Replica], tree: Sequence[Kin], as_init: bool
    ) -> None:
        self.destination, self.members, self.tree, self.as_init = destination, members, tree, as_init
        self.generations = lineage.generations(tree)
        self._overseer = 0
        self._made: dict[tuple[int, int], tuple[int, int]] = {}  # memory that is shared, and by whom
        self._release: tuple[tuple[object, ...], Linked, int] | None = None

    @property
    def first(self) -> Replica:
        """The process that was named."""
        return self.members[0]

    async def create(self, mapped: Sequence[maps.Mapping], overseer: int) -> None:
        """The first, with its number, and nothing in its address space but the restorer. ``overseer``: as the agent
        sees it."""
        ground, destination, self._overseer = self.first.ground, self.destination, overseer
        await destination.create(self.first.pid, ground.hole, ground.channels)
        program, parked = restore.clear_program(vdso.areas(mapped), ground.hole)
        await (await destination.run(RESTOREE, program)).done()
        self.first.stand(parked)
        for position, member in enumerate(self.members):
            if lineage.has_children(self.tree, position):
                member.expect()
        if self.as_init and len(self.members) == 1:
            await self._numbered_outside()

    async def beget(self, parents: Sequence[int]) -> None:
        """The children of these, with their numbers. Each has a copy of what its parent has by now, until it is laid
        out (see `engine.kinds.heritage`); those without children get their sessions."""
        ground = self.first.ground
        if not ground.member:
            return
        seen = 1 if self.as_init else self._overseer  # by the restorees
        programs = lineage.creation(self.tree, ground.hole, ground.channels, seen, parents)
        linked = [(RESTOREE + position, made.link()) for position, made in programs]
        if linked:
            await (await self.destination.run_all(linked)).done()
        for parent in parents:
            born = [member for member, kin in zip(self.members, self.tree, strict=True) if kin.parent == parent]
            if born:
                await self.members[parent].bears(born)
        if self.as_init and len(self.members) > 1 and parents is self.generations[-1]:
            await self._numbered_outside()

    async def _numbered_outside(self) -> None:
        """The restorees' numbers where the agent is. Children are listed in the order in which they were made."""
        order: dict[int, list[Replica]] = {}
        for position in lineage.birth_order(self.tree):
            order.setdefault(self.tree[position].parent, []).append(self.members[position])
        for position in range(-1, len(self.members)):
            born = order.get(position, [])
            if born:
                pid = self.members[position].outer_pid if position >= 0 else self._overseer
                reply = await self.destination.agent.request("read", paths=[f"/proc/{pid}/task/{pid}/children"])
                with making_sense(reply.who, "the number of the new process"):
                    numbers = [int(word) for word in reply.blob.split()]
                    if len(numbers) != len(born):
                        raise ValueError(f"{len(numbers)} children where {len(born)} were made")
                    for member, number in zip(born, numbers, strict=True):
                        member.outer_pid = number

    # While they run

    async def lay_out(self, layouts: Mapping[int, bytes]) -> None:
        """Follow the layouts that the source found at a look, by position."""
        for position, blob in layouts.items():
            member, layout = self.members[position], decode(Layout, blob)
            self.borrow(member, layout.vmas)
            await member.lay_out(layout)
        for position in layouts:
            await self.members[position].settle()

    def borrow(self, member: Replica, vmas: Sequence[VMA]) -> None:
        """Before a layout is followed."""
        if len(self.members) > 1:
            member.borrow(self._made, vmas)

    # The end

    def judge(self, images: Sequence[ProcessImage]) -> tuple[list[Problem], list[str]]:
        """What the destination cannot give, and what will be different there."""
        problems: list[Problem] = []
        warnings: list[str] = []
        for member, image in zip(self.members, images, strict=True):
            its, more = member.judge(image)
            problems += its
            warnings += more
        return problems, list(dict.fromkeys(warnings))

    def compile(self, images: Sequence[ProcessImage]) -> list[tuple[int, Linked]]:
        """The programs that are left, ready to be sent, and where each is run."""
        compiled = [member.compile(image) for member, image in zip(self.members, images, strict=True)]
        found: list[tuple[int, Linked]] = []
        if self.first.ground.member:
            made = lineage.groups([image.kin for image in images], self.first.ground.hole)
            found += [(RESTOREE + position, program.link()) for position, program in made]
        for step in zip(*(steps for steps, _ in compiled), strict=True):
            found += [(RESTOREE + position, program) for position, some in enumerate(step) for program in some]
        return [*found, *((OVERSEER, arming) for _, arming in compiled)]

    async def stage(self, images: Sequence[ProcessImage], records: overseer.Records) -> Staged:
        """Send them, and the program of the commit, while the source looks for the last pages. ``records``: of the
        commit, for the journal there."""
        release, revocable = self.releasing(images, records)
        people = [member.outer_pid for member in self.members]
        halted = [pid for pid, image in zip(people, images, strict=True) if image.process.stopped]
        return await self.destination.stage(self.compile(images), release, revocable, people, halted)

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
        inputs = members, stay, records
        if self._release is None or self._release[0] != inputs:
            only = members[0]
            if len(members) > 1:
                program, revocable = overseer.release_all(members, stay, records)
            else:
                program, revocable = overseer.release(only.pid, only.tids, only.stopped, stay, records)
            self._release = inputs, program.link(), revocable
        return self._release[1:]

    async def finish(self, programs: Staged) -> None:
        """All is restored, and stands still in the overseer's hands."""
        running = await self.destination.prepare(programs)
        for member in self.members:
            await member.settle()
        await running.done()
