"""What the source agent does, verb by verb. The coordinator tells the story; see migrate/coordinator.py.

A round is `look` (which areas there are and which pages were written; they are protected anew) and `send` (the pages).
Between the two the coordinator makes the destination's layout the same. The freeze is `freeze` and `send`.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from select import POLLIN, poll
from typing import Any

from migrate import faults
from migrate.engine import aftercare
from migrate.engine.aftercare import KILL_PATIENCE, check, take_back
from migrate.engine.cpu import Cpu
from migrate.engine.dump import Dumper, own_pid
from migrate.engine.image.codec import decode, encode
from migrate.engine.kernel.probes import has_forced_reads
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.status import status
from migrate.engine.kernel.timens import task_offsets
from migrate.engine.kinds import locks
from migrate.engine.kinds.mm import look_at_exe
from migrate.engine.kinds.outside import shared_memory
from migrate.engine.kinds.vma import PROT_READ, PROT_WRITE, SHMEM, VMA
from migrate.engine.memory.area import Area, Content, of
from migrate.engine.memory.choice import choose
from migrate.engine.memory.codec import Compress, Compressor
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.planner import RoundPlanner, Run
from migrate.engine.memory.pump import PagePump
from migrate.engine.memory.tracker import Scan, Tracker
from migrate.engine.preview import Layout, Preview
from migrate.engine.program import Program
from migrate.engine.tracee import leftovers
from migrate.engine.tracee.claim import Claim
from migrate.engine.tracee.inspection import why_not_traceable
from migrate.engine.tracee.swallow import swallow
from migrate.engine.tracee.tree import Tracee
from migrate.engine.wire import Writer
from migrate.errors import Failed, Refused
from migrate.pie import local

Answer = tuple[dict[str, Any], bytes]
SendPages = Callable[[int, bytes, memoryview], None]  # flags, meta, contents
_EMPTY = memoryview(b"")


class Source:
    """One process on its way. Verbs are the methods ``do_…``: arguments of the request in, fields and blob out."""

    def __init__(self, send_pages: SendPages) -> None:
        self._send_pages = send_pages
        self._dumper: Dumper | None = None
        self._claim: Claim | None = None
        self._tracker: Tracker | None = None
        self._pump: PagePump | None = None
        self._planner = RoundPlanner()
        self._looked: list[VMA] = []  # the layout of the last look
        self._filled: set[int] = set()  # what it found in it that is not expected to be written to
        self._gone = PageSet()  # here, and held by the destination; to be told with the next pages
        self._areas: list[Area] = []
        self._areas_of: Sequence[VMA] = ()
        self._released: tuple[locks.Lock, ...] = ()
        self._rate: float | None = None  # bytes per second that the link took in the last round
        self._killed = False
        self._writer = Writer()

    @property
    def dumper(self) -> Dumper:
        if self._dumper is None:
            raise Failed("no process has been named yet")
        return self._dumper

    # Before

    def do_inspect(self, pid: int) -> Answer:
        """Everything that can be seen without touching the process. Refused when it cannot even be looked at."""
        if problems := why_not_traceable(pid):
            raise Refused(problems)
        proc = Proc(pid)
        self._claim = Claim(proc)
        dumper = self._dumper = Dumper(proc, Tracee(pid))
        vmas, table, fs, problems = dumper.look()
        raw = proc.read("status")
        parsed = status(raw.decode("utf-8", "surrogateescape"))
        own = dumper.own_vdso
        needs = [*dumper.spaces.needs(), *table.needs(pid), *(fs.needs(f"pid {pid}") if fs else ())]
        executable, trouble = look_at_exe(proc)
        trouble += shared_memory(vmas, proc)
        shifted = task_offsets(proc)
        preview = Preview(
            pid=own_pid(raw),
            comm=proc.text("comm").removesuffix("\n"),
            tids=tuple(own_pid(proc.read(f"task/{tid}/status")) for tid in proc.tids()),
            problems=(*problems, *trouble, *own.problems),
            vmas=tuple(vmas),
            needs=(*needs, executable),
            streams=table.streams,
            descriptors=tuple(descriptor.number for descriptor in table.descriptors),
            limits=proc.text("limits"),
            status=raw,
            resident=parsed.vm.get("VmRSS", 0) << 10,
            cpu=_own_cpu(),
            vdso=own.vdso,
            clock_offsets=(shifted.monotonic, shifted.boottime),
        )
        return {}, encode(preview)

    # Rounds

    def do_track(self, tracker: str, compress: str, bandwidth: float | None) -> Answer:
        """Begin to track writes. ``bandwidth``: the most bytes per second to send, or None."""
        self._bandwidth = bandwidth
        dumper = self.dumper
        leftovers.cure(dumper.tracee)  # of an earlier try whose agent and coordinator were killed both
        dumper.stop()
        try:
            choice = choose(dumper.proc, dumper.tracee.pidfd, self._remote_syscall, tracker)
        finally:
            dumper.resume()
        self._tracker = choice.tracker
        dumper.spaces.tracked = True
        compressor = None if compress == "none" else Compressor(Compress(compress), lambda: self._rate)
        self._pump = PagePump(dumper.proc, self._planner, self._tracker, compressor, self._stopped)
        return {"tracker": self._tracker.name, "rejected": choice.rejected}, b""

    def _remote_syscall(self, number: int, *args: int) -> int:
        tracee = self.dumper.tracee
        return tracee.remote_syscall(tracee.tids[0], number, *args)

    def do_look(self) -> Answer:
        """Areas and pages, while the process runs. Protects: what is written from now on shows at the next look."""
        dumper = self.dumper
        assert self._tracker is not None
        dumper.follow()
        stop = self._tracker.stops([area_of(vma) for vma in dumper.vmas])
        if stop:
            dumper.stop()
        try:
            if stop:
                dumper.follow()
            fields = self._scan_memory(dumper.vmas, protect=True)
        finally:
            if stop:
                dumper.resume()
        self._looked, self._filled = dumper.vmas, set(self._fill())
        return fields, encode(Layout(tuple(dumper.vmas), tuple(self._filled)))

    def _scan_memory(self, vmas: Sequence[VMA], protect: bool) -> dict[str, Any]:
        assert self._tracker is not None
        if vmas != self._areas_of:
            self._areas_of, self._areas = vmas, [area_of(vma) for vma in vmas]
        scan = self._tracker.scan(self._areas, self._planner.known, protect)
        for page in self.dumper.tracee.pad.copies():
            scan.written.discard(page, page + PAGE)
        plan = self._planner.plan(scan, self._areas)
        for address, pages in [*plan.drop, *plan.punch]:
            self._gone.add(address, address + pages * PAGE)
        return {"pages": plan.pages}

    def _fill(self) -> tuple[int, ...]:
        """Areas with pages of their own that nobody expected there: a debugger writes to what the task cannot."""
        places = [(v.start, v.end) for v in self.dumper.vmas if v.travels and not v.fill_prot & PROT_WRITE]
        owed = self._planner.owed.clip(places)
        return tuple(start for start, end in places if owed.clip([(start, end)])) if owed else ()

    def do_send(self, remapped: list[list[int]]) -> Answer:
        """The pages that the last look found. ``remapped``: ranges that the destination has mapped anew."""
        assert self._pump is not None
        for start, end in remapped:
            self._planner.remapped(start, end)
        plan = self._planner.plan(Scan(), self._areas)  # what is owed by now
        # By what is there now: it need not be what was there when they went.
        here = [(area.start, area.end) for area in self._areas]
        gone = self._gone.clip(here)  # what came back since is sent after this
        shared = gone.clip(of(Content.SHARED, self._areas))
        plan.drop = [Run(*run) for run in (gone - shared).runs()]
        plan.punch = [Run(*run) for run in shared.runs()]
        self._gone = PageSet()
        begun = time.monotonic()
        before = self._pump.stats.bytes_out
        for frame in self._pump.frames(plan, self._areas):
            self._send_pages(frame.flags, frame.meta, frame.blob)
            self._pace(begun, self._pump.stats.bytes_out - before)
        seconds, sent = time.monotonic() - begun, self._pump.stats.bytes_out - before
        if sent > 1 << 20:
            self._rate = sent / max(seconds, 1e-6)
        # Those that turned out to be zero are dealt with too: the rate must be of the pages that a plan counts.
        return {"pages": plan.pages, "bytes": sent, "seconds": seconds}, b""

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        """To read what the process itself cannot, where the kernel gives that to its tracer alone: for 1 MiB at a
        time, so that it hardly notices."""
        if self._frozen or has_forced_reads():
            yield
            return
        self.dumper.stop()
        try:
            yield
        finally:
            self.dumper.resume()

    def _pace(self, begun: float, sent: int) -> None:
        """Not faster than the user allows."""
        if self._bandwidth and not self._frozen:
            ahead = sent / self._bandwidth - (time.monotonic() - begun)
            if ahead > 0:
                time.sleep(ahead)

    _bandwidth: float | None = None
    _frozen = False

    def do_rehearse(self) -> Answer:
        """The image of the process as it would be now. Finds what shows only from inside, and warms every path."""
        dumper = self.dumper
        begun = dumper.stop_outside().begun
        try:
            image = dumper.image(frozen=False)
        finally:
            dumper.resume()
        return {"seconds": time.monotonic() - begun}, self._writer.write(image)

    # The freeze

    def do_freeze(self) -> Answer:
        """Stop it for good. ``send_last`` looks for the last time and sends, while the coordinator compiles.
        ``changed``: the layout is not that of the last look. Times in seconds; ``begun`` is of CLOCK_MONOTONIC."""
        dumper = self.dumper
        gc.disable()
        begun, looking, leaving = dumper.stop_outside()
        self._frozen = True
        stopped = time.monotonic()
        faults.hit("source-stopped")
        try:
            image = dumper.image(frozen=True)
            collected = time.monotonic()
            faults.hit("source-collected")
            answer = self._writer.write(image)
        except BaseException:
            self.do_resume()
            raise
        return {
            "begun": begun,
            "stop": stopped - begun - looking - leaving,
            "vdso": leaving,
            "collect": collected - stopped + looking,
            "changed": dumper.vmas != self._looked,
            "locks": len(image.descriptors.locks),
        }, answer

    def do_send_last(self, remapped: list[list[int]]) -> Answer:
        """The last look and its pages. ``again``: nothing was sent, and the answer is the layout to be followed
        first."""
        begun = time.monotonic()
        dumper = self.dumper
        self._scan_memory(dumper.vmas, protect=False)
        if set(self._fill()) - self._filled:
            # Memory was mapped, written and made read-only since the last look, in a place where maps showed the same
            # before. That it has ever been writable is shown by smaps alone.
            dumper.look_again()
            self._scan_memory(dumper.vmas, protect=False)
            self._filled = set(self._fill())
            return {"again": True, "scan": 0.0}, encode(Layout(tuple(dumper.vmas), tuple(self._filled)))
        scanned = time.monotonic()
        answer, blob = self.do_send(remapped)
        there = [(area.start, area.end) for area in self._areas if area.content is not Content.NOTHING]
        if left := self._planner.owed.clip(there):
            # nothing takes memory away from a process that stands still; a kernel may keep it from its tracer, too
            address, _ = next(iter(left.runs()))
            what = f"{len(left)} pages that cannot be read, the first of them at {address:#x}"
            raise Failed(f"the process has {what}; was the kernel booted with proc_mem.force_override=never?")
        return {**answer, "again": False, "scan": scanned - begun}, blob

    def do_unlock(self) -> Answer:
        """Release the locks of the stopped process, so that its successor can take them."""
        table, _ = self.dumper.files.dump()
        self._released = table.locks
        program, pid = Program("releasing the locks"), self.dumper.proc.pid
        locks.release(program, table.locks)
        check(self.dumper.parasite().run({pid: program})[pid], program.title, pid)
        faults.hit("source-unlocked")
        return {}, b""

    def do_resume(self) -> Answer:
        """Let it go on here as if nothing had happened."""
        if self._dumper is None:
            return {}, b""
        try:
            if self._halted:
                swallow(self.dumper.tracee, signal.SIGSTOP)
            self._committing = self._halted = False
            if self._released:
                released, self._released = self._released, ()
                take_back(self.dumper.parasite(), self.dumper.proc.pid, released)
        finally:
            self._frozen = False
            gc.enable()
            self.dumper.resume()
        return {}, b""

    def do_commit(self) -> Answer:
        """The decision is the destination's now. When we end, however, the process stays stopped: a SIGSTOP waits for
        it, which nothing but SIGCONT and SIGKILL undoes (signal(7)). One that is stopped already stays so without."""
        tracee = self.dumper.tracee
        if not tracee.stopped_by:
            signal.pidfd_send_signal(tracee.pidfd, signal.SIGSTOP)
            self._halted = True
        self._committing = True
        faults.hit("source-halted")
        return {}, b""

    _committing = _halted = False

    def do_kill(self) -> Answer:
        """The destination has it: this copy ends, without having run again."""
        dumper = self.dumper
        self._killed = True
        with suppress(ProcessLookupError):  # somebody else has
            signal.pidfd_send_signal(dumper.tracee.pidfd, signal.SIGKILL)
        faults.hit("source-killed")
        return {}, b""

    def do_reap(self) -> Answer:
        """Wait until the killed copy is gone."""
        dumper = self.dumper
        dumper.tracee.resume()
        gone = poll()
        gone.register(dumper.tracee.pidfd, POLLIN)
        if not gone.poll(KILL_PATIENCE * 1000):
            raise Failed(f"pid {dumper.proc.pid} was killed and is not gone after {KILL_PATIENCE:g} s")
        return {}, b""

    def do_cure(self, pid: int, halted: bool, start: int | None = None, blob: bytes = b"") -> Answer:
        """See `aftercare.cure`. ``blob``: the locks."""
        return {"freed": aftercare.cure(pid, halted, start, decode(locks.Held, blob).locks if blob else ())}, b""

    def do_end(self, pid: int, start: int | None = None) -> Answer:
        """See `aftercare.end`."""
        aftercare.end(pid, start)
        return {}, b""

    def close(self) -> None:
        """Leave no trace. Whatever fails, all of it is tried."""
        try:
            if self._pump is not None:
                self._pump.close()
            if self._tracker is not None:
                self._tracker.close()
        finally:
            if self._dumper is not None:
                try:
                    if self._frozen and not self._killed and not self._committing:
                        self.do_resume()
                finally:
                    self._dumper.close()
                    self._dumper.proc.close()
                    self._dumper = None
            if self._claim is not None:
                self._claim.close()
                self._claim = None


def area_of(vma: VMA) -> Area:
    """What the trackers want to know of a VMA; also of one without contents that travel, so that they keep off it."""
    backing, readable = vma.backing, bool(vma.prot & PROT_READ)
    if not vma.travels or "dp" in vma.flags.split():
        return Area(vma.start, vma.end, Content.NOTHING, readable)
    if not vma.shared or backing is None:
        content = Content.ANONYMOUS if backing is None else Content.PRIVATE_FILE
        return Area(vma.start, vma.end, content, readable)
    key = (os.major(backing.dev), os.minor(backing.dev), backing.ino)
    return Area(vma.start, vma.end, Content.SHARED, readable, key, vma.offset, backing.kind == SHMEM)


def _own_cpu() -> Cpu:
    program = Program("the CPU")
    decode = Cpu.collect(program)
    return decode(local.run(program.link()))
