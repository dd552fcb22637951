"""Running code in a live task without leaving anything behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from migrate.engine.kernel.maps import PAGE, maps
from migrate.engine.kernel.syscalls import NUMBERS
from migrate.engine.program import OpKind, Program, Slot
from migrate.engine.tracee.detour import Dispositions, ParasiteFailed
from migrate.engine.tracee.injection import Injection
from migrate.engine.tracee.memory import Memory, RemoteAddress
from migrate.engine.tracee.pad import Pad
from migrate.engine.tracee.rseq import Registrations
from migrate.engine.tracee.tree import Tracee
from migrate.pie import blob
from tests.kernel.tracees import ROUNDS, running
from tests.victims import Victims


def _who(tid: int) -> tuple[Program, Slot, Slot]:
    program = Program(f"thread {tid}")
    return program, program.syscall("getpid", label="process"), program.syscall("gettid", label="thread")


def test_a_single_call(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                for tid in tracee.tids:
                    assert tracee.remote_syscall(tid, NUMBERS["gettid"]) == tid
                assert tracee.remote_syscall(victim.pid, NUMBERS["close"], 999) == -errno.EBADF
                tracee.resume()
        assert victim.maps() == before
        victim.finish()


def test_a_program_in_every_thread_at_once(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                states = tracee.threads()
                with Injection(tracee, blob()) as parasite:
                    programs = {tid: _who(tid) for tid in tracee.tids}
                    for _ in range(2):
                        results = parasite.run({tid: program for tid, (program, _, _) in programs.items()})
                        for tid, (_, process, thread) in programs.items():
                            assert results[tid].failed is None
                            assert results[tid].of(process) == victim.pid
                            assert results[tid].of(thread) == tid
                assert tracee.threads() == states
                assert victim.maps() == before
                tracee.resume()
                time.sleep(0.002)
        assert all(int(line) > 0 for line in victim.finish().split())


def test_a_sleep_keeps_its_deadline() -> None:
    start = time.monotonic()
    with running("sleep", "1", ready=False) as victim:
        time.sleep(0.05)
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS // 2):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    parasite.run({victim.pid: _who(victim.pid)[0]})
                tracee.resume()
        victim.finish()
    assert 1 <= time.monotonic() - start < 1.4


def test_two_hundred_threads(victims: Victims) -> None:
    with running(victims("sleepers"), "200") as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:  # more than the default room
                    programs = {tid: _who(tid) for tid in tracee.tids}
                    results = parasite.run({tid: program for tid, (program, _, _) in programs.items()})
                assert [results[tid].of(who[2]) for tid, who in programs.items()] == list(tracee.tids)
                assert len(results) == 200
                tracee.resume()
        assert victim.maps() == before
        victim.finish()


def test_a_failing_program_comes_home(victims: Victims) -> None:
    with running(victims("watchful")) as victim, Tracee(victim.pid) as tracee:
        for _ in range(ROUNDS):
            tracee.stop()
            program = Program("failing")
            program.syscall("close", 999, label="nothing")
            with Injection(tracee, blob()) as parasite:
                results = parasite.run(dict.fromkeys(tracee.tids, program))
            assert all(result.failed is not None and result.failed[1] == -errno.EBADF for result in results.values())
            tracee.resume()
        victim.finish()


def test_what_is_done_meanwhile_may_fail(victims: Victims) -> None:
    """The threads are home again all the same."""
    done: list[int] = []

    def meanwhile() -> None:
        raise KeyError("meanwhile")

    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                states = tracee.threads()
                program = Program("number")
                program.syscall("gettid", label="number")
                done.clear()
                with Injection(tracee, blob()) as parasite:
                    parasite.run(dict.fromkeys(tracee.tids, program), meanwhile=lambda: done.append(1))
                    with pytest.raises(KeyError):
                        parasite.run(dict.fromkeys(tracee.tids, program), meanwhile=meanwhile)
                assert done == [1] and tracee.threads() == states
                tracee.resume()
        assert victim.maps() == before
        victim.finish()


def test_a_crashing_program_comes_home(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                states = tracee.threads()
                program = Program("crashing")
                program.op(OpKind.COPY, 0, 0, 8, label="to nowhere")
                with pytest.raises(ParasiteFailed, match="SIGSEGV"), Injection(tracee, blob()) as parasite:
                    parasite.run(dict.fromkeys(tracee.tids, program))
                assert tracee.threads() == states
                tracee.resume()
        assert victim.maps() == before
        victim.finish()


def test_a_program_that_hangs_is_called_back(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            program = Program("hanging")
            program.syscall("pause", label="for ever")
            with pytest.raises(ParasiteFailed, match="did not finish"), Injection(tracee, blob()) as parasite:
                parasite.run(dict.fromkeys(tracee.tids, program), timeout=0.05)
        assert victim.maps() == before
        victim.finish()


def test_a_stopped_process_stays_stopped(victims: Victims) -> None:
    with running(victims("watchful")) as victim:
        os.kill(victim.pid, signal.SIGSTOP)
        os.waitpid(victim.pid, os.WUNTRACED)
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    parasite.run({tid: _who(tid)[0] for tid in tracee.tids})
                tracee.resume()
                assert victim.is_stopped()
        os.kill(victim.pid, signal.SIGCONT)
        victim.finish()


def test_stopped_and_continued_in_the_middle(victims: Victims) -> None:
    """SIGSTOP and SIGCONT from elsewhere while the parasite runs: none of its business, and the last one counts."""
    with running(victims("watchful")) as victim, Tracee(victim.pid) as tracee:
        stopping = threading.Event()

        def disturb() -> None:
            while not stopping.is_set():
                os.kill(victim.pid, signal.SIGSTOP)
                time.sleep(0.0003)
                os.kill(victim.pid, signal.SIGCONT)
                os.kill(victim.pid, signal.SIGWINCH)
                os.kill(victim.pid, signal.SIGURG)
                time.sleep(0.0003)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for _ in range(ROUNDS):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    results = parasite.run({tid: _who(tid)[0] for tid in tracee.tids})
                    assert all(result.failed is None for result in results.values())
                tracee.resume()
        finally:
            stopping.set()
            thread.join()
        victim.finish()


def test_no_signal_is_lost(victims: Victims) -> None:
    sent = 0
    with running(victims("queued")) as victim, Tracee(victim.pid) as tracee:
        stopping = threading.Event()

        def storm() -> None:
            nonlocal sent
            while not stopping.is_set():
                sent += victim.queue(signal.SIGRTMIN, sent)
                time.sleep(0.0001)

        thread = threading.Thread(target=storm)
        thread.start()
        try:
            for _ in range(ROUNDS):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    parasite.run({tid: _who(tid)[0] for tid in tracee.tids})
                tracee.resume()
                time.sleep(0.001)
        finally:
            stopping.set()
            thread.join()
        os.kill(victim.pid, signal.SIGTERM)
        assert int(victim.finish()) == sent > ROUNDS


def test_a_task_that_catches_every_signal(victims: Victims) -> None:
    with running(victims("handlers")) as victim:
        before = victim.maps()
        assert Dispositions.read(victim.pid).marker(0) == 0
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                states = tracee.threads()
                with Injection(tracee, blob()) as parasite:
                    program, process, _ = _who(victim.pid)
                    assert parasite.run({victim.pid: program})[victim.pid].of(process) == victim.pid
                assert tracee.threads() == states
                tracee.resume()
                time.sleep(0.002)
        assert victim.maps() == before
        victim.finish()


def test_a_filter_is_suspended_meanwhile(victims: Victims) -> None:
    with running(victims("filtered")) as victim:
        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    program, process, _ = _who(victim.pid)
                    assert parasite.run({victim.pid: program})[victim.pid].of(process) == victim.pid
                tracee.resume()
        assert victim.status("Seccomp") == "2"
        victim.finish()


def test_a_filter_that_may_not_be_suspended_is_refused(victims: Victims) -> None:
    script = (
        "import sys\nfrom migrate.engine.tracee.tree import *\n"
        "with Tracee(int(sys.argv[1])) as tracee:\n    tracee.stop()\n"
        "    try:\n        tracee.remote_syscall(tracee.pid, 39)\n    except Refused as error:\n        print(error)\n"
    )
    with running(victims("filtered")) as victim:
        command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script]
        said = subprocess.run([*command, str(victim.pid)], capture_output=True, text=True)
        assert "it is under seccomp" in said.stdout, said.stderr
        victim.finish()


def test_a_restartable_sequence_is_aborted(victims: Victims) -> None:
    with running(victims("restartable")) as victim:

        def aborts() -> int:
            victim.input.write("\n")
            victim.input.flush()
            return int(victim.out.readline())

        with Tracee(victim.pid) as tracee:
            for _ in range(ROUNDS):
                before = aborts()
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    parasite.run({tid: _who(tid)[0] for tid in tracee.tids})
                tracee.resume()
                deadline = time.monotonic() + 2
                while aborts() == before:  # it would spin for ever, in a sequence that nothing aborts any more
                    assert time.monotonic() < deadline, "not aborted"
        victim.finish()


def test_a_task_with_little_memory_left(victims: Victims) -> None:
    """What is put in must not need more of the task than an address range."""
    with running("bash", "-c", "ulimit -v $((64 * 1024)); echo ready; read line || exit 0") as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            tracee.stop()
            with Injection(tracee, blob()) as parasite:
                program, process, _ = _who(victim.pid)
                assert parasite.run({victim.pid: program})[victim.pid].of(process) == victim.pid
        assert victim.maps() == before
        victim.finish()


def test_a_last_page_of_code_that_is_full_is_no_pad() -> None:
    """What is mapped behind it may be zeros, and is no code."""

    class Full:
        def read(self, address: RemoteAddress, size: int) -> bytes:
            return b"\x90" * (size - 32) + bytes(32)

    pad = Pad(os.getpid(), cast(Memory, Full()), cast(Registrations, None), lambda: [])
    (code,) = maps("00400000-00401000 r-xp 00000000 00:00 0 /usr/bin/full\n")
    assert pad._behind(code) is None


def test_the_pad_is_clean_again(victims: Victims) -> None:
    with running(victims("sleepers"), "2") as victim, Tracee(victim.pid) as tracee:
        tracee.stop()
        vdso = next(line for line in Path(f"/proc/{victim.pid}/maps").read_text().splitlines() if "[vdso]" in line)
        start, end = (int(part, 16) for part in vdso.split()[0].split("-"))
        with open(f"/proc/{victim.pid}/mem", "rb") as memory:
            memory.seek(start)
            before = memory.read(end - start)
            tracee.remote_syscall(victim.pid, NUMBERS["getpid"])
            memory.seek(start)
            assert memory.read(end - start) == before
        tracee.resume()
        victim.finish()


def test_without_a_vdso_other_code_gives_the_room(victims: Victims, monkeypatch: pytest.MonkeyPatch) -> None:
    every = Pad._candidates

    def behind_files(pad: Pad) -> Iterator[RemoteAddress]:
        mapped = maps(Path(f"/proc/{pad.pid}/maps").read_text())
        vdso = next(mapping for mapping in mapped if mapping.path == "[vdso]")
        return (place for place in every(pad) if not vdso.start <= place < vdso.end)

    monkeypatch.setattr(Pad, "_candidates", behind_files)
    with running(victims("watchful")) as victim:
        before = victim.maps()
        with Tracee(victim.pid) as tracee:
            for _ in range(10):
                tracee.stop()
                with Injection(tracee, blob()) as parasite:
                    assert all(
                        result.failed is None
                        for result in parasite.run({tid: _who(tid)[0] for tid in tracee.tids}).values()
                    )
                tracee.resume()
        assert victim.maps() == before
        victim.finish()


def test_without_a_vdso_nothing_is_left_but_a_copy_that_is_known(victims: Victims) -> None:
    """The first call is made from behind other code then, that of a file: the page becomes a copy, of the same."""
    with running(victims("meddles"), "none") as victim, Tracee(victim.pid) as tracee:
        tracee.stop()
        assert not tracee.pad.copies()
        assert tracee.remote_syscall(victim.pid, NUMBERS["getpid"]) == victim.pid
        (page,) = tracee.pad.copies()
        with open(f"/proc/{victim.pid}/maps") as file:
            (mapping,) = [m for m in maps(file.read()) if m.start <= page < m.end]
        with open(mapping.path, "rb") as file:
            file.seek(page - mapping.start + mapping.offset)
            content = file.read(PAGE).ljust(PAGE, b"\0")
        assert tracee.memory.read(RemoteAddress(page), PAGE) == content
        # What the task, or a debugger, changes in it is not taken for ours.
        tracee.memory.force_write(RemoteAddress(page + PAGE - 8), b"\xcc")
        assert not tracee.pad.copies()
