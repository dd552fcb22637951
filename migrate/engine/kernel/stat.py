"""/proc/PID/stat (proc_pid_stat(5))."""

from __future__ import annotations

from typing import NamedTuple

from migrate.engine.kernel.procformat import ProcFormatError, number

PF_KTHREAD = 0x00200000  # include/linux/sched.h, in `flags`


class Stat(NamedTuple):
    """The 52 fields, by the names of the manual page. Times in clock ticks, rss in pages, sizes in bytes."""

    pid: int
    comm: str
    state: str
    ppid: int
    pgrp: int
    session: int
    tty_nr: int
    tpgid: int
    flags: int
    minflt: int
    cminflt: int
    majflt: int
    cmajflt: int
    utime: int
    stime: int
    cutime: int
    cstime: int
    priority: int
    nice: int
    num_threads: int
    itrealvalue: int
    starttime: int
    vsize: int
    rss: int
    rsslim: int
    startcode: int
    endcode: int
    startstack: int
    kstkesp: int
    kstkeip: int
    signal: int
    blocked: int
    sigignore: int
    sigcatch: int
    wchan: int
    nswap: int
    cnswap: int
    exit_signal: int
    processor: int
    rt_priority: int
    policy: int
    delayacct_blkio_ticks: int
    guest_time: int
    cguest_time: int
    start_data: int
    end_data: int
    start_brk: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int
    exit_code: int


def stat(text: str) -> Stat:
    """Parse it. The comm stands there as it is, whatever parentheses, blanks and newlines it holds: what counts is the
    first opening and the last closing one."""
    opening, closing = text.find("("), text.rfind(")")
    if opening < 0 or closing < opening:
        raise ProcFormatError("stat", f"no comm in parentheses: {text!r}")
    rest = text[closing + 1 :].split()
    names = Stat._fields
    if len(rest) < len(names) - 2:
        raise ProcFormatError("stat", f"{len(rest) + 2} fields, not {len(names)}")
    values = [number(word, 10, name, "stat") for word, name in zip(rest[1:], names[3:], strict=False)]
    return Stat(number(text[:opening].strip(), 10, "pid", "stat"), text[opening + 1 : closing], rest[0], *values)


def words(text: str) -> list[str]:
    """From the state on, as they stand there: the third field of the manual page is the first here. For who needs a
    few of them, of many processes."""
    return text[text.rfind(")") + 1 :].split()
