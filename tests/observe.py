"""What a process looks like from outside, so that "the same before and after the move" is a comparison of two dicts.

`snapshot` reads /proc and asks the kernel; the result is flat: what → value, as ``fd 3 flags`` → ``0100002``.
Numbers that cannot be the same on another host are replaced by what they mean: process numbers by the process's own
(innermost) ones, pipe and anonymous inode numbers by "the first pipe", "the second pipe". What is left out changes by
itself (times, counters, resident sizes) or is the host's (parents, namespaces, cgroups, mount ids).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

Seen = dict[str, str]

# proc_pid_status(5). State is reduced to "stopped or not"; numbers of processes are taken innermost.
OF_PROCESS = ("Umask", "Threads", "ShdPnd", "SigIgn", "SigCgt", "VmLck", "VmPin", "VmSize", "VmData", "VmStk", "VmExe",
    "VmLib", "THP_enabled")
OF_THREAD = ("Uid", "Gid", "Groups", "SigPnd", "SigBlk", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
    "Seccomp", "Seccomp_filters", "Cpus_allowed_list", "Mems_allowed_list")
INNERMOST = ("NStgid", "NSpgid", "NSsid")
# proc_pid_stat(5), counted from the field after the name
STAT = {"tty_nr": 4, "start_code": 23, "end_code": 24, "start_stack": 25, "exit_signal": 35, "start_data": 42,
    "end_data": 43, "start_brk": 44, "arg_start": 45, "arg_end": 46, "env_start": 47, "env_end": 48}
FILES = ("limits", "personality", "oom_score_adj", "coredump_filter")
BYTES = ("cmdline", "environ", "auxv")

SYS_GET_ROBUST_LIST, SYS_IOPRIO_GET, SYS_KCMP = 274, 252, 312  # arch/x86/entry/syscalls/syscall_64.tbl
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int | object) -> int:
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def snapshot(outer: int, *, contents: bool = False) -> Seen:
    """All that can be seen of the process with this number in our /proc; ``contents`` adds a digest of every VMA.

    The process should be stopped or asleep: nothing here is atomic. Raises OSError when it is gone or not ours to see.
    """
    process = Path(f"/proc/{outer}")
    numbers = _threads(process)
    seen: Seen = {}
    status = _status(process)
    seen["state"] = "stopped" if status["State"][0] in "Tt" else "not stopped"
    seen |= {f"status {name}": " ".join(status[name].split()) for name in OF_PROCESS if name in status}
    seen |= {f"status {name}": status[name].split()[-1] for name in INNERMOST if status.get(name, "").split()}
    fields = _stat(process)
    seen |= {f"stat {name}": fields[index] for name, index in STAT.items()}
    seen |= {f"link {name}": os.readlink(process / name) for name in ("exe", "cwd", "root")}
    seen |= {name: (process / name).read_text() for name in FILES}
    seen |= {name: (process / name).read_bytes().hex() for name in BYTES}
    seen |= _timers(process, numbers)
    seen |= _maps(process)
    seen |= _descriptors(outer, process, numbers)
    for number, name in numbers.items():
        seen |= {f"thread {name} {key}": value for key, value in _thread(process, number).items()}
    if contents:
        seen |= _contents(process)
    return seen


def compare(before: Seen, after: Seen, ignore: Iterable[str] = ()) -> list[str]:
    """The differences in words, one line each; ``ignore`` are regular expressions for what need not be the same."""
    unimportant = [re.compile(pattern) for pattern in ignore]
    found = []
    for key in sorted(before.keys() | after.keys(), key=_natural):
        if before.get(key) == after.get(key) or any(pattern.fullmatch(key) for pattern in unimportant):
            continue
        if key not in after:
            found.append(f"{key}: gone, was {_short(before[key])}")
        elif key not in before:
            found.append(f"{key}: new, {_short(after[key])}")
        else:
            found.append(f"{key}: {_difference(before[key], after[key])}")
    return found


def _natural(key: str) -> list[str]:
    return [part.zfill(20) if part.isdigit() else part for part in key.split()]


def _difference(before: str, after: str) -> str:
    first, second = before.splitlines(), after.splitlines()
    if len(first) == len(second) > 1:  # a file of lines: only those that differ
        pairs = zip(first, second, strict=True)
        return "; ".join(f"{_short(old)} became {_short(new)}" for old, new in pairs if old != new)
    return f"{_short(before)} became {_short(after)}"


def _short(value: str) -> str:
    value = value.strip()
    return f"{value[:120]!r} and {len(value) - 120} more" if len(value) > 200 else repr(value)


def _status(directory: Path) -> dict[str, str]:
    lines = (directory / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _stat(directory: Path) -> list[str]:
    return (directory / "stat").read_text().rpartition(")")[2].split()


def _threads(process: Path) -> dict[int, str]:
    """Our number of each thread → its own number of itself, in the order of the latter."""
    found = {int(path.name): _status(path)["NSpid"].split()[-1] for path in (process / "task").iterdir()}
    return dict(sorted(found.items(), key=lambda item: int(item[1])))


def _thread(process: Path, number: int) -> Seen:
    directory = process / "task" / str(number)
    status, fields = _status(directory), _stat(directory)
    head = ctypes.c_void_p()
    length = ctypes.c_size_t()
    _syscall(SYS_GET_ROBUST_LIST, number, ctypes.byref(head), ctypes.byref(length))
    return {
        **{name: " ".join(status[name].split()) for name in OF_THREAD if name in status},
        "comm": (directory / "comm").read_text().rstrip("\n"),
        "nice": fields[16],
        "rt_priority": fields[37],
        "policy": fields[38],
        "affinity": repr(sorted(os.sched_getaffinity(number))),
        "ioprio": str(_syscall(SYS_IOPRIO_GET, 1, number)),  # IOPRIO_WHO_PROCESS
        # not under task/, but /proc/TID is there for every thread
        "timer slack": Path(f"/proc/{number}/timerslack_ns").read_text().strip(),
        "robust list": f"{head.value or 0:#x}",
    }


def _timers(process: Path, numbers: dict[int, str]) -> Seen:
    """POSIX timers (proc_pid_timers(5)); whom they notify by its own number."""
    seen: Seen = {}
    which = "?"
    for line in (process / "timers").read_text().splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "ID":
            which = value
        if key == "notify":
            value = re.sub(r"\d+$", lambda found: numbers.get(int(found[0]), "of another process"), value)
        seen[f"timer {which} {key}"] = value
    return seen


def _maps(process: Path) -> Seen:
    seen: Seen = {}
    for start, line in _map_lines(process):
        seen[f"maps {start}"] = line
    start = ""
    for line in (process / "smaps").read_text(errors="surrogateescape").splitlines():
        if found := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            start = found[1]
        elif line.startswith("VmFlags:"):
            # sd: soft-dirty says what was written lately, not what the mapping is
            seen[f"flags of {start}"] = " ".join(flag for flag in line.split()[1:] if flag != "sd")
    policies = process / "numa_maps"  # CONFIG_NUMA
    if policies.exists():
        for line in policies.read_text(errors="surrogateescape").splitlines():
            words = line.split()
            seen[f"policy of {words[0]}"] = words[1]
    return seen


def _map_lines(process: Path) -> Iterator[tuple[str, str]]:
    for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
        words = line.split(None, 5)
        if len(words) == 6 and words[5].endswith(" (deleted)"):
            words[4] = "deleted"  # another inode on every host, and of shared anonymous memory in every mmap
            if words[3].startswith("00:"):
                words[3] = "none"
        yield words[0].partition("-")[0], " ".join(words)


def _descriptors(outer: int, process: Path, numbers: dict[int, str]) -> Seen:
    seen: Seen = {}
    named: dict[str, str] = {}
    table = sorted(int(name) for name in os.listdir(process / "fd"))
    for number in table:
        link = os.readlink(process / "fd" / str(number))
        if found := re.fullmatch(r"(pipe|socket|anon_inode):\[(\d+)\]", link):
            count = sum(name.startswith(found[1]) for name in named.values()) + 1
            link = named.setdefault(link, f"{found[1]} #{count}")
        seen[f"fd {number} link"] = link
        info = (process / "fdinfo" / str(number)).read_text().splitlines()
        seen |= {f"fd {number} {key}": value for key, value in _fdinfo(info, link)}
    for first, second in _same_description(outer, table):
        seen[f"fd {second} shares its offset with"] = str(first)
    return seen


def _fdinfo(lines: list[str], link: str) -> Iterator[tuple[str, str]]:
    """The lines of /proc/PID/fdinfo/N (proc_pid_fdinfo(5)) that say something which travels."""
    on_disk = link.startswith("/") and not link.endswith(" (deleted)")
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("mnt_id", "eventfd-id", "it_value", "Pid") or (key == "ino" and not on_disk):
            continue
        if key == "lock":  # "1: POSIX ADVISORY WRITE PID DEVICE:INODE START END", its number as we see it
            value = re.sub(r"^((\S+\s+){4})\d+", r"\1its own", value)
        if key == "NSpid":  # of a pidfd
            value = value.split()[-1]
        if key == "tfd":
            # epoll names its targets; their inodes are anonymous ones more often than not
            target, _, rest = value.partition(" ")
            key, value = f"tfd {target}", re.sub(r" (pos|ino|sdev):\s*\S+", "", rest).strip()
        if line.startswith("inotify "):
            key, value = line.split()[1], line.split(None, 2)[2]
        yield key, " ".join(value.split())


def _same_description(outer: int, table: list[int]) -> Iterator[tuple[int, int]]:
    """Descriptors made by dup(2), or inherited: one open file description (kcmp(2), KCMP_FILE = 0), first one first."""
    distinct: list[int] = []
    for number in table:
        for other in distinct:
            if _syscall(SYS_KCMP, outer, outer, 0, other, number) == 0:
                yield other, number
                break
        else:
            distinct.append(number)


def _contents(process: Path) -> Seen:
    seen: Seen = {}
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
            area, access, *rest = line.split(None, 5)
            if access[0] != "r" or rest[-1] in ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]"):
                continue
            start, end = (int(part, 16) for part in area.split("-"))
            digest = hashlib.blake2b(digest_size=16)
            for position in range(start, end, 1 << 20):
                digest.update(os.pread(memory.fileno(), min(1 << 20, end - position), position))
            seen[f"contents of {area}"] = digest.hexdigest()
    return seen
