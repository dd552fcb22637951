"""The order of a dump: from a stopped process to its image.

What can be read from outside is; what only the task can tell, it is asked by programs that the parasite runs in each of
its threads. The programs do not depend on the task (timers aside) and are linked once. Whatever is slow and cannot have
changed since the last look (smaps, who else has a pipe open) was read while the task ran.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from migrate.engine import namespaces, vdso
from migrate.engine.kernel.maps import smaps
from migrate.engine.kernel.pagemap import Pagemap
from migrate.engine.kernel.proc import Proc
from migrate.engine.kin import Kin
from migrate.engine.kinds import children, common, mapped, own_vdso, seccomp, task
from migrate.engine.kinds.controls import refusals
from migrate.engine.kinds.descriptor_reader import DescriptorReader
from migrate.engine.kinds.descriptors import DescriptorTable
from migrate.engine.kinds.fs import FsState
from migrate.engine.kinds.identity import Rseq
from migrate.engine.kinds.mm import MM
from migrate.engine.kinds.opened import DumpOptions
from migrate.engine.kinds.restart import Wait, restart
from migrate.engine.kinds.vma import VMA
from migrate.engine.kinds.vma_read import AddressSpaceReader
from migrate.engine.memory.guards import guard_pages
from migrate.engine.outside import code_of, native_vdso, returns_of_handlers
from migrate.engine.process import ProcessImage, ThreadImage
from migrate.engine.program import Results
from migrate.engine.questions import Questions
from migrate.engine.standing import hide_stop, own_pid
from migrate.engine.texts import Texts
from migrate.engine.tracee import compat, ptrace
from migrate.engine.tracee.detour import ProcessEnded
from migrate.engine.tracee.injection import Injection, Parasite
from migrate.engine.tracee.instep import Steps, alone
from migrate.engine.tracee.leaving import Code, Stacks, leave
from migrate.engine.tracee.memory import RemoteAddress
from migrate.engine.tracee.rseq import registered
from migrate.engine.tracee.sigframe import Mappings
from migrate.engine.tracee.together import Seen
from migrate.engine.tracee.tree import ThreadState, Tracee
from migrate.errors import OpFailed, Problem, Refused
from migrate.pie import blob

_QUICK = 0.03  # seconds
_LEAVING = 0.03  # seconds that all threads together get to come out of the vDSO
_LEAVING_32 = 0.1  # the same of a program of 32 bits
_PAUSES = (0.001, 0.01, 0.05, 0.1, 0.2)  # seconds that it runs on for when they did not
_UNREST = 1000  # looks at queues and timers; each but the last saw a signal arrive
_ROOM = 256 << 10  # bytes of programs that the parasite's area has room for at once, at first


class Stopped(NamedTuple):
    """How a process was stopped. ``begun``: of time.monotonic(); ``looking``, ``leaving``: seconds that it took to look
    at its layout, and to have all threads out of the vDSO."""

    begun: float
    looking: float
    leaving: float


class Dumper:
    """Makes images of one process. Remembers what it saw, so that the last one is cheap."""

    def __init__(self, proc: Proc, tracee: Tracee, family: frozenset[int] = frozenset()) -> None:
        """``family``: all processes that move together, as we number them. OSError: it has ended."""
        ia32 = tracee.compat  # before anything is opened
        self.proc, self.tracee, self.family = proc, tracee, family
        self.spaces = AddressSpaceReader(proc)
        self.files = DescriptorReader(proc, tracee.pidfd, family)
        self.table: tuple[DescriptorTable, list[Problem]] | None = None  # where it is read with those of others
        self.seen_table: DescriptorTable | None = None  # at the last look
        self._common: frozenset[tuple[int, int]] = frozenset()
        self.tenant = False  # its memory is another process's as well, and is dumped with that one
        self.follows = False  # what has ended of its children is looked after (`migrate.engine.kin`)
        self.vmas: list[VMA] = []
        self._texts = Texts(proc)
        self._pagemap = Pagemap(proc)
        self._waits: dict[int, Wait] = {}
        self._threads: dict[int, tuple[tuple[object, ...], task.Thread]] = {}
        self.own_vdso = own_vdso.OwnVDSO(vdso.VDSO(()))
        self._code: Code | None = None
        self._seen: list[Seen] = []  # its threads, when they were last stopped
        self._known_stacks: tuple[list[VMA], Mappings] | None = None
        self._standing = False  # no thread has run since that was looked at
        self._nodefer = False  # it has handlers with SA_NODEFER, as far as is known
        self._parasite: Parasite | None = None
        self._room = _ROOM  # each area more is a system call more in the task, while it stands still
        self._inside = ExitStack()  # undoes the injection
        self._questions = Questions(proc, self._texts, ia32)

    def join(self, family: frozenset[int]) -> None:
        """These move together by now."""
        self.family = family
        self.files.join(family)

    # While it runs

    def look(
        self, options: DumpOptions | None = None
    ) -> tuple[list[VMA], DescriptorTable, FsState | None, list[Problem]]:
        """What can be seen without stopping it, and why it cannot be moved as far as that tells."""
        self.vmas = self._look_at_vdso()
        table, problems = self.table or self.files.dump(options or DumpOptions(mapped=mapped.objects(self.vmas)))
        self.seen_table = table
        fs, more = FsState.dump(self.proc, self.tracee.pidfd)
        problems = [*self.spaces.problems, *problems, *more]
        self._texts.hold()
        return self.vmas, table, fs, problems

    def _look_at_vdso(self) -> list[VMA]:
        """All VMAs, and which of them are its vDSO; as they are read from now on, they go under the names of that."""

        def read(address: int, size: int) -> bytes:
            return self.tracee.memory.read(RemoteAddress(address), size)

        self.spaces.rename(lambda vmas: vmas)
        self._code = None
        self.own_vdso = own_vdso.look(self.spaces.read(), read, native_vdso(self.tracee.compat), f"pid {self.proc.pid}")
        return self.spaces.rename(self._named)

    def _named(self, vmas: list[VMA]) -> list[VMA]:
        vmas = self.own_vdso.named(vmas)
        return common.named(vmas, self._common) if self._common else vmas

    def know_common(self, keys: frozenset[tuple[int, int]]) -> None:
        """These objects of shared memory are mapped by others of the family, too."""
        if keys != self._common:
            self._common = keys
            self.vmas = self.spaces.rename(self._named)

    def follow(self) -> None:
        """The address space once more. VmFlags change without a trace in maps (madvise), so where all of smaps is read
        quickly it is; where not, the rehearsal does."""
        self.vmas = self.spaces.read() if self.spaces.took < _QUICK else self.spaces.reread()

    # While it is stopped

    def see_memory(self, frozen: bool) -> None:
        """The areas of the stopped process: the first thing to do for an image of it."""
        if not frozen:
            self.vmas = self.spaces.read()
        elif self._standing and self._known_stacks is not None:
            self.vmas = self._known_stacks[0]
        else:
            self.vmas = self.spaces.reread()

    def imaging(self, frozen: bool, kin: Kin) -> Steps[ProcessImage]:
        """The image of the stopped process, after `see_memory`. ``frozen``: for good, so what is read is final and
        files are flushed. Raises Refused with all that cannot be moved."""
        if self.spaces.vanished:
            raise OpFailed(f"the memory of pid {self.proc.pid} changes while it is stopped: another process shares it")
        # Before the queues: a signal in the set of status and not in its queue is one that could not be queued.
        files, statuses = self._texts.process(), self._texts.statuses(self.tracee.tids)
        states = self.tracee.threads(self._seen)
        found: list[tuple[DescriptorTable, FsState | None, list[Problem]]] = []
        own = own_pid(statuses[self.proc.pid])
        guessed = self.tracee.registrations.guessed and not frozen
        sequences = [self._own_sequences(state) for state in states] if guessed else []
        states, process, mm, results = yield from self._ask_at_rest(
            states, files, own, lambda: found.append(self._open_files(frozen))
        )
        ((table, fs, problems),) = found
        problems += [*self.spaces.problems, *(problem for problem in sequences if problem is not None)]
        if self._questions.has_children(results[self.proc.pid]):
            born = set(children.seen(self.proc))
            strange = {pid for pid in born if not (children.ended(pid) and self.follows)} - self.family
            if not born or strange:
                problems.append(children.refusal(f"pid {self.proc.pid}", sorted(strange)))
        if self._questions.has_segments(results[self.proc.pid]):
            problems.append(Problem(f"pid {self.proc.pid}", "has segments of its own (modify_ldt(2))"))
        threads = []
        for state in states:
            status = statuses[state.tid]
            filters = ptrace.seccomp_filters(state.tid) if seccomp.mode_of(status) == seccomp.FILTER else []
            outside = task.ThreadOutside(status, state.signal_mask, state.pending, _rseq(state), filters)
            thread = self._thread(results[state.tid], outside, state.tid)
            dispatch = None if frozen else ptrace.syscall_dispatch(state.tid)  # the rehearsal's business
            problems += refusals(f"thread {state.tid}", dispatch) + thread.seccomp.refusals(f"thread {state.tid}")
            registers = self._registers(state)
            if state.registers.compat != self.tracee.compat:
                what = "runs code of 32 bits in a program of 64, or the other way round"
                problems.append(Problem(f"thread {state.tid}", what))
            segments = compat.thread_areas(state.tid) if self.tracee.compat else ()
            threads.append(ThreadImage(thread.identity.tid, registers, state.xstate, thread, segments))
        if not frozen:
            problems += namespaces.problems(self.proc, f"pid {self.proc.pid}")
        if problems or fs is None:
            raise Refused(problems)
        if frozen and process.actions.nodefer and not self._nodefer:
            # What was taken for a frame that is left over may be alive (see `stop_outside`).
            raise OpFailed(f"pid {self.proc.pid} has installed a handler with SA_NODEFER meanwhile; try again")
        self._nodefer = process.actions.nodefer
        vmas = [] if self.tenant else self.vmas
        last = max((vma.end for vma in vmas if not vma.special), default=0)
        guards = guard_pages(self._pagemap, 0, last)
        return ProcessImage(process, tuple(threads), tuple(vmas), guards, mm, table, fs, kin)

    def _own_sequences(self, state: ThreadState) -> Problem | None:
        """A registration of rseq(2) that nobody can tell the place of."""
        if state.rseq is None and registered(lambda *call: self.tracee.remote_syscall(state.tid, *call)):
            what = "restartable sequences (rseq(2)) not of the C library, and this kernel cannot say where"
            return Problem(f"thread {state.tid}", what, "it needs Linux 5.13 here")
        return None

    def _open_files(self, frozen: bool) -> tuple[DescriptorTable, FsState | None, list[Problem]]:
        options = DumpOptions(frozen=frozen, mapped=mapped.objects(self.vmas))
        table, problems = self.table or self.files.dump(options)
        fs, more = FsState.dump(self.proc, self.tracee.pidfd)
        return table, fs, [*problems, *more]

    def _thread(self, results: Results, outside: task.ThreadOutside, tid: int) -> task.Thread:
        """The very same object as the last time where nothing has changed: then nobody has to look at it again."""
        lasting = task.lasting(outside.status)
        answers = results.image, outside.mask, outside.queue, outside.rseq, outside.filters, lasting
        known = self._threads.get(tid)
        if known is None or known[0] != answers:
            known = self._threads[tid] = answers, self._questions.thread(results, outside)
        return known[1]

    def _ask_at_rest(
        self, states: list[ThreadState], files: Mapping[str, bytes], own: int, meanwhile: Callable[[], None]
    ) -> Steps[tuple[list[ThreadState], task.Process, MM, dict[int, Results]]]:
        """`_ask`, so that queues and timers fit together. Timers go off while the process is stopped: between a look at
        the queues and one at the timers a signal would be lost, the other way round it would come twice. None of them
        queues a second one while its first one waits, so this comes to an end. ``meanwhile`` is done once."""
        shared = self.tracee.shared_pending()
        for attempt in range(_UNREST):
            asking = self._ask(states, files, shared, own, None if attempt else meanwhile)
            process, mm, results = yield from asking
            before, shared = shared, self.tracee.shared_pending()
            same = before == shared
            if files["timers"]:  # which may be for a thread
                pending = self.tracee.pending()
                same = same and all(state.pending == pending[state.tid] for state in states)
                states = [replace(state, pending=pending[state.tid]) for state in states]
            if same:
                return states, process, mm, results
        raise OpFailed(f"pid {own} is sent signals faster than they can be read; try again")

    def _ask(
        self,
        states: Sequence[ThreadState],
        files: Mapping[str, bytes],
        shared: Sequence[bytes],
        own: int,
        meanwhile: Callable[[], None] | None,
    ) -> Steps[tuple[task.Process, MM, dict[int, Results]]]:
        """What only the task knows: every thread runs a program, the main thread a longer one."""
        main = self._questions.to_main(files["timers"], own, states, [] if self.tenant else self.vmas)
        others = self._questions.to_others
        programs = {state.tid: main.linked if state.tid == self.proc.pid else others for state in states}
        parasite = yield from self._injected()
        results = yield from parasite.running(programs, states, meanwhile)
        self._room = max(self._room, parasite.needed)
        for tid, result in results.items():
            if result.failed is not None:
                op, error = result.failed
                raise OpFailed(f"asking thread {tid} for its {op.label}: {op.name}: {os.strerror(-error)}")
        if main.keys:  # pkey_alloc changed what the main thread may touch (PKRU)
            ptrace.set_xstate(self.proc.pid, states[0].xstate)
        answers = results[self.proc.pid]
        outside = task.ProcessOutside(own, files, shared, bool(self.tracee.stopped_by), self.tracee.compat)
        return main.process(answers, outside), main.mm(answers, self._flags_of_new_memory()), results

    def _flags_of_new_memory(self) -> str:
        """VmFlags of memory that was mapped with no flags: those of the parasite show whether mlockall(MCL_FUTURE) is
        in force. Asked only of a process that has locked memory, for smaps walks page tables."""
        if self.tenant or not any("lo" in vma.flags.split() for vma in self.vmas if "lo" in vma.flags):
            return ""
        code = self.parasite().code
        for entry in smaps(self.proc.text("smaps")):
            if entry.mapping.start <= code < entry.mapping.end:
                return " ".join(entry.vm_flags)
        return ""

    def _registers(self, state: ThreadState) -> bytes:
        """As the thread is to go on elsewhere: out of a restartable sequence, its system call restarted."""
        registers = state.registers
        if state.rseq_abort:
            registers = registers.replace(rip=state.rseq_abort, orig_rax=-1)

        def read(address: int, size: int) -> bytes:
            return self.tracee.memory.read(RemoteAddress(address), size)

        return restart(registers, read, self._waits.get(state.tid)).pack()

    # Stopping and letting go

    def parasite(self) -> Parasite:
        """The parasite, injected at the first call after a stop."""
        return alone(self._injected())

    def _injected(self) -> Steps[Parasite]:
        if self._parasite is None:
            self._standing = False  # it has memory of its own
            injection = Injection(self.tracee, blob(), self._room)
            self._parasite = yield from injection.entering()
            self._inside.push(injection)
        return self._parasite

    def stop(self) -> None:
        """Stop every thread. From here on it would go on as it was, even if we were killed."""
        self.tracee.stop()
        self._see()

    def _see(self) -> None:
        self._seen = self.tracee.look()
        hide_stop(self.tracee, self._seen)

    def stop_outside(self) -> Stopped:
        """`stop`, with no thread in the middle of a function of its vDSO: on the destination that is another one, and
        where it is the same its data is not. (What a function has read of one clock, and the offset of the time
        namespace that it then adds, must be of one machine; and a process that leaves its time namespace has no page
        of such offsets any more.)

        Raises Refused when a thread stays inside (a handler that has interrupted such a function and does not return,
        say); it runs on then."""
        code = self._code = self._code or code_of(self.own_vdso, self.tracee.compat)
        for pause in _PAUSES:
            begun = time.monotonic()
            self.stop()
            stopped = time.monotonic()
            try:
                stacks = self._stacks()
                looked = time.monotonic()
                problems, seen = self._leave(code, stacks)
                if seen is not self._seen:
                    self._seen = seen
                    hide_stop(self.tracee, seen)
            except BaseException:
                self.resume()
                raise
            if not problems:
                return Stopped(begun, looked - stopped, time.monotonic() - looked)
            self.resume()
            time.sleep(pause)
        raise Refused(problems)

    def _leave(self, code: Code, stacks: Stacks) -> tuple[list[Problem], list[Seen]]:
        if not self.tracee.compat:
            return leave(self.tracee, self._seen, code, stacks, self._stacks, _LEAVING)
        problems, seen = compat.leave(self.tracee, self._seen, code, stacks, self._stacks, _LEAVING_32)
        if not problems:
            compat.point_home(self.tracee, seen, stacks, returns_of_handlers(self.own_vdso))
        return problems, seen

    def _stacks(self) -> Stacks:
        """As they are now. The layout that is read for it stands for as long as no thread runs."""
        vmas = self.spaces.reread()
        if self._known_stacks is None or self._known_stacks[0] is not vmas:
            self._known_stacks = vmas, Mappings([(vma.start, vma.end) for vma in vmas])
        self._standing = True
        return Stacks(self._known_stacks[1], self._nodefer)

    def resume(self) -> None:
        """Let it go on as it was: no parasite, and no sign in a system call that it was stopped."""
        self._standing = False
        try:
            self.withdraw()
            for tid, registers in self.tracee.all_registers().items():
                wait = Wait.seen(registers, self._waits.get(tid))
                if wait is not None:
                    self._waits[tid] = wait
        finally:
            self.tracee.resume()

    def look_again(self) -> None:
        """All of smaps, as it is without us."""
        self.withdraw()
        self.vmas = self.spaces.read()

    def distrust(self) -> None:
        """Another process that shares its memory has run since it was stopped."""
        self._standing = False

    def withdraw(self) -> None:
        """No parasite any more."""
        inside, self._inside, self._parasite = self._inside, ExitStack(), None
        inside.close()

    def close(self) -> None:
        """Let it go, and give back what is held open."""
        try:
            self.resume()
        except (ProcessEnded, ProcessLookupError):
            pass  # it was killed, by us after a commit or by somebody else: nothing is left to be put right
        finally:
            self._texts.close()
            self._pagemap.close()
            self.tracee.close()


def _rseq(state: ThreadState) -> Rseq | None:
    if state.rseq is None:
        return None
    return Rseq(state.rseq.address, state.rseq.size, state.rseq.signature)
