"""All the processes that move together as they take shape on the destination.

The first is made by the overseer, every other one by its parent, generation by generation: a copy of a parent that has
its memory by then, so that what they share here they share there (`engine.kinds.heritage`). From then on each is a
`Replica` of its own. Their programs run one after the other: what one needs of another (memory and open files that they
share, process groups) is made in an earlier step by all that make it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from migrate import faults
from migrate.destination import OVERSEER, RESTOREE, Destination, Staged
from migrate.engine import lineage, overseer, restore, vdso
from migrate.engine.descent import Descent
from migrate.engine.image.codec import decode
from migrate.engine.kernel import maps
from migrate.engine.kin import Kin
from migrate.engine.kinds import posix_memory
from migrate.engine.kinds.sysv import Segment
from migrate.engine.kinds.unix import UnixSocket
from migrate.engine.kinds.unix_names import Node, place
from migrate.engine.kinds.vma import VMA, Backing
from migrate.engine.preview import Layout
from migrate.engine.process import ProcessImage
from migrate.engine.program import Linked, Program
from migrate.errors import KinChanged, NoRoomToFork, Problem
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
        self._shared: dict[tuple[int, int], Backing] = {}  # POSIX shared memory that is there, or was
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
        await destination.create(self.first.pid, ground.hole, ground.channels)
        program, self._parked = restore.clear_program(vdso.areas(mapped), ground.hole)
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
        await self._run(lineage.creation(self.tree, self._nursery(), there, makers=makers))
        descent = Descent(self.tree)
        for maker in makers:
            if born := descent.makes(maker):
                await self.members[maker].bears([self.members[each] for each in born])
        if self.as_init and generation == len(generations) - 1:
            await self._number_outside(range(len(self.members)))

    def _nursery(self) -> lineage.Nursery:
        ground, seen = self.first.ground, 1 if self.as_init else self._overseer  # by the restorees
        return lineage.Nursery(ground.hole, ground.channels, seen, [member.slot for member in self.members])

    async def _run(self, programs: Iterable[tuple[int, Program]]) -> None:
        linked = [(slot, program.link()) for slot, program in programs]
        if linked:
            await (await self.destination.run_all(linked)).done()

    async def _number_outside(self, born: Collection[int]) -> None:
        """The numbers where the agent is of those at these positions. Children are listed in the order in which they
        were made."""
        order: dict[int, list[Replica]] = {}
        for position in Descent(self.tree).birth_order():
            if position in born:
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
        await self._run(programs)
        for member in (*gone, *renewed):
            self._lend_by_others(member)
        there = [position for position, member in enumerate(members) if member in was]
        leading = [position for position, member in enumerate(members) if member in leaders]
        await self._run(lineage.creation(tree, self._nursery(), there, leading))
        born = [position for position in range(len(members)) if position not in there]
        for position in born:
            members[position].inherit(members[tree[position].parent])
        for member in (*(members[position] for position in born), *renewed):
            await member.clear(self._parked)
        if self.as_init:
            await self._number_outside(born)

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
            await self.make_room(layout.vmas)
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

    async def make_room(self, *spaces: Sequence[VMA]) -> None:
        """For what is made of POSIX shared memory: see that nothing is left of it if all is called off."""
        found = posix_memory.objects(spaces)
        if found and not self._shared:
            await self.destination.room(self.first.ground.room)
        self._shared |= {each.key: each for each in found}

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
        return [*found, *((OVERSEER, arming) for _, arming in compiled)]

    async def stage(self, images: Sequence[ProcessImage], records: overseer.Records) -> Staged:
        """Send them, and the program of the commit, while the source looks for the last pages. ``records``: of the
        commit, for the journal there."""
        release, revocable = self.releasing(images, records)
        people = [member.outer_pid for member in self.members]
        halted = [pid for pid, image in zip(people, images, strict=True) if image.process.stopped]
        rooms = [node.stage for _, node in _socket_names(images)]
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
        names = _socket_names(images)
        shared, room = posix_memory.objects(image.vmas for image in images), self.first.ground.room
        kept = {each.key for each in shared}
        gone = [each for each in self._shared.values() if each.key not in kept]
        inputs = members, stay, records, names, shared
        if self._release is None or self._release[0] != inputs:
            only = members[0]

            def late(program: Program) -> None:
                for name, node in names:
                    place(program, name, node)
                posix_memory.place(program, shared, gone, room)

            if len(members) > 1:
                program, revocable = overseer.release_all(members, stay, records, late)
            else:
                program, revocable = overseer.release(only.pid, only.tids, only.stopped, stay, records, late)
            self._release = inputs, program.link(), revocable
        return self._release[1:]

    async def finish(self, programs: Staged) -> None:
        """All is restored, and stands still in the overseer's hands."""
        running = await self.destination.prepare(programs)
        for member in self.members:
            await member.settle()
        await running.done()


def new_room() -> str:
    """A directory that nobody else has."""
    return f"{posix_memory.PLACE}/.migrate-{secrets.token_hex(8)}"


def _socket_names(images: Sequence[ProcessImage]) -> tuple[tuple[bytes, Node], ...]:
    """Those whose files the commit has to put in their places."""
    return tuple(
        (made.name, made.node)
        for image in images
        for made in image.descriptors.objects
        if isinstance(made, UnixSocket) and made.node is not None
    )
