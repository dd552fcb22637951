"""One process on the source: what the source agent does to it, while it runs and when it is frozen.

A round is `look` (which areas there are and which pages were written; they are protected anew) and `send` (the pages).
Between the two the coordinator makes the destination's layout the same. The freeze is `stop`, `image` and `send_last`.
All of them together are `migrate.engine.source.Source`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from select import POLLIN, poll
from typing import Any

from migrate.engine.aftercare import KILL_PATIENCE, check, take_back
from migrate.engine.areas import area_of
from migrate.engine.cpu import own_cpu
from migrate.engine.dump import Dumper, Stopped
from migrate.engine.hostname import HostNames
from migrate.engine.house import at_rest
from migrate.engine.image.codec import encode
from migrate.engine.ipc import IpcReader
from migrate.engine.kernel.probes import has_forced_reads
from migrate.engine.kernel.proc import Proc
from migrate.engine.kernel.status import status
from migrate.engine.kernel.timens import task_offsets
from migrate.engine.kin import Kin
from migrate.engine.kinds import heritage, locks
from migrate.engine.kinds.mm import look_at_exe
from migrate.engine.kinds.outside import shared_memory
from migrate.engine.kinds.vma import PROT_WRITE, VMA
from migrate.engine.memory.area import Area, Content, of
from migrate.engine.memory.choice import choose
from migrate.engine.memory.codec import Compress, Compressor
from migrate.engine.memory.cow import Heir, inherited
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.planner import RoundPlanner, Run
from migrate.engine.memory.pump import PagePump
from migrate.engine.memory.tracker import Scan, Tracker
from migrate.engine.preview import Layout, Preview
from migrate.engine.process import ProcessImage
from migrate.engine.program import Program
from migrate.engine.standing import own_pid
from migrate.engine.surroundings import Surroundings
from migrate.engine.tracee import leftovers
from migrate.engine.tracee.claim import Claim
from migrate.engine.tracee.swallow import swallow
from migrate.engine.tracee.tree import Tracee
from migrate.engine.wire import Writer
from migrate.errors import Failed, Passing

Answer = tuple[dict[str, Any], bytes]
SendPages = Callable[[int, bytes, memoryview], None]  # flags, meta, contents
_EMPTY = memoryview(b"")


class Member:
    """One process on its way. What answers a request returns fields and blob of the reply."""

    def __init__(self, pid: int, send_pages: SendPages, family: frozenset[int], ipc: IpcReader) -> None:
        """Refused when somebody else is moving it. ``family``: all that move together; ``ipc``: of all of them."""
        self._ipc = ipc
        self._send_pages = send_pages
        self.pid, self._family = pid, family
        with ExitStack() as opened:  # of one that may end meanwhile
            proc = Proc(pid)
            opened.callback(proc.close)
            self._claim = Claim(proc)
            opened.callback(self._claim.close)
            tracee = opened.enter_context(Tracee(pid))
            self.dumper = Dumper(proc, tracee, family)
            opened.pop_all()
        self._tracker: Tracker | None = None
        self._pump: PagePump | None = None
        self._planner = RoundPlanner()
        self._looked: list[VMA] = []  # the layout of the last look
        self._filled: set[int] = set()  # what it found in it that is not expected to be written to
        self._gone = PageSet()  # here, and held by the destination; to be told with the next pages
        self._areas: list[Area] = []
        self._areas_of: Sequence[VMA] = ()
        self._released: tuple[locks.Lock, ...] = ()
        self.elsewhere: frozenset[int] = frozenset()  # starts of VMAs whose contents another member sends
        self._areas_without: frozenset[int] = frozenset()
        self._rate: float | None = None  # bytes per second that the link took in the last round
        self._killed = False
        self._names: HostNames | None = None
        self._writer = Writer()
        self.preview: Preview | None = None  # of one that was met when the others were on their way already
        self.landlord: Member | None = None  # the first of those whose memory it shares (CLONE_VM), if it is another
        self._tenants: Sequence[Member] = ()

    def lodge(self, house: Sequence[Member]) -> None:
        """These share their memory, it is one of them; the first is dumped with it, and the others without."""
        self.landlord = house[0] if house[0] is not self else None
        self._tenants = house[1:] if house[0] is self else ()
        self.dumper.tenant = self.landlord is not None
        if self.landlord is not None:
            self.dumper.spaces.tracked = self.landlord.dumper.spaces.tracked

    @property
    def shares_memory(self) -> bool:
        """With another one (CLONE_VM)."""
        return self.landlord is not None or bool(self._tenants)

    def join(self, family: frozenset[int]) -> None:
        """These move together by now."""
        self._family = family
        self.dumper.join(family)

    def layout(self) -> Answer:
        """That of the last look: what is told of one that is no more what it was then."""
        return {"pages": 0}, self._layout(self._looked)

    def _layout(self, vmas: Sequence[VMA], kept: Sequence[tuple[int, int]] = ()) -> bytes:
        segments = self._ipc.segments(self.pid, vmas)
        return encode(Layout(tuple(vmas), tuple(self._filled), tuple(kept), segments))

    # Before

    def inspect(self, kin: Kin) -> Preview:
        """Everything that can be seen without touching the process."""
        dumper, proc, pid = self.dumper, self.dumper.proc, self.pid
        vmas, table, fs, problems = dumper.look()
        raw = proc.read("status")
        parsed = status(raw.decode("utf-8", "surrogateescape"))
        own = dumper.own_vdso
        needs = [*dumper.spaces.needs(), *table.needs(pid), *(fs.needs(f"pid {pid}") if fs else ())]
        executable, trouble = look_at_exe(proc)
        trouble += shared_memory(vmas, proc, self._family)
        surroundings, strange = Surroundings.of(proc, f"pid {pid}")
        self._names = surroundings.names
        shifted = task_offsets(proc)
        return Preview(
            pid=own_pid(raw),
            comm=proc.text("comm").removesuffix("\n"),
            tids=tuple(own_pid(proc.read(f"task/{tid}/status")) for tid in proc.tids()),
            problems=(*(each for each in problems if not isinstance(each, Passing)), *trouble, *strange, *own.problems),
            vmas=() if self.landlord is not None else tuple(vmas),
            needs=(*needs, executable),
            streams=table.streams,
            descriptors=tuple(descriptor.number for descriptor in table.descriptors),
            limits=proc.text("limits"),
            status=raw,
            resident=0 if self.landlord is not None else parsed.vm.get("VmRSS", 0) << 10,
            cpu=own_cpu(),
            vdso=own.vdso,
            compat=dumper.tracee.compat,
            clock_offsets=(shifted.monotonic, shifted.boottime),
            kin=kin,
            surroundings=surroundings,
        )

    # Rounds

    def track(self, tracker: str, compress: str, bandwidth: float | None, held: bool = False) -> Answer:
        """Begin to track writes. ``bandwidth``: the most bytes per second to send, or None; ``held``: it stands still,
        and stays so."""
        self._bandwidth = bandwidth
        if self.landlord is not None:
            self.dumper.spaces.tracked = True  # what it is tracked by shows in all of them
            return {"tracker": "", "rejected": []}, b""
        dumper = self.dumper
        leftovers.cure(dumper.tracee)  # of an earlier try whose agent and coordinator were killed both
        dumper.stop()
        try:
            gently = len(self._family) > 1
            choice = choose(dumper.proc, dumper.tracee.pidfd, self._remote_syscall, tracker, gently)
        finally:
            if not held:
                dumper.resume()
        self._tracker = choice.tracker
        dumper.spaces.tracked = True
        compressor = None if compress == "none" else Compressor(Compress(compress), lambda: self._rate)
        self._pump = PagePump(dumper.proc, self._planner, self._tracker, compressor, self._stopped, gently)
        return {"tracker": self._tracker.name, "rejected": choice.rejected}, b""

    def _remote_syscall(self, number: int, *args: int) -> int:
        tracee = self.dumper.tracee
        return tracee.remote_syscall(tracee.tids[0], number, *args)

    def look(self, maker: Member | None = None) -> Answer:
        """Areas and pages, while the process runs. Protects: what is written from now on shows at the next look.
        ``maker``: at the first look, whose restoree has just begotten this one's."""
        if self.landlord is not None:
            return {"pages": 0}, encode(Layout((), ()))
        dumper = self.dumper
        assert self._tracker is not None
        dumper.follow()
        stop = self._tracker.stops([area_of(vma) for vma in dumper.vmas])
        house = [dumper, *(each.dumper for each in self._tenants)]
        with at_rest(house, self._family) if stop else nullcontext():
            if stop:
                dumper.follow()
            kept = heritage.inherited(maker._looked, maker._filled, dumper.vmas) if maker is not None else []
            if maker is not None:
                self._planner.held = maker._planner.held.clip(kept)
            fields = self._scan_memory(dumper.vmas, protect=True)
        self._looked, self._filled = dumper.vmas, set(self._fill())
        return fields, self._layout(dumper.vmas, kept)

    def shared_with(self, heirs: Sequence[Member]) -> list[PageSet]:
        """After the first look at these: what the restoree has of this one's need not be sent to theirs where it is the
        same. See `memory.cow`."""
        assert self._tracker is not None
        tracker, areas, owed = self._tracker, self._areas, self._planner.owed
        found = []
        for child in heirs:
            assert child._tracker is not None
            wanted = (child._planner.held & child._planner.owed) - owed
            found.append(Heir(child.dumper.proc, child._tracker, wanted))
        return inherited(
            self.dumper.proc, tracker, found, lambda: tracker.scan(areas, PageSet(), protect=False).written
        )

    def has_got(self, pages: PageSet) -> None:
        """The restoree has these from its maker's."""
        self._planner.owed = self._planner.owed - pages

    @property
    def due(self) -> int:
        """Pages that are to be sent, as far as is known."""
        return self._planner.plan(Scan(), self._areas).pages

    def _scan_memory(self, vmas: Sequence[VMA], protect: bool) -> dict[str, Any]:
        assert self._tracker is not None
        if vmas != self._areas_of or self.elsewhere != self._areas_without:
            self._areas_of, self._areas_without = vmas, self.elsewhere
            self._areas = [self._area(vma) for vma in vmas]
        scan = self._tracker.scan(self._areas, self._planner.known, protect)
        for each in (self, *self._tenants):
            for page in each.dumper.tracee.pad.copies():
                scan.written.discard(page, page + PAGE)
        plan = self._planner.plan(scan, self._areas)
        for address, pages in [*plan.drop, *plan.punch]:
            self._gone.add(address, address + pages * PAGE)
        return {"pages": plan.pages}

    def _area(self, vma: VMA) -> Area:
        area = area_of(vma)
        if vma.start in self.elsewhere:  # another member shows the same part of the same object: once is enough
            return area._replace(content=Content.NOTHING)
        return area

    def _fill(self) -> tuple[int, ...]:
        """Areas with pages of their own that nobody expected there: a debugger writes to what the task cannot."""
        places = [(v.start, v.end) for v in self.dumper.vmas if v.travels and not v.fill_prot & PROT_WRITE]
        owed = self._planner.owed.clip(places)
        return tuple(start for start, end in places if owed.clip([(start, end)])) if owed else ()

    def send(self, remapped: list[list[int]]) -> Answer:
        """The pages that the last look found. ``remapped``: ranges that the destination has mapped anew."""
        if self.landlord is not None:
            return {"pages": 0, "bytes": 0, "seconds": 0.0}, b""
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

    # The freeze

    @property
    def frozen(self) -> bool:
        """For good, unless all is called off."""
        return self._frozen

    @property
    def held(self) -> bool:
        """Stopped by us, and to go on here."""
        return self._frozen and not self._killed and not self._committing

    def freeze(self) -> Stopped:
        """Stop it for good."""
        stopped = self.dumper.stop_outside()
        self._frozen = True
        if HostNames.of(self.dumper.proc) != self._names:
            raise Failed(f"pid {self.pid} has changed its host name meanwhile (sethostname(2), unshare(2)); try again")
        return stopped

    def changed(self) -> bool:
        """Whether its layout is not that of the last look."""
        return self.landlord is None and self.dumper.vmas != self._looked

    def write(self, image: ProcessImage) -> bytes:
        """For the coordinator."""
        return self._writer.write(image)

    def last_look(self) -> Answer:
        """At what is to be sent of it as it stands still. ``again``: the answer is the layout to be followed first."""
        if self.landlord is not None:
            return {"again": False, "scan": 0.0}, b""
        begun = time.monotonic()
        dumper = self.dumper
        self._scan_memory(dumper.vmas, protect=False)
        if set(self._fill()) - self._filled:
            # Memory was mapped, written and made read-only since the last look, in a place where maps showed the same
            # before. That it has ever been writable is shown by smaps alone.
            dumper.look_again()
            self._scan_memory(dumper.vmas, protect=False)
            self._filled = set(self._fill())
            return {"again": True, "scan": 0.0}, self._layout(dumper.vmas)
        return {"again": False, "scan": time.monotonic() - begun}, b""

    def send_last(self, remapped: list[list[int]], looked: bool) -> Answer:
        """The last look, unless it has been taken, and its pages. ``again``: nothing was sent, see `last_look`."""
        look: dict[str, Any] = {"again": False, "scan": 0.0}
        if not looked:
            look, layout = self.last_look()
            if look["again"]:
                return look, layout
        answer, blob = self.send(remapped)
        if self.landlord is not None:
            return {**answer, **look}, blob
        there = [(area.start, area.end) for area in self._areas if area.content is not Content.NOTHING]
        if left := self._planner.owed.clip(there):
            # nothing takes memory away from a process that stands still; a kernel may keep it from its tracer, too
            address, _ = next(iter(left.runs()))
            what = f"{len(left)} pages that cannot be read, the first of them at {address:#x}"
            raise Failed(f"the process has {what}; was the kernel booted with proc_mem.force_override=never?")
        return {**answer, **look}, blob

    def unlock(self, held: Sequence[locks.Lock]) -> None:
        """Release the locks of the stopped process, so that its successor can take them."""
        self._released = tuple(held)
        program, pid = Program("releasing the locks"), self.pid
        locks.release(program, held)
        check(self.dumper.parasite().run({pid: program})[pid], program.title, pid)

    def resume(self) -> None:
        """Let it go on here as if nothing had happened."""
        try:
            self.put_right()
        finally:
            self._frozen = False
            self.dumper.resume()

    def put_right(self) -> None:
        """All of that but for letting it go."""
        if self._halted:
            swallow(self.dumper.tracee, signal.SIGSTOP)
        self._committing = self._halted = False
        if self._released:
            released, self._released = self._released, ()
            take_back(self.dumper.parasite(), self.pid, released)
        self.dumper.withdraw()

    def halt(self) -> None:
        """See `Source.do_commit`."""
        tracee = self.dumper.tracee
        if not tracee.stopped_by:
            signal.pidfd_send_signal(tracee.pidfd, signal.SIGSTOP)
            self._halted = True
        self._committing = True

    _committing = _halted = False

    def kill(self) -> None:
        """The destination has it: this copy ends, without having run again."""
        self._killed = True
        with suppress(ProcessLookupError):  # somebody else has
            signal.pidfd_send_signal(self.dumper.tracee.pidfd, signal.SIGKILL)

    def reap(self) -> None:
        """Wait until the killed copy is gone."""
        tracee = self.dumper.tracee
        tracee.resume()
        gone = poll()
        gone.register(tracee.pidfd, POLLIN)
        if not gone.poll(KILL_PATIENCE * 1000):
            raise Failed(f"pid {self.pid} was killed and is not gone after {KILL_PATIENCE:g} s")

    def close(self) -> None:
        """Leave no trace. Whatever fails, all of it is tried."""
        try:
            if self._pump is not None:
                self._pump.close()
            if self._tracker is not None:
                self._tracker.close()
        finally:
            try:
                if self.held:
                    self.resume()
            finally:
                self.dumper.close()
                self.dumper.proc.close()
                self._claim.close()
