"""What comes before anything is copied: every reason against it, and the restorees, empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from migrate import faults, preflight
from migrate.destination import RESTOREE, Destination, Facts, Inside
from migrate.engine import overseer, restore
from migrate.engine.descent import Descent
from migrate.engine.kinds import terminal, terminals
from migrate.engine.memory.layout import choose_region, ranges
from migrate.engine.preview import Preview
from migrate.engine.shares import MEMORY
from migrate.errors import Problem, Refused
from migrate.following import SPARE, Following
from migrate.ledger import Ledger
from migrate.options import Options
from migrate.originals import Originals
from migrate.progress import Display
from migrate.replica import Replica
from migrate.replicas import Replicas
from migrate.timekeeping import Timekeeping
from migrate.transport.agent import making_sense

_LOOKS = 5  # at processes whose files come and go
_SPARE_THREADS = 16  # that the process may start while it is on its way


@dataclass
class Preparation:
    """Of one migration. ``own_numbers``: in a PID namespace of its own, whether its numbers are taken there or not.

    ``facts`` are known after `preflight`, ``clocks`` and ``vdso``, the decision about it, after `replicas`."""

    options: Options
    display: Display
    originals: Originals
    destination: Destination
    own_numbers: bool

    facts: Facts = field(init=False)
    clocks: Timekeeping = field(init=False)
    vdso: str = ""

    _inside: Inside = field(init=False)
    _ground: restore.Ground = field(init=False)
    _room: int = 0

    @property
    def preview(self) -> Preview:
        """Of the process that was named."""
        return self.originals.previews[0]

    async def preflight(self) -> None:
        """What the process is, what the destination is, and every reason why the one does not fit the other."""
        self.display.phase("preflight")
        await self.originals.inspect()
        self.facts = await self.destination.facts()
        problems, files = await self._look()
        for _ in range(_LOOKS):
            if problems or not files or len(self.originals.ids) == 1:
                break
            # Processes that come and go have files that do so, too: of a compiler, say, that was done by the time when
            # the destination was asked.
            known = files
            await self.originals.inspect()
            problems, files = await self._look()
            if any(each in known for each in files):
                break
        if problems or files:
            raise Refused([*problems, *files])
        await faults.reach("preflight")
        await self.originals.name()

    async def _look(self) -> tuple[list[Problem], list[Problem]]:
        """Why not; and of these, which files stand in the way."""
        previews, preview, facts = self.originals.previews, self.preview, self.facts
        problems = [problem for each in previews for problem in each.problems]
        others = max(0, self.originals.memory - preview.resident)
        problems += preflight.host_problems(preview, facts, self.options.no_clock, others)
        self._group, homeless = preflight.control_group(self.options.cgroup, previews)
        problems += homeless
        for each in previews:
            problems += preflight.process_problems(each, facts)
        needed = tuple(need for each in previews for need in each.needs)
        files, self._taken = await preflight.file_problems(
            needed, self.originals.source, self.destination, facts.one_machine
        )
        return problems, files

    async def replicas(self) -> Replicas:
        """Overseer and restoree, empty; the last things that could be refused."""
        previews, preview, facts = self.originals.previews, self.preview, self.facts
        tree = [each.kin for each in previews]
        wanted = {tid for each in previews for tid in each.tids} | Descent(tree).numbers
        used = sorted(facts.tids & wanted)
        if used:
            name = self.destination.name
            self.display.note(f"pid {used[0]} is taken on {name}: the process gets a PID namespace of its own there")
        names = terminals.numbers(need for each in previews for need in each.needs)
        clash = sorted(names & terminal.occupied(self._taken))
        if clash:
            name, what = self.destination.name, terminal.path(clash[0])
            self.display.note(f"terminal {what} is taken on {name}: the process gets a /dev/pts of its own there")
        as_init = bool(used) or bool(clash) or self.own_numbers
        self.clocks = clocks = Timekeeping(preview, facts)
        member = len(previews) > 1 or not preview.kin.single
        own_terminals = as_init and bool(names)
        room = max(self.originals.ids) + 1 + (SPARE if member else 0)
        inside = await self.destination.start_overseer(as_init, clocks.namespace, room, ipc=preview.ipc)
        if preview.ipc:
            self.display.note("the System V objects of the process come into an IPC namespace of their own there")
        await self.destination.join(self._group)
        await self.destination.name_host(preview.surroundings.names)
        ia32 = await self.destination.ia32(previews)
        with making_sense(self.destination.agent.name, "its vDSO"):
            judged = [preflight.kernel_problems(each, inside, ia32) for each in previews]
        problems = [problem for found, _ in judged for problem in found]
        problems += preflight.clock_problems(inside, self.options.no_clock) + preflight.ipc_problems(inside)
        lacking, warnings = preview.cpu.missing(inside.cpu, self.options.cpu_check)
        if problems or lacking:
            raise Refused([*lacking, *problems])
        for warning in warnings:
            self.display.warn(warning)
        clocks.tell(inside, self.display)
        self.vdso = judged[0][1].decision.value
        for line in judged[0][1].table():
            self.display.detail(line)
        occupied = [*((vma.start, vma.end) for each in previews for vma in each.vmas), *ranges(inside.maps)]
        threads = max(len(each.tids) for each in previews)
        tenants = sum(not each.owns(MEMORY) for each in tree)
        compat = any(each.compat for each in previews)
        hole, region = choose_region(occupied, overseer.hole_size(threads + _SPARE_THREADS), tenants, compat)
        ground = restore.Ground(
            hole=hole,
            region=region,
            channels=preflight.channels(previews, facts),
            destination=replace(facts.task, timers_by_id=inside.timers_by_id),
            carrier=preview.cpu.carrier(inside.cpu),
            numbers={},
            stdio=await self._stdio(previews),
            taken=terminals.without(self._taken) if own_terminals else self._taken,
            own_terminals=own_terminals,
            one_machine=facts.one_machine,
            droppable=inside.droppable,
            member=member,
        )
        members = [
            Replica(self.destination, replace(ground, verdict=verdict), facts.pipe_max_size, each.pid, RESTOREE + id)
            for id, each, (_, verdict) in zip(self.originals.ids, previews, judged, strict=True)
        ]
        replica = Replicas(self.destination, members, tree, as_init, bool(preview.ipc))
        await replica.create(inside.maps, inside.overseer)
        self._inside, self._ground, self._room = inside, ground, room
        return replica

    async def _stdio(self, previews: Sequence[Preview]) -> str | None:
        """Where the output goes that leads to a terminal or a pipe here."""
        wanted, preview = self.options.stdio, previews[0]
        if not any(each.streams for each in previews) or wanted == "null":
            return None
        if wanted is not None:
            return wanted
        comm = "".join(c if c.isalnum() and c.isascii() else "_" for c in preview.comm)
        return await self.destination.stdio_log(f"{comm}-{preview.pid}.log")

    def following(self, ledger: Ledger, replicas: Replicas) -> Following:
        """Of those that come and go from now on."""
        rest = self.facts, self._inside, self._ground, self._room
        return Following(self.destination, self.display, ledger, self.originals, replicas, *rest)
