"""What a migration must not leave open: sockets, files, code that can be written; and what it must not give away."""

from __future__ import annotations

import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest

from tests.hosts import Host
from tests.migration.journey import Journeys
from tests.migration.scene import POINTS, Stage
from tests.tasks import status_field, wait_until

RIGHTS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
USERS = {
    "user": ("--reuid=4201", "--regid=4201", "--clear-groups"),
    "groups": ("--reuid=4201", "--regid=4201", "--groups=4202,4203"),
    "other effective user": ("--ruid=4201", "--euid=4204", "--regid=4201", "--clear-groups"),
    "no new privileges": ("--reuid=4201", "--regid=4201", "--clear-groups", "--no-new-privs"),
    "fewer capabilities": ("--bounding-set=-all,+chown,+kill", "--inh-caps=-all,+chown"),
    "ambient": (
        *("--reuid=4201", "--regid=4201", "--clear-groups"),
        *("--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"),
    ),
    "root without its magic": ("--securebits=+noroot,+noroot_locked", "--bounding-set=-all", "--inh-caps=-all"),
}
MARK = "quite-a-secret-"
SECRET = """
import os, sys, time
kept = bytearray(os.environ["PASSWORD"].encode()) * 3000
print("ready", flush=True)
while True:
    kept[0] ^= 1
    time.sleep(0.01)
"""
CODE = """
import mmap, time
kept = mmap.mmap(-1, 8192, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
kept[0] = 0xC3
print("ready", flush=True)
time.sleep(1000)
"""


def rights(outer: int) -> dict[str, object]:
    """Of a process, as others see them; and who owns it, which PR_SET_DUMPABLE decides."""
    found: dict[str, object] = {name: status_field(outer, name) for name in RIGHTS}
    return {**found, "owner": os.stat(f"/proc/{outer}/mem").st_uid}


@pytest.mark.parametrize("name", USERS)
def test_rights_are_what_they_were(journeys: Journeys, name: str) -> None:
    journey = journeys.start("numbered", wrap=("setpriv", *USERS[name]))
    before = rights(journey.task.outer)
    journey.move()
    assert rights(journey.task.outer) == before
    journey.tell()
    journey.verdict()


def executable(outer: int) -> list[tuple[str, str]]:
    """Mappings that can be written and executed, by place and permissions."""
    lines = [line.split() for line in Path(f"/proc/{outer}/maps").read_text().splitlines()]
    return [(words[0], words[1]) for words in lines if "w" in words[1] and "x" in words[1]]


def test_no_code_that_can_be_written(journeys: Journeys, stage: Stage) -> None:
    """The restorer's memory is. It is gone before the first instruction of the process; and what the process has of
    that kind itself, it keeps."""
    journey = journeys.run("code", [sys.executable, "-c", CODE])
    wait_until("ready", lambda: "ready" in journey.out)
    own = executable(journey.task.outer)
    assert len(own) == 1
    journey.move()
    assert executable(journey.task.outer) == own
    assert not executable(stage.journey.task.outer)
    hold, run = stage.hold("restored")  # all is done but the commit
    assert not executable(stage.restoree)
    hold.release()
    run.wait()
    stage.journey.task = stage.pair.b.adopt(stage.journey.task.pid)
    assert not executable(stage.journey.task.outer)


def listening(host: Host) -> set[str]:
    """Sockets that somebody else could talk to."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "unix", "packet", "netlink"):
        lines = Path(f"/proc/{host.init}/net/{name}").read_text().splitlines()[1:]
        for line in lines:
            words = line.split()
            if name.startswith("tcp") and words[3] != "0A":  # TCP_LISTEN, proc_pid_net(5)
                continue
            if name == "unix" and not int(words[3], 16) & 0x10000:  # __SO_ACCEPTCON
                continue
            # where a prepared migration is asked about: in a directory that is ours alone, see agents/settling.py
            if name == "unix" and re.fullmatch(r"/proc/self/fd/\d+/[\w-]+\.socket", words[-1]):
                continue
            if name != "netlink":
                found.add(f"{name} {words[1] if name != 'unix' else words[-1]}")
    return found


def private(directory: Path) -> list[Path]:
    """All that lies in it, after a look that others cannot."""
    found = [path for path in directory.rglob("migrate") if path.is_dir()]
    files = []
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
        for file in path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) in ((0o700,) if file.is_dir() else (0o600,)), file
            files.append(file)
    return files


def test_nothing_listens_and_files_are_ours_alone(stage: Stage) -> None:
    before = [listening(host) for host in (stage.pair.a, stage.pair.b)]
    for point in POINTS:
        hold, run = stage.hold(point)
        assert [listening(host) for host in (stage.pair.a, stage.pair.b)] == before, point
        assert private(stage.pair.b.directory), "not even the cached agent"
        run.signal(signal.SIGINT)
        run.wait()
        hold.release()
        stage.untouched()


def test_nothing_secret_is_told(journeys: Journeys, stage: Stage) -> None:
    """A password in environment and memory: not in what is said, written, or shown of our processes."""
    word = MARK + os.urandom(8).hex()
    journey = journeys.run("secret", [sys.executable, "-c", SECRET], env={"PASSWORD": word})
    wait_until("ready", lambda: "ready" in journey.out)
    told = []
    log = ("--log", str(journey.directory / "log"))
    for fault in ("restored:fail", "op:20:fail", ""):
        done = stage.launcher.start("-vv", *log, str(journey.task.pid), stage.pair.b.destination, fault=fault).wait()
        assert done.code == (5 if fault else 0), done
        told.append(done.out + done.err)
    journey.task = stage.pair.b.adopt(journey.task.pid)
    held = Path(f"/proc/{journey.task.outer}/environ").read_bytes()
    assert word.encode() in held, "it has not got it itself"
    assert not any(word in text for text in told)
    for text in told:
        found = re.search(r"the log on \S+ is (\S+)", text)
        assert found and Path(found[1]).stat().st_size
    for host in (stage.pair.a, stage.pair.b):
        for path in host.directory.rglob("*"):
            if path.is_file():
                assert word.encode() not in path.read_bytes(), path
    for path in journey.directory.iterdir():
        assert word.encode() not in path.read_bytes(), path


def test_command_lines_tell_nothing(stage: Stage) -> None:
    """Of the agents: neither keys nor where the user keeps them."""
    hold, run = stage.hold("frozen")
    for outer in [*run.agents, stage.agent, stage.overseer]:
        words = Path(f"/proc/{outer}/cmdline").read_bytes()
        assert b"id_ed25519" not in words and not re.search(rb"known_hosts|BEGIN|[Pp]assw", words), words
    run.signal(signal.SIGINT)
    run.wait()
    hold.release()
    stage.untouched()
