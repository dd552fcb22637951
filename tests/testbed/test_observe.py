"""tests/observe.py sees what changed and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Host, Pair
from tests.observe import Seen, compare, snapshot
from tests.tasks import Task, wait_until

# Says "ready", then does one thing for each line that it reads, and says "done".
SUBJECT = """
import ctypes, fcntl, mmap, os, resource, select, signal, sys, threading, time
libc = ctypes.CDLL(None)
reader, writer = os.pipe()
poll = select.epoll(); poll.register(reader, select.EPOLLIN)
memory = mmap.mmap(-1, 1 << 20)
file = open(sys.argv[1], "r+b", buffering=0)
twin = os.dup(file.fileno())
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", file.fileno(), twin, reader, writer, flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Subject:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout
        words = process.stdout.readline().split()
        assert words[0] == "ready"
        self.file, self.twin, self.reader, self.writer = map(int, words[1:])

    def do(self, statement: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def see(self) -> Seen:
        return snapshot(self.process.pid)


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[Subject]:
    file = tmp_path / "file"
    file.write_bytes(bytes(100))
    # malloc is held to one arena and no thresholds, so that running a statement maps nothing by itself
    environment = {"PATH": os.environ["PATH"], "MALLOC_ARENA_MAX": "1", "MALLOC_TOP_PAD_": "1000000"}
    command = [sys.executable, "-S", "-E", "-c", SUBJECT, str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        yield Subject(process)
        process.kill()


def differences(subject: Subject, statement: str, *ignore: str) -> list[str]:
    subject.do("pass")
    before = subject.see()
    subject.do(statement)
    return compare(before, subject.see(), ignore)


def test_nothing_changed(subject: Subject) -> None:
    assert differences(subject, "pass") == []
    before = snapshot(subject.process.pid, contents=True)
    assert compare(before, snapshot(subject.process.pid, contents=True)) == []
    assert any(key.startswith("contents of ") for key in before)


@pytest.mark.parametrize(("statement", "expected"), [
    ("file.seek(7)", ["fd {file} pos: '0' became '7'", "fd {twin} pos: '0' became '7'"]),
    ("fcntl.fcntl(file, fcntl.F_SETFD, 0)", ["fd {file} flags: '02100002' became '0100002'"]),
    ("os.close(twin)", ["fd {twin} flags: gone, ", "fd {twin} ino: gone, ", "fd {twin} link: gone, ",
        "fd {twin} pos: gone, ", "fd {twin} shares its offset with: gone, was '{file}'"]),
    ("os.umask(0o77)", ["status Umask: '0022' became '0077'"]),
    ("os.chdir('/usr')", ["link cwd: "]),
    ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", ["status SigIgn: "]),
    ("os.kill(os.getpid(), signal.SIGUSR2)", ["status ShdPnd: "]),
    ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", ["thread {pid} SigBlk: "]),
    ("os.nice(3)", ["thread {pid} nice: '0' became '3'"]),
    ("os.sched_setaffinity(0, {{0}})", ["thread {pid} Cpus_allowed_list: ", "thread {pid} affinity: "]),
    ("libc.prctl(29, 123456)", ["thread {pid} timer slack: '50000' became '123456'"]),
    ("libc.prctl(15, b'other')", ["thread {pid} comm: "]),
    ("libc.prctl(38, 1, 0, 0, 0)", ["thread {pid} NoNewPrivs: '0' became '1'"]),
    ("libc.personality(0x40000)", ["personality: "]),
    ("resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", ["limits: "]),
    ("memory.madvise(mmap.MADV_DONTDUMP)", ["flags of "]),
    ("poll.modify(reader, select.EPOLLIN | select.EPOLLET)", ["fd 5 tfd {reader}: "]),
])
def test_one_change_is_seen_and_nothing_else(subject: Subject, statement: str, expected: list[str]) -> None:
    names = {"pid": subject.process.pid, **{name: getattr(subject, name) for name in ("file", "twin", "reader")}}
    # a statement may touch the interpreter's heap, which splits and merges nothing of what is compared here
    found = differences(subject, statement.replace("{{", "{").replace("}}", "}"))
    expected = [line.format(**names) for line in expected]
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_memory_contents(subject: Subject) -> None:
    before = snapshot(subject.process.pid, contents=True)
    subject.do("memory[5000] = 1")
    after = snapshot(subject.process.pid, contents=True)
    changed = [line for line in compare(before, after) if line.startswith("contents of ")]
    assert changed
    assert compare(before, after, ["contents of .*"]) == []


def test_mapping_gone(subject: Subject) -> None:
    found = differences(subject, "memory.close()", "status Vm.*")
    assert found and all(line.startswith(("maps", "flags of", "policy of")) for line in found)


def test_stopped(subject: Subject) -> None:
    before = subject.see()
    subject.process.send_signal(signal.SIGSTOP)
    os.waitpid(subject.process.pid, os.WUNTRACED)
    assert compare(before, subject.see()) == ["state: 'not stopped' became 'stopped'"]
    subject.process.send_signal(signal.SIGCONT)


def asleep(host: Host, *prefix: str) -> Task:
    """A process that has been started and loaded all it needs."""
    task = host.spawn([*prefix, "sleep", "1000"])
    wait_until("asleep", lambda: "nanosleep" in Path(f"/proc/{task.outer}/wchan").read_text())
    return task


def test_numbers_are_the_hosts_own(two_hosts: Pair) -> None:
    task = asleep(two_hosts.a)
    seen = snapshot(task.outer)
    assert seen["status NStgid"] == seen["status NSsid"] == str(task.pid)
    assert f"thread {task.pid} comm" in seen and seen["link exe"].endswith("/sleep")
    assert f"thread {task.outer} comm" not in seen


def test_two_like_processes_differ_only_in_their_numbers(two_hosts: Pair) -> None:
    # without randomisation the addresses are the same, so this is what a move between two hosts has to look like
    first, second = asleep(two_hosts.a, "setarch", "-R"), asleep(two_hosts.b, "setarch", "-R")
    ignore = [r"environ", r"auxv", r"stat (arg|env|start_st).*", r"status NS.*", r"thread .*", r"policy of .*"]
    assert compare(snapshot(first.outer), snapshot(second.outer), ignore) == []


def test_words() -> None:
    found = compare({"a": "1", "b": "2"}, {"b": "3", "c": "4"})
    assert found == ["a: gone, was '1'", "b: '2' became '3'", "c: new, '4'"]
    assert compare({"limits": "one 1\ntwo 2"}, {"limits": "one 1\ntwo 3"}) == ["limits: 'two 2' became 'two 3'"]
    assert compare({"fd 3 pos": "1"}, {"fd 3 pos": "2"}, [r"fd \d+ pos"]) == []
