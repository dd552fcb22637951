"""Processes of the tree that are born, end, or execute another program while all of them are on their way: what has
been done with the others already is done with these, and nothing is begun anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from migrate import preflight
from migrate.destination import RESTOREE, Destination, Facts, Inside
from migrate.engine import restore
from migrate.engine.kinds import terminals
from migrate.engine.memory.layout import LIMIT_32, collides
from migrate.engine.needed import needs_of
from migrate.engine.preview import Preview
from migrate.engine.process import ProcessImage
from migrate.errors import KinChanged, Refused
from migrate.ledger import Ledger
from migrate.originals import Originals
from migrate.progress import Display
from migrate.replica import Replica
from migrate.replicas import Replicas
from migrate.transport.agent import Agent, making_sense

SPARE = 200  # restorees that there is room for besides those that are there at first


@dataclass
class Following:
    """Of one migration. ``ground``: what all of them stand on; ``room``: how many ids there can be."""

    destination: Destination
    display: Display
    ledger: Ledger
    originals: Originals
    replicas: Replicas
    facts: Facts
    inside: Inside
    ground: restore.Ground
    room: int
    _lacking: set[int] = field(default_factory=set)  # files, when they were met while they ran

    async def follow(self, look: bool) -> None:
        """``look``: for those that have come or gone by now; else it is about what the source has found already.
        Raises Refused, and KinChanged: it must be begun anew."""
        lineup, told = await self.originals.lineup(look)
        for pid in told["left"]:
            self.display.warn(f"process {pid} is no descendant of the others any more, and stays here")
        if not told["changed"]:
            return
        if max(lineup.ids) >= self.room:
            raise KinChanged(f"more than {SPARE} processes have come meanwhile")
        new = [*told["born"], *told["renewed"]]
        self._lacking -= {*told["renewed"]}
        made = dict(zip(new, await self._made(new, look), strict=True))
        known = {member.slot - RESTOREE: member for member in self.replicas.members}
        for id in told["renewed"]:
            known[id].ground = replace(known[id].ground, verdict=made.pop(id).ground.verdict)
        known.update(made)
        renewed = [known[id] for id in told["renewed"]]
        self.display.detail(f"{len(told['born'])} born, {len(told['gone'])} ended, {len(renewed)} another program")
        await self.replicas.adapt([known[id] for id in lineup.ids], lineup.tree, renewed)
        self.originals.ids = list(lineup.ids)
        await self.originals.name()
        self.ledger.name(self.originals.people)

    async def check(self, images: Sequence[ProcessImage]) -> None:
        """Refused when one of those that stand still needs files that are not there, or are others there."""
        lacking = [at for at, id in enumerate(self.originals.ids) if id in self._lacking]
        if not lacking:
            return
        previews = self.originals.previews
        needed = [need for at in lacking for need in needs_of(previews[at], images[at])]
        files, _ = await preflight.file_problems(needed, *self._where)
        if files:
            raise Refused(files)

    @property
    def _where(self) -> tuple[Agent, Destination, bool]:
        return self.originals.source, self.destination, self.facts.one_machine

    async def _made(self, ids: Sequence[int], passing: bool) -> list[Replica]:
        """Refused when the destination cannot take them. ``passing``: what is odd about them may be so for a moment
        only (whose pipe has its other end in one that is not known yet, say); it is found again when they stand
        still."""
        previews = await self.originals.meet(ids)
        problems = [] if passing else [problem for each in previews for problem in each.problems]
        for each in previews:
            problems += preflight.process_problems(each, self.facts)
        ia32 = await self.destination.ia32(previews)
        with making_sense(self.destination.agent.name, "its vDSO"):
            judged = [preflight.kernel_problems(each, self.inside, ia32) for each in previews]
        problems += [problem for found, _ in judged for problem in found]
        needed = tuple(need for each in previews for need in each.needs)
        files, taken = await preflight.file_problems(needed, *self._where)
        if files and passing:
            self._lacking |= {*ids}
            files = []
        if problems or files:
            raise Refused([*problems, *files])
        for each in previews:
            self._check(each)
        if self.ground.own_terminals:
            taken = terminals.without(taken)
        ground = replace(self.ground, taken=self.ground.taken | taken)
        first = self.replicas.first  # who makes all terminals
        first.ground = replace(first.ground, taken=first.ground.taken | taken)
        return [
            Replica(
                self.destination,
                replace(ground, verdict=verdict),
                self.facts.pipe_max_size,
                each.pid,
                RESTOREE + id,
            )
            for id, each, (_, verdict) in zip(ids, previews, judged, strict=True)
        ]

    def _check(self, preview: Preview) -> None:
        if collides(self.ground.whole, ((vma.start, vma.end) for vma in preview.vmas)):
            raise KinChanged(f"process {preview.pid} uses the memory that the restorer lives in")
        if preview.compat and self.ground.whole.end > LIMIT_32:
            raise KinChanged(f"process {preview.pid} is of 32 bits, and cannot reach the restorer")
        if self.ground.channels.all & set(preview.descriptors):
            raise KinChanged(f"process {preview.pid} uses the descriptors of the restorer")
