"""/proc/PID/status (proc_pid_status(5); fs/proc/array.c)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from migrate.engine.kernel.procformat import ProcFormatError, field, number, numbers

_FILE = "status"
_ESCAPE = re.compile(r"\\(?:([nfvtrae\"\\])|([0-7]{3}))")
_ESCAPED = {"n": "\n", "f": "\f", "v": "\v", "t": "\t", "r": "\r", "a": "\a", "e": "\x1b", '"': '"', "\\": "\\"}


@dataclass(frozen=True)
class Status:
    """What status says. Signal sets and capability sets are bit masks; signal n is bit n - 1.

    Where a field came in later than 4.10 its absence reads as the default named here.
    """

    name: str
    umask: int | None  # None: a zombie has none
    state: str  # one letter: R S D T t Z X I
    tgid: int
    pid: int
    ppid: int
    tracer_pid: int
    uids: tuple[int, int, int, int]  # real, effective, saved, file system
    gids: tuple[int, int, int, int]
    groups: tuple[int, ...]
    ns_tgid: tuple[int, ...]  # in each PID namespace, ours first, its own last
    ns_pid: tuple[int, ...]
    ns_pgid: tuple[int, ...]
    ns_sid: tuple[int, ...]
    kthread: bool  # since 6.8; before that always False: look at stat's flags
    threads: int
    sig_q: tuple[int, int]  # queued signals of the user, and their limit
    sig_pnd: int  # of this thread
    shd_pnd: int  # of the process
    sig_blk: int
    sig_ign: int
    sig_cgt: int
    cap_inh: int
    cap_prm: int
    cap_eff: int
    cap_bnd: int
    cap_amb: int
    no_new_privs: bool
    seccomp: int  # 0 none, 1 strict, 2 filter
    seccomp_filters: int  # since 5.9, else 0
    speculation_store_bypass: str  # "" where the kernel does not say
    speculation_indirect_branch: str  # since 5.17
    cpus_allowed: int  # bit mask
    mems_allowed: int
    thp_enabled: bool | None  # since 5.0
    core_dumping: bool
    vm: dict[str, int]  # the Vm…, Rss… and HugetlbPages lines in kB; empty: no address space (kernel thread, zombie)
    x86_features: frozenset[str]  # x86_Thread_features, since 6.6: "shstk", "wrss"
    x86_features_locked: frozenset[str]
    voluntary_ctxt_switches: int
    nonvoluntary_ctxt_switches: int

    @property
    def vm_lck(self) -> int:
        """Locked memory, kB."""
        return self.vm.get("VmLck", 0)


def umask(text: str) -> int | None:
    """That alone, for who needs no more of many processes; None of one that is ending."""
    start = text.find("\nUmask:\t") + 1
    return number(text[start + 7 : text.find("\n", start)], 8, "Umask", _FILE) if start else None


def status(text: str) -> Status:
    """Parse it. Raises ProcFormatError that names the line which is missing or odd."""
    fields: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        name, colon, value = line.partition(":")
        if not colon:
            raise ProcFormatError(_FILE, f"a line without a colon: {line!r}")
        fields[name] = value.strip(" \t") if name != "Name" else value.removeprefix("\t")

    def decimal(name: str) -> int:
        return number(field(fields, name, _FILE), 10, name, _FILE)

    def mask(name: str) -> int:
        return number(field(fields, name, _FILE).replace(",", ""), 16, name, _FILE)

    def optional(name: str, default: int) -> int:
        return decimal(name) if name in fields else default

    def several(name: str) -> tuple[int, ...]:
        return numbers(field(fields, name, _FILE), 10, name, _FILE)

    def four(name: str) -> tuple[int, int, int, int]:
        found = several(name)
        if len(found) != 4:
            raise ProcFormatError(_FILE, f"{name} has {len(found)} numbers, not 4")
        return found[0], found[1], found[2], found[3]

    state = field(fields, "State", _FILE)
    queued, slash, limit = field(fields, "SigQ", _FILE).partition("/")
    if not slash:
        raise ProcFormatError(_FILE, f"SigQ is {queued!r}, not queued/limit")
    return Status(
        name=unescape(field(fields, "Name", _FILE)),
        umask=number(fields["Umask"], 8, "Umask", _FILE) if "Umask" in fields else None,
        state=state[:1],
        tgid=decimal("Tgid"),
        pid=decimal("Pid"),
        ppid=decimal("PPid"),
        tracer_pid=decimal("TracerPid"),
        uids=four("Uid"),
        gids=four("Gid"),
        groups=several("Groups"),
        ns_tgid=several("NStgid"),
        ns_pid=several("NSpid"),
        ns_pgid=several("NSpgid"),
        ns_sid=several("NSsid"),
        kthread=bool(optional("Kthread", 0)),
        threads=decimal("Threads"),
        sig_q=(number(queued, 10, "SigQ", _FILE), number(limit, 10, "SigQ", _FILE)),
        sig_pnd=mask("SigPnd"),
        shd_pnd=mask("ShdPnd"),
        sig_blk=mask("SigBlk"),
        sig_ign=mask("SigIgn"),
        sig_cgt=mask("SigCgt"),
        cap_inh=mask("CapInh"),
        cap_prm=mask("CapPrm"),
        cap_eff=mask("CapEff"),
        cap_bnd=mask("CapBnd"),
        cap_amb=mask("CapAmb"),
        no_new_privs=bool(decimal("NoNewPrivs")),
        seccomp=optional("Seccomp", 0),
        seccomp_filters=optional("Seccomp_filters", 0),
        speculation_store_bypass=fields.get("Speculation_Store_Bypass", ""),
        speculation_indirect_branch=fields.get("SpeculationIndirectBranch", ""),
        cpus_allowed=mask("Cpus_allowed"),
        mems_allowed=mask("Mems_allowed"),
        thp_enabled=bool(decimal("THP_enabled")) if "THP_enabled" in fields else None,
        core_dumping=bool(optional("CoreDumping", 0)),
        vm={
            name: number(value.removesuffix(" kB"), 10, name, _FILE)
            for name, value in fields.items()
            if value.endswith(" kB")
        },
        x86_features=frozenset(fields.get("x86_Thread_features", "").split()),
        x86_features_locked=frozenset(fields.get("x86_Thread_features_locked", "").split()),
        voluntary_ctxt_switches=decimal("voluntary_ctxt_switches"),
        nonvoluntary_ctxt_switches=decimal("nonvoluntary_ctxt_switches"),
    )


def unescape(name: str) -> str:
    """The comm as prctl(PR_GET_NAME) has it: status shows it through string_escape_str (proc_task_name,
    fs/proc/array.c)."""
    if "\\" not in name:
        return name
    return _ESCAPE.sub(lambda m: _ESCAPED[m[1]] if m[1] else chr(int(m[2], 8)), name)
