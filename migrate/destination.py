"""The destination as the coordinator sees it: facts about the host, and programs run in overseer and restoree."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents import settling
from agents.hostfacts import VERSION
from migrate import faults
from migrate.engine import births, overseer, vdso
from migrate.engine.clocks import Clocks, enter_time_namespace
from migrate.engine.cpu import Cpu
from migrate.engine.hostname import HostNames
from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.kernel.timens import Offsets, offsets
from migrate.engine.kinds import mapping, sysv, task, timers
from migrate.engine.preview import Preview
from migrate.engine.program import MAX_PROGRAM, Linked, OpKind, Program
from migrate.engine.program.listing import describe_failure
from migrate.errors import Failed, NoRoomToFork, NotCommitted, NumberTaken, OpFailed, Problem, Refused
from migrate.transport.agent import Agent, AgentError, Nonsense, Pending, Reply, making_sense

OVERSEER, RESTOREE = 0, 1  # slots: that of the first restoree, and of its descendants those behind it
_ANSWERS = 3
_TOLD = "what it tells of its host"
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
_HELLO: dict[str, type] = {
    "machine": str, "page_size": int, "uid": int, "boot_id": str, "monotonic_ns": int, "boottime_ns": int,
}  # fmt: skip
_XSAVE_MOST = 1 << 20  # bytes; AMX needs 11 thousand


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

    @property
    def one_machine(self) -> bool:
        """Whether both sides are containers of one machine."""
        return self.here.boot_id == self.there.boot_id


@dataclass(frozen=True)
class Inside:
    """What the overseer found out: only a program can ask the CPU, or try a system call."""

    maps: tuple[Mapping, ...]
    cpu: Cpu
    vdso: vdso.VDSO
    timers_by_id: bool
    droppable: bool  # has memory of that kind
    no_clocks: str  # why there is no time namespace, where one was asked for
    no_ipc: str  # the same of an IPC namespace
    overseer: int  # its PID as the agent sees it


def _texts(read: Reply) -> dict[str, bytes]:
    """The files that were asked for."""
    texts, at = {}, 0
    for path, length in zip(_FILES, read["lengths"], strict=True):
        texts[path] = read.blob[at : at + max(length, 0)]
        at += max(length, 0)
    if at != len(read.blob):
        raise ValueError(f"{at} bytes of files in {len(read.blob)}")
    return texts


class Running:
    """Programs on their way: wait for them, and a failure is an OpFailed that says what it was for."""

    def __init__(self, pending: Pending, parts: Sequence[Sequence[Linked]], where: str) -> None:
        self._pending, self._parts, self._where = pending, parts, where

    async def done(self) -> bytes:
        """The image after the run, where it was asked for."""
        reply = await self._pending.reply()
        failed = reply.number("failed")
        if failed < 0:
            return reply.blob
        part, index, result = (reply.number(name) for name in ("part", "program", "result"))
        with making_sense(reply.who, "which program failed"):
            program = self._parts[part][index]
        text = describe_failure(program, failed, result, where=self._where)
        clone = 0 <= failed < len(program.ops) and program.ops[failed].kind is OpKind.CLONE
        kinds = {-errno.EEXIST: NumberTaken, -errno.ENOMEM: NoRoomToFork} if clone else {}
        raise kinds.get(result, OpFailed)(text)


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
    """Programs that are there, or on their way, and have not been run: the last ones, and the one of the commit."""

    batch: _Batch
    release: Linked
    pending: Pending


class Destination:
    """Verbs of the destination agent, with types."""

    def __init__(self, agent: Agent, name: str, pid: int) -> None:
        """``name`` of the host and number of the process are for sentences."""
        self.agent, self.name = agent, name
        self._where = f"of pid {pid} on {name}"
        self._ia32: tuple[bool, vdso.VDSO] | None = None

    async def facts(self) -> Facts:
        """Questions in one round trip, and the clocks."""
        hello = await self.agent.submit("hello")
        read = await self.agent.submit("read", paths=list(_FILES))
        tids = await self.agent.submit("tids")
        told = (await hello.reply()).meta
        contents, numbers = await read.reply(), await tids.reply()
        with making_sense(self.agent.name, _TOLD):
            self._check_hello(told)
            texts = _texts(contents)
            shown = texts["/proc/self/timens_offsets"].decode()
            own = offsets(shown)
        here, there, round_trip = await self.clocks(own)
        with making_sense(self.agent.name, _TOLD):
            if not all(type(tid) is int for tid in numbers["tids"]):
                raise TypeError("numbers of threads that are none")
            meminfo = {line.split(":")[0]: line.split()[1] for line in texts["/proc/meminfo"].decode().splitlines()}
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
                frozenset(numbers["tids"]),
                int(meminfo.get("MemAvailable", "0")) << 10,
                int(texts["/proc/sys/vm/max_map_count"] or b"65530"),
                int(texts["/proc/sys/fs/pipe-max-size"] or b"1048576"),
                here,
                there,
                own if shown else None,
                round_trip,
            )

    def _check_hello(self, told: dict[str, Any]) -> None:
        if told.get("agent") != VERSION:
            raise Nonsense(f"{self.agent.name} speaks version {told.get('agent')!r:.20} of the protocol, not {VERSION}")
        if wrong := [name for name, kind in _HELLO.items() if type(told.get(name)) is not kind]:
            raise Nonsense(f"{self.agent.name}: what it tells of its host lacks {', '.join(wrong)}")

    async def clocks(self, own: Offsets) -> tuple[Clocks, Clocks, int]:
        """Ours, what were the destination's just before, and the nanoseconds that asking took: the quickest of a few
        answers. ``own``: of the agent's time namespace."""
        found = []
        for _ in range(_ANSWERS):
            asked = time.monotonic_ns()
            told = (await self.agent.request("hello")).meta
            here, answered = Clocks.here(), time.monotonic_ns()
            self._check_hello(told)
            monotonic, boottime = told["monotonic_ns"] - own.monotonic, told["boottime_ns"] - own.boottime
            found.append((here, Clocks(told["boot_id"], monotonic, boottime), answered - asked))
        return min(found, key=lambda answer: answer[2])

    async def stat(self, paths: Sequence[str]) -> dict[str, dict[str, int]]:
        """lstat-like answers by path; ``errno`` where there is none."""
        reply = await self.agent.request("stat", paths=list(paths), nofollow=True)
        with making_sense(self.agent.name, "what it tells of files"):
            return {path: _stat(answer) for path, answer in zip(paths, reply["stats"], strict=True)}

    async def start_overseer(
        self,
        new_pid_namespace: bool,
        clocks: Offsets | None,
        restorees: int = 1,
        streams_of: int = 0,
        ipc: sysv.Ipc | None = None,
    ) -> Inside:
        """The overseer, and what it is asked first; what it makes from then on is in a time namespace of its own with
        ``clocks``. ``streams_of``: a process there whose standard streams the restorees get. ``ipc``: where there is
        any, in an IPC namespace of their own for it."""
        reply = await self.agent.request(
            "overseer", restorees=restorees, new_pid_namespace=new_pid_namespace, streams_of=streams_of
        )
        with making_sense(self.agent.name, "the address space of its overseer"):
            found = tuple(maps(reply["maps"]))
        program = Program("facts about the destination")
        cpu = Cpu.collect(program)
        own = vdso.collect(program, vdso.areas(found))
        by_id = timers.probe_restore_ids(program)
        droppable = mapping.probe_droppable(program)
        refused = enter_time_namespace(program, clocks) if clocks is not None else lambda results: ""
        kept_out = sysv.enter(program, ipc.limits) if ipc else lambda results: ""
        linked = program.link()
        image = await (await self.run_all([(OVERSEER, linked)], return_image=True)).done()
        with making_sense(self.agent.name, "what its overseer found out"):
            if len(image) != len(linked.image):
                raise ValueError(f"{len(image)} bytes of results, where {len(linked.image)} belong")
            results = linked.results(image)
            can_drop = droppable(results) and not faults.pretended("droppable")
            its = cpu(results)
            if not all(offset + size <= its.xsave_size <= _XSAVE_MOST for _, offset, size in its.components):
                raise ValueError(f"a CPU with {its.xsave_size} bytes of registers")
            return Inside(
                found,
                its,
                own(results),
                by_id(results),
                can_drop,
                refused(results),
                kept_out(results),
                reply.number("pid"),
            )

    async def ia32(self, previews: Sequence[Preview]) -> vdso.VDSO | None:
        """The vDSO of processes of 32 bits there; None: it runs none, or none of these is one."""
        if not any(each.compat for each in previews) or faults.pretended("ia32") == "missing":
            return None
        if self._ia32 is None:
            reply = await self.agent.request("ia32")
            with making_sense(self.agent.name, "the vDSO of processes of 32 bits"):
                runs, lines = bool(reply.number("runs")), str(reply["maps"])
                self._ia32 = runs, vdso.of_ia32((lines, reply.blob) if runs else None)
        runs, found = self._ia32
        return found if runs else None

    async def name_host(self, names: HostNames | None) -> None:
        """Have all that the overseer will make in a UTS namespace of that name; None: in ours there. Refused where that
        cannot be."""
        if names is None:
            return
        try:
            await (await self.run(OVERSEER, names.enter())).done()
        except OpFailed as error:
            raise Refused([Problem("destination kernel", str(error))]) from error

    async def join(self, group: str | None) -> None:
        """Have all that the overseer will make in that control group; None: where the agent is. Refused where that
        cannot be."""
        if group is None:
            return
        try:
            await self.agent.request("cgroup", path=group)
        except AgentError as error:
            if error.kind != "os":
                raise
            raise Refused([Problem("destination", f"no control group {group} (--cgroup): {error}")]) from error

    async def run(self, slot: int, program: Program, return_image: bool = False) -> Running:
        """Send a program; what is awaited is only that it is on its way."""
        return await self.run_all([(slot, program.link())], return_image)

    async def run_all(self, programs: Sequence[tuple[int, Linked]], return_image: bool = False) -> Running:
        """Send programs for these slots, to be run one after the other until one fails."""
        batch = _Batch.of(programs)
        pending = await self.agent.submit("run", batch.blob, parts=batch.described, return_image=return_image)
        return Running(pending, batch.parts, self._where)

    async def begin(self, migration: str, lease: float, faults: str, about: dict[str, Any], log: bool) -> str | None:
        """Its journal there. ``lease``: seconds that it is kept ready for a commit without a word from here; ``about``
        is noted. The path of a log of what is done there, if there is to be one."""
        reply = await self.agent.request(
            "begin", migration=migration, lease=lease, faults=faults, about=about, log=log
        )
        path = reply["log"]
        return None if path is None else str(path)

    async def stage(
        self, programs: Sequence[tuple[int, Linked]], release: Linked, revocable: int, people: Sequence[int],
        halted: Sequence[int] = (), rooms: Sequence[str] = (),
    ) -> Staged:
        """Send programs, to be run at a word, and the one of the commit; when one of its first ``revocable`` ops fails,
        nothing of the process has run. ``people``: the numbers of the process and its descendants as the agent sees
        them; ``halted``: those among them that are let go as stopped; ``rooms``:
        directories that the programs make, and that of the commit removes. Of several stagings the last one counts."""
        batch, linked = _Batch.of(programs), faults.spoil(release)
        size = len(linked.image)
        about: dict[str, Any] = {"release": size, "revocable": revocable, "restoree": people[0]}
        if rooms:
            about["rooms"] = list(rooms)
        if len(people) > 1:
            about.update(others=list(people[1:]), halted=list(halted))
        pending = await self.agent.submit("stage", batch.blob + linked.image, **about)
        return Staged(batch, linked, pending)

    async def announce(self, rooms: Sequence[str]) -> None:
        """Directories that programs are about to make, and that are removed when all is called off."""
        await self.agent.request("rooms", rooms=list(rooms))

    async def prepare(self, staged: Staged) -> Running:
        """Give the word. When it is done, the migration is prepared there."""
        await staged.pending.reply()
        pending = await self.agent.submit("prepare", parts=staged.batch.described)
        return Running(pending, staged.batch.parts, self._where)

    async def commit(self, staged: Staged) -> None:
        """Let the process go. Raises NotCommitted when it is certain that it did not run there and will not, and any
        other Failed when that is not known."""
        pending = await self.agent.submit("commit")
        await faults.reach("commit-sent")
        try:
            reply = await pending.reply()
        except AgentError as error:
            if error.kind in ("not-committed", "pages"):
                raise NotCommitted(str(error)) from error
            raise
        try:
            failed, outcome, what = int(reply["failed"]), str(reply["outcome"]), str(reply["why"])
            if failed >= 0:
                what = describe_failure(staged.release, failed, int(reply["result"]), "releasing", self._where)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise Failed(f"{self.name} answered COMMIT with what makes no sense: {error!r:.200}") from error
        if outcome == settling.ROLLED_BACK:
            raise NotCommitted(what)
        if outcome != settling.MOVED or failed >= 0:
            raise OpFailed(what)

    async def stdio_log(self, name: str) -> str:
        """The path of a new file there, which takes the output of streams that lead outside."""
        path = (await self.agent.request("stdio_log", name=name))["path"]
        if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
            raise Nonsense(f"{self.agent.name}: its log file is {path!r:.100}")
        return path

    async def create(
        self, pid: int, hole: overseer.Hole, channels: overseer.Channels, whole: overseer.Hole
    ) -> None:
        """The restoree, empty. ``whole``: see `births.create`."""
        await (await self.run(OVERSEER, births.create(pid, hole, channels, whole=whole))).done()


def _stat(answer: dict[str, Any]) -> dict[str, int]:
    """One of the answers, if it can be one."""
    wanted = ("errno",) if "errno" in answer else ("mode", "size", "mtime_ns", "ino", "dev", "rdev", "uid", "gid")
    if wrong := [name for name in wanted if type(answer.get(name)) is not int]:
        raise ValueError(f"{', '.join(wrong)} of a file")
    return answer
