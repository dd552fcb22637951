"""After a move, from outside: one copy, whole, and nothing else; and what is told of it is true."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agents import journal, settling
from agents.journal import DESTINATION, SOURCE
from tests import observe
from tests.chaos.catalogue import Node
from tests.chaos.trip import Broken
from tests.hosts import Host
from tests.migration.scene import left_in, mounts, states
from tests.tasks import PATIENCE, status_field

_SOON = 10.0  # seconds for what need not wait for anybody
_MOVING = (r"fd \d+ pos",)
_FLOCK = struct.Struct("hhlli4x")  # struct flock, fcntl(2)
_UFFD = {"um", "uw", "ui"}  # VmFlags of areas registered with a userfaultfd, proc_pid_smaps(5)


def eventually(what: str, wrong: Callable[[], object], seconds: float = _SOON) -> None:
    """Until nothing is wrong; else it is broken, and says what was at last."""
    end = time.monotonic() + seconds * PATIENCE
    while found := wrong():
        if time.monotonic() > end:
            raise Broken(f"{what}: {found}")
        time.sleep(0.005)


def copies(host: Host, name: str) -> list[int]:
    """Our numbers of the processes of that name on a host, whatever their state; zombies have ended."""
    return [
        pid
        for pid in host.outer_pids()
        if " ".join(status_field(pid, "Name")) == name and status_field(pid, "State")[:1] not in ([], ["Z"])
    ]


@dataclass
class Counted:
    """The file that the process appends to, as far as it was looked at."""

    path: Path
    lines: int = 0
    rounds: int = 0
    _at: int = 0

    def read(self) -> None:
        """Broken where a line is missing or there twice."""
        with self.path.open("rb") as file:
            file.seek(self._at)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        self._at += len(content)
        for line in content.splitlines():
            words = line.split()
            in_order = len(words) == 2 and words[0] == b"%d" % self.lines and words[1].isdigit()
            if not in_order or int(words[1]) < self.rounds:
                raise Broken(f"{line!r} after {self.lines} lines and {self.rounds} rounds")
            self.lines += 1
            self.rounds = int(words[1])

    def goes_on(self) -> None:
        """Broken unless it counts, and goes on finding all in order. A round that began before is not one."""
        self.read()
        lines, rounds = self.lines, self.rounds

        def stuck() -> str:
            self.read()
            done = self.lines > lines + 1 and self.rounds > rounds + 1
            return "" if done else f"{self.lines - lines} lines and {self.rounds - rounds} rounds"

        eventually("the process does not go on", stuck)


@dataclass
class Usual:
    """How a host looks when nothing is moved."""

    node: Node
    ours: set[int]  # processes that are always there
    mounted: str = ""
    files: dict[str, set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mounted, self.files = mounts(self.node.host), self._files()

    def _files(self) -> dict[str, set[str]]:
        root = Path(f"/proc/{self.node.host.init}/root")
        found = {place: set(map(str, (root / place).rglob("*"))) for place in ("run", "dev/shm")}
        found["state"] = {name for name in self.node.journals.files() if not _is_journal(name)}
        for number, disk in enumerate(self.node.disks):
            found[f"disk {number}"] = {name for name in disk.files() if not name.startswith("migrate/")}
        return found

    def left(self, copy: int | None) -> str:
        """What is there besides, but for the process and, in a PID namespace of its own, that one's pid 1."""
        allowed = set(self.ours)
        if copy is not None:
            allowed.add(copy)
            if len(status_field(copy, "NSpid")) > 2:
                allowed |= {int(word) for word in status_field(copy, "PPid")}
        try:
            allowed.add(self.node.listener)
        except LookupError:
            return "sshd is not back"
        found = [f"process {who(pid)}" for pid in self.node.host.outer_pids() if pid not in allowed]
        if (now := mounts(self.node.host)) != self.mounted:
            found.append(f"mounts: {now}")
        for place, names in self._files().items():
            found += [f"file {name} in {place}" for name in sorted(names ^ self.files.get(place, set()))]
        return f"on {self.node.host.name}: {'; '.join(found)}" if found else ""


def _is_journal(name: str) -> bool:
    directory, _, file = name.rpartition("/")
    return directory == "migrate/journal" and file.endswith((f".{SOURCE}", f".{DESTINATION}")) and file[0] != "."


def who(pid: int) -> str:
    """A process in words."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:80]
    except (FileNotFoundError, ProcessLookupError):
        words = ""
    return f"{pid} {' '.join(status_field(pid, 'Name'))} ({words.strip()}) {' '.join(status_field(pid, 'State'))}"


@dataclass
class Whole:
    """The process as it was in the beginning, which it stays."""

    directory: Path
    before: observe.Seen

    def check(self, outer: int) -> None:
        """It runs, nobody holds it, nothing of ours is in it, it has its locks, and looks as ever."""
        eventually("it is traced", lambda: status_field(outer, "TracerPid") != ["0"])
        eventually("it is stopped", lambda: states(outer) & {"T", "t"})
        if areas := left_in(outer):
            raise Broken(f"a parasite is left in it: {areas}")
        if flags := _registered(outer):
            raise Broken(f"a userfaultfd is registered: {flags}")
        # What a thread can be seen in only while it sleeps.
        eventually("it is not what it was", lambda: observe.compare(self.before, observe.snapshot(outer), _MOVING), 2)
        if not self._locked():
            raise Broken("its locks are gone")
        if error := (self.directory / "err").read_text():
            raise Broken(f"it complains: {error}")

    def _locked(self) -> bool:
        with (self.directory / "lock").open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return False
            except BlockingIOError:
                asked = fcntl.fcntl(file, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 5, 7, 0))
                return bool(_FLOCK.unpack(asked)[0] == fcntl.F_WRLCK)


def _registered(outer: int) -> list[str]:
    lines = Path(f"/proc/{outer}/smaps").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith("VmFlags:") and _UFFD & set(line.split())]


def truthful(told: list[dict[str, object]], role: str, moved: bool) -> str:
    """What is wrong with what a host's journals say of one move, which may have taken several attempts."""
    own = [each for each in told if each["role"] == role]
    outcomes = sorted(str(each["outcome"]) for each in own)
    if moved and not own:
        return f"no journal of a {role}, and it has moved"
    expected = sorted([settling.MOVED if moved else settling.ROLLED_BACK] + [settling.ROLLED_BACK] * (len(own) - 1))
    return "" if not own or outcomes == expected else f"{role}: {outcomes}, where it should be {expected}: {own}"


def released(node: Node) -> bool:
    """Whether the journal of a destination proves that the process was let go there."""
    return node.states()[-1:] == [journal.RELEASED]
