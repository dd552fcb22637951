"""Threads that do nothing but call the vDSO are stopped outside of it, and notice nothing."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from migrate.engine.dump import Dumper
from migrate.engine.kernel.maps import Mapping, maps
from migrate.engine.kernel.proc import Proc
from migrate.engine.tracee.leaving import Code, Stacks, leave
from migrate.engine.tracee.memory import RemoteAddress
from migrate.engine.tracee.sigframe import Mappings
from migrate.engine.tracee.tree import Tracee
from migrate.engine.vdso import VDSO, Unwinder, areas
from migrate.errors import Problem, Refused
from tests.kernel.test_tracee_killed import die_after
from tests.victims import Victims

TIMES = 60
PATIENCE = 5.0  # seconds; what a product may take is not the matter here


@dataclass
class Insider:
    """The victim, traced."""

    process: subprocess.Popen[str]
    tracee: Tracee
    mappings: list[Mapping]
    code: Code

    @property
    def stacks(self) -> Stacks:
        return Stacks(Mappings([(m.start, m.end) for m in self.mappings]), nodefer=False)

    def leave(self, tracee: Tracee, seconds: float) -> tuple[list[Problem], bool]:
        """All threads; its mappings are always the same. Whether any of them has run, too."""
        before = tracee.look()
        problems, seen = leave(tracee, before, self.code, self.stacks, lambda: self.stacks, seconds)
        return problems, seen is not before

    def looking_back(self) -> list[str]:
        """What of the code is still on the stacks, above the stack pointers: frames, found the plain way."""
        found = []
        for tid, registers in self.tracee.all_registers().items():
            if registers.rip in self.code:
                found.append(f"{tid} is at {registers.rip:x}")
            end = next(m.end for m in self.mappings if m.start <= registers.rsp < m.end)
            size = (end - registers.rsp) // 8 * 8
            words = struct.unpack(f"<{size // 8}Q", self.tracee.memory.read(RemoteAddress(registers.rsp), size))
            # rip, eflags, and the selectors, in struct sigcontext; rsp is ahead of them, and all of it is to be valid
            for at in range(1, len(words) - 2):
                selected = words[at + 2] == 0x2B_0000_0000_0033 and registers.rsp < words[at - 1] < end
                if selected and words[at] in self.code and words[at - 1] > registers.rsp + at * 8 + 600:
                    if self._alive(tid, registers.rsp + at * 8):
                        found.append(f"{tid} has a frame for {words[at]:x}")
        return found

    def _alive(self, tid: int, rip_at: int) -> bool:
        """By its mask: the handlers of this victim block their own signal."""
        blocked = int(
            next(
                line
                for line in Path(f"/proc/{tid}/status").read_text().splitlines()
                if line.startswith("SigBlk:")
            ).split()[1],
            16,
        )
        (saved,) = struct.unpack("<Q", self.tracee.memory.read(RemoteAddress(rip_at + 0x80), 8))
        return saved != blocked and not saved & ~blocked


@contextmanager
def insider(victims: Victims, go: Path, *args: str, name: str = "insider") -> Iterator[Insider]:
    process = subprocess.Popen(
        [victims(name), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"VICTIM_GO": str(go)},
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        mapped = maps(Path(f"/proc/{process.pid}/maps").read_text())
        with Tracee(process.pid) as tracee:
            (area,) = [area for area in areas(mapped) if area.name == "[vdso]"]
            vdso = VDSO.read((area,), tracee.memory.read(RemoteAddress(area.start), area.size))
            unwinder = Unwinder(vdso)

            def slot(rip: int, rsp: int, rbp: int, word: Callable[[int], int]) -> int | None:
                return unwinder.slot(area.start, rip, rsp, rbp, lambda at: area.start <= at < area.end, word)

            entries = frozenset(area.start + function.offset for function in vdso.functions)
            tails = ((area.start + len(vdso.image), area.end),)
            yield Insider(process, tracee, mapped, Code(((area.start, area.end),), entries, slot, tails))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("microseconds", ["0", "2000", "300"])
def test_out_of_it_and_no_way_back(microseconds: str, victims: Victims, tmp_path: Path) -> None:
    moved = 0
    with insider(victims, tmp_path / "go", "8", microseconds) as victim:
        for _ in range(TIMES):
            victim.tracee.stop()
            problems, ran = victim.leave(victim.tracee, PATIENCE)
            assert not problems and not victim.looking_back()
            moved += ran
            victim.tracee.resume()
            time.sleep(0.002)
        assert moved > TIMES // 2
        maps_now = Path(f"/proc/{victim.process.pid}/maps").read_text()
        assert maps(maps_now) == victim.mappings
        (tmp_path / "go").touch()
        out, errors = victim.process.communicate(timeout=60)
        assert out.endswith("pass\n") and not errors, (out, errors)


@pytest.mark.parametrize("depth", [1, 2])
def test_out_of_handlers_that_have_interrupted_it_for_sure(depth: int, victims: Victims, tmp_path: Path) -> None:
    with insider(victims, tmp_path / "go", str(depth), name="nested") as victim:
        for _ in range(TIMES):
            victim.tracee.stop()
            while len(victim.looking_back()) < depth:  # it is on its way from the last time
                victim.tracee.resume()
                time.sleep(0.001)
                victim.tracee.stop()
            problems, ran = victim.leave(victim.tracee, PATIENCE)
            assert not problems and ran and not victim.looking_back()
            victim.tracee.resume()
        (tmp_path / "go").touch()
        out, errors = victim.process.communicate(timeout=60)
        assert out.endswith("pass\n") and not errors, (out, errors)
        assert int(out.split()[0]) >= TIMES


def test_when_there_is_no_time_nothing_is_changed(victims: Victims, tmp_path: Path) -> None:
    """All are where they were, and go on from there."""
    with insider(victims, tmp_path / "go", "4", "1000") as victim:
        refused = 0
        for _ in range(TIMES):
            victim.tracee.stop()
            problems, _ = victim.leave(victim.tracee, 0.0)
            refused += bool(problems)
            assert all("vDSO" in problem.what for problem in problems)
            victim.tracee.resume()
            time.sleep(0.002)
        assert refused > TIMES // 2
        (tmp_path / "go").touch()
        out, errors = victim.process.communicate(timeout=60)
        assert out.endswith("pass\n") and not errors, (out, errors)


def test_its_tracer_is_killed_after_any_request(victims: Victims, tmp_path: Path) -> None:
    """What is left in the process brings it home. And it is in nobody's way: when all threads are home, it is taken
    out."""
    killed = 0
    with insider(victims, tmp_path / "go", "8", "1000") as victim:
        for requests in range(1, 2 * TIMES):
            child = os.fork()
            if not child:
                die_after(requests)
                os._exit(_come_and_leave(victim))
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert victim.process.poll() is None, (requests, victim.process.communicate())
            assert status in (-signal.SIGKILL, 0, 2), "the tracer has failed"
            killed += status == -signal.SIGKILL
        assert killed > TIMES // 2
        with Tracee(victim.process.pid) as tracee:
            for _ in range(TIMES):
                tracee.stop()
                problems, _ = victim.leave(tracee, PATIENCE)
                if not problems:
                    break
                tracee.resume()  # somebody is on his way home
                time.sleep(0.002)
            assert not problems
            ((start, end),) = victim.code.tails
            assert not any(tracee.memory.read(RemoteAddress(start), end - start))
        (tmp_path / "go").touch()
        out, errors = victim.process.communicate(timeout=60)
        assert out.endswith("pass\n") and not errors, (out, errors)


def _come_and_leave(victim: Insider) -> int:
    """2: some thread is still on its way home from the last time."""
    try:
        with Tracee(victim.process.pid) as tracee:
            tracee.stop()
            problems, _ = victim.leave(tracee, PATIENCE)
            return 2 if problems else 0
    except BaseException:
        traceback.print_exc()
        return 1


def test_who_does_not_come_out_is_refused_and_finds_his_way(victims: Victims, tmp_path: Path) -> None:
    """A handler that has interrupted a function of it and stays."""
    env = {"VICTIM_GO": str(tmp_path / "go")}
    pipe = subprocess.PIPE
    with subprocess.Popen([victims("trapped")], stdout=pipe, stderr=pipe, text=True, env=env) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            before = Path(f"/proc/{process.pid}/maps").read_text()
            with Proc(process.pid) as proc:
                dumper = Dumper(proc, Tracee(process.pid))
                dumper.look()
                with pytest.raises(Refused, match="in a signal handler that has interrupted one"):
                    dumper.stop_outside()
                assert Path(f"/proc/{process.pid}/maps").read_text() == before
                dumper.close()
            (tmp_path / "go").touch()
            assert process.communicate(timeout=20) == ("pass\n", "")
        finally:
            process.kill()
