"""`migrate dump` and `migrate restore` of processes of this machine that check themselves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.kernel.checkpoints import (
    Job,
    Keep,
    dump,
    keeping,
    migrate,
    reap,
    restore,
    streams,
    until_longer,
    whole_lines,
    without_a_trace,
)
from tests.moves import PROGRAM
from tests.tasks import status_field, wait_until
from tests.victims import HERE, IA32, Victims, check_counter

PAGES = """
import hashlib, os, signal, sys
step, room = 0, bytearray(40 << 20)
for at in range(0, len(room), 4096):
    room[at : at + 8] = at.to_bytes(8, "little")

def tell():
    with open(sys.argv[1] + "~", "w") as file:
        file.write(str(step))
    os.rename(sys.argv[1] + "~", sys.argv[1])

def further(*_):
    global step
    # All that was ever written must be as it was
    for at in range(0, len(room), 4096):
        assert room[at : at + 8] == at.to_bytes(8, "little"), at
        assert room[at + 8] == (step if at < 1 << 20 else 0), (at, step)
    step += 1
    for at in range(0, 1 << 20, 4096):
        room[at + 8] = step
    tell()

signal.signal(signal.SIGUSR1, further)
tell()
while True:
    signal.pause()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Ends what it is given."""
    with keeping() as add:
        yield add


def counting(victims: Victims, log: Path, threads: int = 4, flags: Sequence[str] = ()) -> Job:
    job = Job.start(victims("counter", *flags), str(log), str(threads), "1000")
    until_longer(log)
    return job


@pytest.mark.parametrize("flags", [(), IA32], ids=["x86_64", "ia32"])
def test_to_disk_and_back(victims: Victims, tmp_path: Path, keep: Keep, flags: tuple[str, ...]) -> None:
    """With its number, and no line lost or written twice."""
    log, directory = tmp_path / "log", tmp_path / "checkpoint"
    job = keep(counting(victims, log, flags=flags))
    told = dump(job, directory)
    assert told["ok"] and told["pid"] == job.pid and told["pages"] > 10 and not told["leave_running"]
    assert sorted(path.name for path in directory.iterdir()) == ["image", "manifest", "pages", "sums"]
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in directory.iterdir())
    before = log.read_bytes()
    again, told = restore(directory)
    keep(again)
    assert told["new_pid"] == job.pid and log.read_bytes().startswith(before)
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40


def test_it_runs_on(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """With --leave-running, untouched; and what was dumped can be restored when it is gone, twice."""
    log, directory = tmp_path / "log", tmp_path / "checkpoint"
    job = keep(counting(victims, log))
    maps = Path(f"/proc/{job.pid}/maps").read_text()
    told = dump(job, directory, "--leave-running")
    assert told["leave_running"] and told["frozen_ms"] > 0
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40
    assert Path(f"/proc/{job.pid}/maps").read_text() == maps and status_field(job.pid, "TracerPid") == ["0"]
    job.close()
    _, err = migrate("restore", directory, code=3)
    assert f"{log} has " in err and " in the checkpoint" in err


def test_twice_from_one(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """The second time beside the first, which has its number; and a number that is taken is had in a PID namespace."""
    directory = tmp_path / "checkpoint"
    job = keep(Job.start("sleep", "1000"))
    wait_until("asleep", lambda: status_field(job.pid, "State")[:1] == ["S"])
    dump(job, directory, "--leave-running")
    job.close()
    first, _ = restore(directory)
    keep(first)
    second, told = restore(directory)
    keep(second)
    assert first.pid == job.pid and told["pid"] == job.pid and second.pid != job.pid
    assert status_field(second.pid, "NSpid") == [str(second.pid), str(job.pid)]


def test_a_series(tmp_path: Path, keep: Keep) -> None:
    """Each holds what has changed; any of them can be restored, with what the process knew at that moment."""
    directory, told = tmp_path / "series", tmp_path / "told"
    job = keep(Job.start(sys.executable, "-c", PAGES, str(told)))
    wait_until("ready", told.exists)
    sizes = []
    for number in range(1, 4):
        outcome = dump(job, directory, "--leave-running", "--track")
        assert outcome["directory"] == str(directory / f"{number:04}")
        sizes.append((directory / f"{number:04}" / "pages").stat().st_size)
        job.signal(signal.SIGUSR1)
        wait_until("next", lambda number=number: told.read_text() == str(number))
    assert sizes[0] > 40 << 20 and all(1 << 20 < size < 4 << 20 for size in sizes[1:])
    job.close()
    for number in (2, 1, 3):
        again, _ = restore(directory / f"{number:04}")
        keep(again)
        again.signal(signal.SIGUSR1)
        wait_until("it goes on from there", lambda number=number: told.read_text() == str(number))
        again.close()
    shown = json.loads(subprocess.run([PROGRAM, "show", "--json", directory], capture_output=True, check=True).stdout)
    assert [each["name"] for each in shown["series"]] == ["0001", "0002", "0003"]
    assert shown["ancestors"] == ["0002", "0001"] and shown["processes"][0]["pid"] == job.pid
    # One that is not what it was, or gone, is missed by name.
    (directory / "0001").rename(directory / "away")
    assert f"{directory}/0001: No such file" in migrate("restore", directory, code=5)[1]
    shutil.copytree(directory / "0002", directory / "0001")
    assert f"{directory}/0001 is another checkpoint by now" in migrate("restore", directory, code=5)[1]


def test_a_stream(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    log, stream = tmp_path / "log", tmp_path / "stream"
    job = keep(counting(victims, log))
    with stream.open("wb") as out:
        subprocess.run([PROGRAM, "dump", "--stream", str(job.pid)], stdout=out, check=True)
    job.wait_gone()
    raw, before = stream.read_bytes(), log.read_bytes()
    for damaged, said in (
        (raw[:-1], "cut off in the payload of record"),
        (raw[: len(raw) // 2], "cut off in the payload of record"),
        (raw[:1000], "cut off in the payload of record 0"),
        (raw[:5], "cut off in its head"),
        (raw[:-500] + b"x" + raw[-499:], "its checksum is wrong"),
    ):
        done = subprocess.run([PROGRAM, "restore", "-"], input=damaged, capture_output=True)
        assert done.returncode == 5 and said in done.stderr.decode(), done
    reap()
    assert not Path(f"/proc/{job.pid}/exe").exists() and log.read_bytes() == before
    done = subprocess.run([PROGRAM, "restore", "-"], input=raw, capture_output=True, check=True)
    assert f"as pid {job.pid}:" in done.stdout.decode()
    keep(Job(job.pid))
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40


def test_refused_before_it_is_touched(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    directory = tmp_path / "checkpoint"
    with socket.socket(socket.AF_UNIX) as unbound:
        job = keep(Job.start("sleep", "1000", pass_fds=[unbound.fileno()]))
        wait_until("asleep", lambda: status_field(job.pid, "Name") == ["sleep"])
        told, err = migrate("dump", str(job.pid), directory, code=3)
    assert not told["ok"] and "cannot be dumped; nothing was changed:" in err and "socket" in err
    assert job.alive and without_a_trace(directory)


def test_where_it_cannot_be_written(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """Each is refused, and the process runs on."""
    job = keep(Job.start("sleep", "1000"))
    (tmp_path / "open").mkdir(0o755)
    (tmp_path / "full").mkdir(0o700)
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    for name, said in (
        ("open", "others may look into it"),
        ("full", "is not empty (x)"),
        ("file", "is not a directory"),
        ("none/there", "No such file or directory"),
    ):
        assert said in migrate("dump", str(job.pid), tmp_path / name, code=3)[1]
    assert job.alive


@pytest.mark.parametrize("point", ["preflight", "tracked", "round", "rehearsed", "frozen", "sent"])
@pytest.mark.parametrize("how", ["fail", "signal"])
def test_interrupted(victims: Victims, tmp_path: Path, keep: Keep, point: str, how: str) -> None:
    """It runs on, and there is no checkpoint."""
    log, directory, hold = tmp_path / "log", tmp_path / "checkpoint", tmp_path / "hold"
    job = keep(counting(victims, log))
    if how == "fail":
        _, err = migrate("dump", str(job.pid), directory, code=5, env={**os.environ, "MIGRATE_FAULT": f"{point}:fail"})
        assert f"injected at {point}" in err
    else:
        env = {**os.environ, "MIGRATE_FAULT": f"{point}:hold={hold}"}
        with subprocess.Popen([PROGRAM, "dump", str(job.pid), directory], env=env, stderr=subprocess.PIPE) as command:
            wait_until("there", hold.exists, 30)
            command.send_signal(signal.SIGINT)
            _, err_ = command.communicate(timeout=60)
        assert command.returncode == 130 and b"interrupted: the process runs on" in err_
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40
    assert without_a_trace(directory) and status_field(job.pid, "TracerPid") == ["0"]


@pytest.mark.parametrize("point", ["frozen", "sent", "whole"])
def test_the_command_is_killed(victims: Victims, tmp_path: Path, keep: Keep, point: str) -> None:
    """The process runs on, and what is there is not taken for a checkpoint unless it is one."""
    log, directory = tmp_path / "log", tmp_path / "checkpoint"
    job = keep(counting(victims, log))
    env = {**os.environ, "MIGRATE_FAULT": f"{point}:kill"}
    done = subprocess.run([PROGRAM, "dump", str(job.pid), directory], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40
    if point == "whole":
        shown = subprocess.run([PROGRAM, "show", directory], capture_output=True, check=True, text=True).stdout
        assert f"process {job.pid} (counter" in shown
        return
    _, err = migrate("restore", directory, code=5)
    assert "was never finished" in err
    assert "was never finished" in migrate("dump", str(job.pid), directory, code=3)[1]


@pytest.mark.parametrize("point", ["created", "filled", "restored", "there-prepared", "there-commit"])
def test_a_restore_that_fails_leaves_nothing(victims: Victims, tmp_path: Path, keep: Keep, point: str) -> None:
    log, directory = tmp_path / "log", tmp_path / "checkpoint"
    job = keep(counting(victims, log))
    dump(job, directory)
    before = log.read_bytes()
    action = "kill" if point.startswith("there-") else "fail"
    _, err = migrate("restore", directory, code=5, env={**os.environ, "MIGRATE_FAULT": f"{point}:{action}"})
    reap()
    assert not Path(f"/proc/{job.pid}").exists() and log.read_bytes() == before
    again, _ = restore(directory)
    keep(again)
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 40


def test_a_restore_that_is_interrupted(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    log, directory, hold = tmp_path / "log", tmp_path / "checkpoint", tmp_path / "hold"
    job = keep(counting(victims, log))
    dump(job, directory)
    before, env = log.read_bytes(), {**os.environ, "MIGRATE_FAULT": f"filled:hold={hold}"}
    with subprocess.Popen([PROGRAM, "restore", directory], env=env, stderr=subprocess.PIPE) as command:
        wait_until("there", hold.exists, 30)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    assert command.returncode == 130 and b"interrupted: nothing of it is left" in err
    reap()
    assert not Path(f"/proc/{job.pid}").exists() and log.read_bytes() == before
    told = json.loads(subprocess.run([PROGRAM, "--json", "status"], capture_output=True, check=True).stdout)
    assert [(each["outcome"], each["source"]) for each in told] == [("rolled back", str(directory))]


def test_damage(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """Of any file is found, whatever byte it is, and nothing is left of the process."""
    directory = tmp_path / "checkpoint"
    job = keep(Job.start("sleep", "1000"))
    dump(job, directory)
    for name in ("image", "manifest", "pages", "sums"):
        path = directory / name
        raw = path.read_bytes()
        for damaged in (raw[:-1], raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :]):
            path.write_bytes(damaged)
            assert str(path) in migrate("restore", directory, code=5)[1]
        path.write_bytes(raw)
    reap()
    assert not Path(f"/proc/{job.pid}").exists()
    again, _ = restore(directory)
    keep(again)


ECHO = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: os.write(2, b"told\\n"))
for line in sys.stdin:
    print("heard", line.strip(), flush=True)
    if line.strip() == "end":
        sys.exit(7)
    if line.strip() == "die":
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize(("last", "code"), [("end", 7), ("die", 128 + signal.SIGTERM)])
def test_standard_streams(tmp_path: Path, keep: Keep, last: str, code: int, taken: bool) -> None:
    """Those of the command, its signals, and its exit status; also of one whose number is taken."""
    directory, pipe = tmp_path / "checkpoint", subprocess.PIPE
    job = keep(Job.start(sys.executable, "-c", ECHO, stdin=pipe, stdout=pipe, stderr=pipe))
    assert job.popen is not None
    with job.popen as before:
        stdin, stdout, _ = streams(before)
        stdin.write(b"one\n")
        stdin.flush()
        assert stdout.readline() == b"heard one\n"
        dump(job, directory, "--leave-running")
        if not taken:
            job.signal(signal.SIGKILL)
            before.wait()
        command = [PROGRAM, "restore", "--stdio", str(directory)]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as again:
            stdin, stdout, stderr = streams(again)
            said = b""
            while not said.startswith(b"restored "):
                said = stderr.readline()
                assert said
            stdin.write(b"two\n")
            assert stdout.readline() == b"heard two\n"
            again.send_signal(signal.SIGUSR1)
            assert stderr.readline() == b"told\n"
            stdin.write(last.encode() + b"\n")
            assert again.wait(30) == code
            assert stdout.read() == f"heard {last}\n".encode()
        job.close()


def test_output_goes_to_a_log(tmp_path: Path, keep: Keep) -> None:
    """Where it led to a pipe, and nobody asked for --stdio."""
    directory, pipe = tmp_path / "checkpoint", subprocess.PIPE
    job = keep(Job.start(sys.executable, "-uc", "while 1: print(input())", stdin=pipe, stdout=pipe, stderr=pipe))
    assert job.popen is not None
    with job.popen:
        wait_until("waiting", lambda: status_field(job.pid, "State")[:1] == ["S"])
        dump(job, directory)
        again, told = restore(directory)
        keep(again)
        again.wait_gone()  # its input has come to its end
    log = Path(told["stdio_log"])
    assert log.is_relative_to(tmp_path / "state") and "EOFError" in log.read_text()


def test_nobody_takes_the_stream(victims: Victims, tmp_path: Path, keep: Keep) -> None:
    """Who reads goes away, or takes nothing until the user has had enough: the process runs on."""
    log = tmp_path / "log"
    job = keep(Job.start(sys.executable, str(HERE / "counter.py"), str(log)))  # more than a pipe holds
    until_longer(log)
    command = [PROGRAM, "dump", "--stream", str(job.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as dumping:
        assert dumping.stdout is not None and dumping.stdout.read(100)
        dumping.stdout.close()
        dumping.stdout = None
        assert b"standard output cannot be written: Broken pipe; the process runs on" in dumping.communicate()[1]
    assert dumping.returncode == 5
    until_longer(log)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as dumping:
        assert dumping.stdout is not None and dumping.stdout.read(100)
        dumping.send_signal(signal.SIGINT)
        assert b"interrupted: the process runs on" in dumping.communicate()[1]
    assert dumping.returncode == 130
    until_longer(log)
    assert check_counter(whole_lines(log), 4) > 60


def test_a_page_that_a_debugger_wrote_to(tmp_path: Path, keep: Keep) -> None:
    """In memory that the process itself can only execute."""
    job, directory = keep(Job.start("sleep", "1000")), tmp_path / "checkpoint"
    wait_until("asleep", lambda: status_field(job.pid, "Name") == ["sleep"])
    lines = Path(f"/proc/{job.pid}/maps").read_text().splitlines()
    end = next(int(line.split("-")[1].split()[0], 16) for line in lines if "r-xp" in line and line.endswith("/sleep"))

    def poke(word: bytes | None = None) -> bytes:
        with open(f"/proc/{job.pid}/mem", "r+b" if word else "rb", buffering=0) as memory:
            memory.seek(end - 8)
            if word is None:
                return memory.read(8)
            memory.write(word)
            return word

    poke(b"debugged")
    dump(job, directory)
    job = keep(restore(directory)[0])
    assert poke() == b"debugged"
