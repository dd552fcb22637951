"""The destination as the coordinator sees it: facts about the host, and programs run in overseer and restoree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from migrate import faults
from migrate.engine import overseer, vdso
from migrate.engine.clocks import Clocks
from migrate.engine.cpu import Cpu
from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.kernel.timens import Offsets, offsets
from migrate.engine.kinds import mapping, task, timers
from migrate.engine.program import MAX_PROGRAM, Linked, Program
from migrate.engine.program.listing import describe_failure
from migrate.errors import NotCommitted, OpFailed
from migrate.transport.agent import Agent, AgentError, Pending

OVERSEER, RESTOREE = 0, 1  # slots
_ANSWERS = 3
_FILES = (
    "/proc/self/limits",
    "/proc/self/status",
    "/proc/self/oom_score_adj",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/node/online",
    "/proc/meminfo",
    "/proc/sys/vm/max_map_count",
    "/proc/sys/fs/pipe-max-size",
    "/proc/self/timens_offsets",
)


@dataclass(frozen=True)
class Facts:
    """What was learned of the destination before anything was made there. Sizes in bytes."""

    hello: dict[str, Any]
    task: task.Destination
    tids: frozenset[int]
    memory_available: int
    max_map_count: int
    pipe_max_size: int
    here: Clocks  # read after `there`
    there: Clocks
    offsets: Offsets | None  # of the agent's own time namespace; None: that kernel has no such namespaces
    round_trip: int  # nanoseconds from before `there` was asked for until `here`


@dataclass(frozen=True)
class Inside:
    """What the overseer found out: only a program can ask the CPU, or try a system call."""

    maps: tuple[Mapping, ...]
    cpu: Cpu
    vdso: vdso.VDSO
    timers_by_id: bool
    droppable: bool  # has memory of that kind
    overseer: int  # its PID as the agent sees it


class Running:
    """Programs on their way: wait for them, and a failure is an OpFailed that says what it was for."""

    def __init__(self, pending: Pending, parts: Sequence[Sequence[Linked]], where: str) -> None:
        self._pending, self._parts, self._where = pending, parts, where

    async def done(self) -> bytes:
        """The image after the run, where it was asked for."""
        reply = await self._pending.reply()
        failed = int(reply["failed"])
        if failed >= 0:
            program = self._parts[int(reply["part"])][int(reply["program"])]
            raise OpFailed(describe_failure(program, failed, int(reply["result"]), where=self._where))
        return reply.blob


@dataclass(frozen=True)
class _Batch:
    """Programs for slots, joined where several in a row are for the same one. ``described``: slot and bytes of each
    part of the ``blob``."""

    parts: list[list[Linked]]
    described: list[tuple[int, int]]
    blob: bytes

    @classmethod
    def of(cls, programs: Sequence[tuple[int, Linked]]) -> _Batch:
        slots: list[int] = []
        parts: list[list[Linked]] = []
        sizes: list[int] = []
        for slot, linked in programs:
            size = len(linked.image)
            if not slots or slots[-1] != slot or sizes[-1] + size > MAX_PROGRAM:
                slots.append(slot)
                parts.append([])
                sizes.append(0)
            parts[-1].append(faults.spoil(linked))
            sizes[-1] += size
        blob = b"".join(linked.image for part in parts for linked in part)
        return cls(parts, list(zip(slots, sizes, strict=True)), blob)


@dataclass(frozen=True)
class Staged:
    """Programs that are there, or on their way, and have not been run."""

    batch: _Batch
    pending: Pending


class Destination:
    """Verbs of the destination agent, with types."""

    def __init__(self, agent: Agent, name: str, pid: int) -> None:
        """``name`` of the host and number of the process are for sentences."""
        self.agent, self.name = agent, name
        self._where = f"of pid {pid} on {name}"

    async def facts(self) -> Facts:
        """Questions in one round trip, and the clocks."""
        hello = await self.agent.submit("hello")
        read = await self.agent.submit("read", paths=list(_FILES))
        tids = await self.agent.submit("tids")
        told = (await hello.reply()).meta
        reply = await read.reply()
        texts, at = {}, 0
        for path, length in zip(_FILES, reply["lengths"], strict=True):
            texts[path] = reply.blob[at : at + max(length, 0)]
            at += max(length, 0)
        meminfo = {line.split(":")[0]: line.split()[1] for line in texts["/proc/meminfo"].decode().splitlines()}
        shown = texts["/proc/self/timens_offsets"].decode()
        own = offsets(shown)
        here, there, round_trip = await self.clocks(own)
        return Facts(
            told,
            task.Destination.from_texts(
                limits=texts["/proc/self/limits"].decode(),
                status=texts["/proc/self/status"],
                oom_score_adj=texts["/proc/self/oom_score_adj"].decode(),
                cpus=texts["/sys/devices/system/cpu/online"].decode(),
                nodes=texts["/sys/devices/system/node/online"].decode(),
                timers_by_id=False,
            ),
            frozenset((await tids.reply())["tids"]),
            int(meminfo.get("MemAvailable", "0")) << 10,
            int(texts["/proc/sys/vm/max_map_count"] or b"65530"),
            int(texts["/proc/sys/fs/pipe-max-size"] or b"1048576"),
            here,
            there,
            own if shown else None,
            round_trip,
        )

    async def clocks(self, own: Offsets) -> tuple[Clocks, Clocks, int]:
        """Ours, what were the destination's just before, and the nanoseconds that asking took: the quickest of a few
        answers. ``own``: of the agent's time namespace."""
        found = []
        for _ in range(_ANSWERS):
            asked = time.monotonic_ns()
            told = (await self.agent.request("hello")).meta
            here = Clocks.here()
            monotonic, boottime = told["monotonic_ns"] - own.monotonic, told["boottime_ns"] - own.boottime
            found.append((here, Clocks(told["boot_id"], monotonic, boottime), time.monotonic_ns() - asked))
        return min(found, key=lambda answer: answer[2])

    async def stat(self, paths: Sequence[str]) -> dict[str, dict[str, int]]:
        """lstat-like answers by path; ``errno`` where there is none."""
        reply = await self.agent.request("stat", paths=list(paths), nofollow=True)
        return dict(zip(paths, reply["stats"], strict=True))

    async def start_overseer(self, new_pid_namespace: bool) -> Inside:
        """The overseer, and what it is asked first."""
        reply = await self.agent.request("overseer", restorees=1, new_pid_namespace=new_pid_namespace)
        found = tuple(maps(reply["maps"]))
        program = Program("facts about the destination")
        cpu = Cpu.collect(program)
        own = vdso.collect(program, vdso.areas(found))
        by_id = timers.probe_restore_ids(program)
        droppable = mapping.probe_droppable(program)
        linked = program.link()
        results = linked.results(await (await self.run_all([(OVERSEER, linked)], return_image=True)).done())
        can_drop = droppable(results) and not faults.pretended("droppable")
        return Inside(found, cpu(results), own(results), by_id(results), can_drop, int(reply["pid"]))

    async def run(self, slot: int, program: Program, return_image: bool = False) -> Running:
        """Send a program; what is awaited is only that it is on its way."""
        return await self.run_all([(slot, program.link())], return_image)

    async def run_all(self, programs: Sequence[tuple[int, Linked]], return_image: bool = False) -> Running:
        """Send programs for these slots, to be run one after the other until one fails."""
        batch = _Batch.of(programs)
        pending = await self.agent.submit("run", batch.blob, parts=batch.described, return_image=return_image)
        return Running(pending, batch.parts, self._where)

    async def stage(self, programs: Sequence[tuple[int, Linked]]) -> Staged:
        """Send programs, to be run at a word. Of several stagings the last one counts."""
        batch = _Batch.of(programs)
        return Staged(batch, await self.agent.submit("stage", batch.blob))

    async def run_staged(self, staged: Staged) -> Running:
        """Give the word."""
        await staged.pending.reply()
        pending = await self.agent.submit("run", parts=staged.batch.described)
        return Running(pending, staged.batch.parts, self._where)

    async def commit(self, program: Program, revocable: int) -> None:
        """Let the process go. Raises NotCommitted when the agent says that it did not, or when one of the first
        ``revocable`` ops failed."""
        linked = faults.spoil(program.link())
        try:
            reply = await self.agent.request("commit", linked.image, revocable=revocable)
        except AgentError as error:
            if error.kind == "not-committed":
                raise NotCommitted(str(error)) from error
            raise
        failed = int(reply["failed"])
        if failed >= 0:
            text = describe_failure(linked, failed, int(reply["result"]), "releasing", self._where)
            raise NotCommitted(text) if failed < revocable else OpFailed(text)

    async def create(self, pid: int, hole: overseer.Hole, channels: overseer.Channels, clocks: Offsets | None) -> None:
        """The restoree, empty; with ``clocks`` in a time namespace of its own."""
        await (await self.run(OVERSEER, overseer.create(pid, hole, channels, clocks))).done()
