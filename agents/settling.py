"""What became of a migration on the destination: asked of the agent that holds it, or else found out from its journal.

The agent holds the lock of the journal while it lives, and listens on a socket beside it. When it is dead nobody will
send the overseer anything any more, and the journal tells how far that came (`release` in migrate/engine/overseer.py):

- up to COMMITTED it ends without having let the process run a single instruction: PTRACE_O_EXITKILL. Only a crash of
  the whole host leaves that open, as what came after COMMITTED may not have reached the disk: then it counts as run.
- RELEASING: between this record and the next one lies the one system call that unties the last thread. Whether it was
  made shows in whether the process lives.
- RELEASED: it lives, whoever dies.

A tree of processes is untied one by one, and an overseer that dies in the middle of that leaves some dead and others
alive; but those stand still (SIGSTOP) until all are untied (`release_all`, there). So what tells is whether all live:
if not, it was not released, and who finds that kills the others before it says so. If all do, it was, and who finds
that lets those go that still stand still. What a SIGCONT leaves behind, such a tree gets to see: it is the only trace,
and takes an overseer that is killed within the last microseconds.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from typing import Any

from agents import journal
from agents.journal import ABORTED, COMMITTED, DESTINATION, RELEASED, RELEASING, Directory, Journal, Record

# Outcomes
MOVED, ROLLED_BACK, IN_DOUBT, UNDER_WAY, PREPARED, UNKNOWN, BROKEN_OFF = (
    *("moved", "rolled back", "in doubt", "under way", "prepared", "unknown", "broken off"),
)
ASK, COMMIT, ABORT = "ask", "commit", "abort"
FORCE_COMMIT, FORCE_ABORT = "force-commit", "force-abort"  # what nobody can tell, the user has decided
PATIENCE = 10.0  # seconds for processes that were killed to be gone
KEPT = 30 * 24 * 3600.0  # seconds that the journal of a migration that has ended is kept
_NAP = 0.01
_WAKING = 0.3  # seconds that those get to stand still which were let go by an overseer that died
_LONGEST = 4096  # bytes of a question or an answer on the socket
_ANSWER = 20.0  # seconds for the agent that holds it to answer
_TICK = 10**9 // os.sysconf("SC_CLK_TCK")  # ns
_PF_EXITING = 0x4  # include/linux/sched.h
_SIGKILL = 1 << 8  # in a mask of signals
_UCRED = struct.Struct("3i")  # pid, uid, gid; unix(7)

LIVES, DYING, GONE = "lives", "dying", "gone"
_SOME = "some live"


def stat_fields(path: str) -> list[str]:
    """Of a stat file in /proc, from the state (field 3) on."""
    with open(path, errors="replace") as file:
        return file.read().rpartition(")")[2].split()


def start_time(pid: int) -> int:
    """When a process was started, in ticks since boot: with its number and the boot_id it is unmistakable. To compare
    with `started`."""
    # /proc shows it by the clock of who reads (fs/proc/array.c, timens_add_boottime_ns()), and who asks for a migration
    # later may be in another time namespace: a shell that has been migrated itself is.
    return int(stat_fields(f"/proc/{pid}/stat")[19]) - _boottime_offset() // _TICK


def started(pid: int, start: int) -> bool:
    """Whether this process is the one that was started then. FileNotFoundError, ProcessLookupError: there is none. Both
    the time and the offset that is taken from it were rounded down to a tick."""
    return abs(start_time(pid) - start) <= 1


def _boottime_offset() -> int:
    """ns that our time namespace adds to the time since boot (time_namespaces(7))."""
    try:
        with open("/proc/self/timens_offsets") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:  # a kernel without them
        return 0
    # "7" is what a namespace made before Linux 5.12 calls it
    return next((int(s) * 10**9 + int(ns) for name, s, ns in lines if name in ("boottime", "7")), 0)


def fate(pid: int, start: int) -> str:
    """Whether a process lives, or has been killed and is not gone yet. A zombie is gone."""
    try:
        if not started(pid, start):
            return GONE
        threads = [_thread_fate(f"/proc/{pid}/task/{tid}") for tid in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    return LIVES if LIVES in threads else DYING if DYING in threads else GONE


def _thread_fate(path: str) -> str:
    try:
        fields = stat_fields(f"{path}/stat")
        if fields[0] in "ZX":
            return GONE
        with open(f"{path}/status") as file:
            pending = next(int(text.split()[1], 16) for text in file if text.startswith("SigPnd:"))
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    return DYING if pending & _SIGKILL or int(fields[6]) & _PF_EXITING else LIVES


def person(pid: int) -> list[int]:
    """What `fate` wants to know of a process."""
    return [pid, start_time(pid)]


def end(people: list[list[int]]) -> None:
    """Kill these, and wait a while until they are gone."""
    for pid, start in people:
        _send(pid, start, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while any(fate(*each) != GONE for each in people) and time.monotonic() < deadline:
        time.sleep(_NAP)


def wake(record: Journal, told: dict[str, Any]) -> None:
    """Let those members of a released tree go whose overseer died before it could. ``told``: by `decide`."""
    facts = _facts(record.records())
    if told["outcome"] != MOVED or not facts.get("others"):
        return
    deadline = time.monotonic() + _WAKING
    while time.monotonic() < deadline and fate(*facts["overseer"]) == GONE:
        for pid, start in (facts["restoree"], *facts["others"]):
            if pid not in facts["halted"] and _stands_still(pid):
                _send(pid, start, signal.SIGCONT)
        time.sleep(_NAP)


def _stands_still(pid: int) -> bool:
    try:
        return stat_fields(f"/proc/{pid}/stat")[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _send(pid: int, start: int, number: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
        try:
            if started(pid, start):  # once there is a pidfd of it, a number stays what it is
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it is gone


# From the journal


def settle(directory: Directory, id: str, how: str) -> dict[str, Any]:
    """What became of it: ``outcome`` and ``why``. With COMMIT or ABORT a migration that is prepared comes to its end;
    one whose agent is dead does so in any case, but for the one that nobody can tell, which takes FORCE_…."""
    try:
        record = directory.open(id, DESTINATION)
    except FileNotFoundError:
        return {"outcome": UNKNOWN, "why": f"there is no journal of it in {directory.path}"}
    deadline = time.monotonic() + PATIENCE
    with record:
        while not record.lock():
            told = _ask(directory, id, how.replace("force-", ""))
            if told is not None:
                return told
            if time.monotonic() > deadline:
                return {"outcome": UNDER_WAY, "why": "its agent there lives and does not answer"}
            time.sleep(_NAP)
        unlisten(directory, id)  # of an agent that was killed
        told = decide(record)
        wake(record, told)
        if told["final"] and how in (FORCE_COMMIT, FORCE_ABORT):
            state, outcome = (RELEASED, MOVED) if how == FORCE_COMMIT else (ABORTED, ROLLED_BACK)
            record.mend()
            record.append(state, why=f"by --{how[6:]}; {told['why']}")
            told.update(outcome=outcome, final=False)
        return told


def decide(record: Journal) -> dict[str, Any]:
    """The agent is dead, and we hold its lock: by the journal, and by who lives. What was found out is written down.
    ``final``: it is in doubt for good."""
    deadline = time.monotonic() + PATIENCE
    lived = final = False
    while True:
        records = record.records()
        outcome, why = judge(records)
        if outcome != UNDER_WAY:
            break
        state, facts = (records[-1].state, _facts(records)) if records else ("", {})
        overseer, restoree = (fate(*facts[who]) if who in facts else GONE for who in ("overseer", "restoree"))
        if others := facts.get("others"):
            fates = {restoree, *(fate(*each) for each in others)}
            # Of several: those live, or are gone, that all do or are.
            restoree = fates.pop() if len(fates) == 1 else _SOME
        if others and overseer == GONE and restoree in ((_SOME,) if state == RELEASING else (_SOME, LIVES)):
            # Those that were just killed show as such within moments.
            if lived:
                outcome, why = ROLLED_BACK, "its overseer died before all of it was let go"
                why += _noted(record, ABORTED, why=why)
                end([facts["restoree"], *others])
                break
            lived = True
            time.sleep(0.2)
            continue
        if overseer == GONE and state == RELEASING and restoree == LIVES:
            # One that was just killed shows as such within moments.
            if lived:
                outcome, why = MOVED, _noted(record, RELEASED, found=True).strip()
                break
            lived = True
            time.sleep(0.2)
            continue
        if overseer == GONE and restoree == GONE:
            if state == RELEASING:
                outcome, final = IN_DOUBT, True
                why = "its overseer was killed at the very moment of letting it go, and nobody can tell if it ran"
                break
            outcome, why = ROLLED_BACK, "its agent died before it was let go"
            why += _noted(record, ABORTED, why=why)
            break
        if time.monotonic() > deadline:
            who = "overseer" if overseer != GONE else "restoree"
            outcome, why = IN_DOUBT, f"its {who} (process {facts[who][0]} there) hangs"
            break
        time.sleep(_NAP)
    return {"outcome": outcome, "why": why, "final": final, **_told(records)}


def _noted(record: Journal, state: str, **fields: Any) -> str:
    """Written down, or else why not: it is true all the same, and the next who asks finds out the same."""
    try:
        record.mend()
        record.append(state, **fields)
    except OSError as error:
        return f" (which could not be written down: {error.strerror})"
    return ""


def judge(records: list[Record]) -> tuple[str, str]:
    """What the records alone tell when nobody holds the journal; UNDER_WAY: it depends on who lives."""
    state = records[-1].state if records else ""
    if state == RELEASED:
        return MOVED, ""
    if state == ABORTED:
        return ROLLED_BACK, str(records[-1].fields.get("why", ""))
    if records and records[-1].boot != journal.boot_id():
        here = os.uname().nodename
        host = records[0].fields.get("host", here)
        if host != here:
            return IN_DOUBT, f"it is of {host}, which shares this directory: ask there"
        if state in (COMMITTED, RELEASING):
            return MOVED, "that host was started anew since: the process has ended with it"
        return ROLLED_BACK, "that host was started anew before it was committed"
    return UNDER_WAY, ""


def _facts(records: list[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        found.update(record.fields)
    return found


def _told(records: list[Record]) -> dict[str, Any]:
    restoree = _facts(records).get("restoree")
    return {"pid": restoree[0]} if restoree else {}


# The socket


def listen(directory: Directory, id: str) -> socket.socket:
    """Where an agent that holds a migration can be asked. In a directory that is closed to all others."""
    path = directory.socket_path(id)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(door.fileno(), 0o600)  # the inode that bind(2) makes has the mode of the socket, unix(7)
        door.bind(path)
        door.listen(4)
    except BaseException:
        door.close()
        raise
    return door


def unlisten(directory: Directory, id: str) -> None:
    """Nobody is there any more."""
    try:
        os.unlink(directory.socket_path(id))
    except FileNotFoundError:
        pass  # somebody tidied up


def heed(door: socket.socket) -> tuple[socket.socket, str] | None:
    """Who asks, and for what; None: nobody who may, or nothing that makes sense."""
    visitor, _ = door.accept()
    visitor.settimeout(2.0)
    try:
        peer = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(peer)[1] not in (0, os.geteuid()):
            raise PermissionError(1, "another user")
        how = json.loads(_line(visitor))["how"]
        if how not in (ASK, COMMIT, ABORT):
            raise ValueError(how)
    except (OSError, ValueError, TypeError, KeyError):
        visitor.close()
        return None
    return visitor, how


def answer(visitor: socket.socket, told: dict[str, Any]) -> None:
    """Tell who asked, and close."""
    with visitor:
        try:
            visitor.sendall(json.dumps(told).encode() + b"\n")
        except OSError:
            pass  # it is gone; the journal has it too


def _ask(directory: Directory, id: str, how: str) -> dict[str, Any] | None:
    """The agent that holds it; None: there is none, yet or any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(_ANSWER)
        try:
            asking.connect(directory.socket_path(id))
            asking.sendall(json.dumps({"how": how}).encode() + b"\n")
            return dict(json.loads(_line(asking)))
        except (OSError, ValueError, TypeError):
            return None


def _line(stream: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n") and len(received) < _LONGEST:
        piece = stream.recv(_LONGEST - len(received))
        if not piece:
            raise ConnectionResetError
        received += piece
    return received


# What there is


def survey(directory: Directory) -> list[dict[str, Any]]:
    """Every migration that this host knows of, the oldest first: ``id``, ``role``, ``outcome``, ``why``, ``state`` and
    ``time`` of the last record, and all that was noted of it. Old ones that have come to an end are removed."""
    found = []
    directory.tidy()
    for id, role in directory.names():
        told: dict[str, Any] = {"id": id, "role": role}
        try:
            with directory.open(id, role) as record:
                free = record.lock()
                records = record.records()
                if free and _stale(records):
                    directory.remove(id, role)
                    continue
                told.update(_facts(records))
                if not free:
                    told.update(outcome=UNDER_WAY, why="")
                elif role == DESTINATION:
                    unlisten(directory, id)
                    told.update(decide(record))
                else:
                    told["outcome"], told["why"] = judge_source(records)
                if records:
                    told.update(state=records[-1].state, began=records[0].time, time=records[-1].time)
        except FileNotFoundError:
            continue  # somebody else tidied up
        except (OSError, journal.JournalError) as error:
            told.update(outcome=UNKNOWN, why=str(error))
        found.append(told)
    return found


def judge_source(records: list[Record]) -> tuple[str, str]:
    """What a source's journal tells whose coordinator is dead."""
    state = records[-1].state if records else journal.BEGUN
    if state == journal.DONE:
        return MOVED, ""
    if state == journal.ROLLED_BACK:
        return ROLLED_BACK, str(records[-1].fields.get("why", ""))
    if any(record.state == journal.INTENT for record in records):
        return IN_DOUBT, "COMMIT may have been sent"
    if records and records[-1].boot != journal.boot_id():
        return ROLLED_BACK, "this host was started anew in the middle of it"
    return BROKEN_OFF, "the command was killed before the commit; the process runs on here"


def _stale(records: list[Record]) -> bool:
    """Whether it has come to its end, long ago."""
    ends = (RELEASED, ABORTED, journal.DONE, journal.ROLLED_BACK)
    return bool(records) and records[-1].state in ends and records[-1].time < time.time() - KEPT
