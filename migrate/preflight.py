"""Whether a process can be moved to a destination: all the reasons against it at once, before it is touched."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from migrate import faults
from migrate.destination import Destination, Facts, Inside
from migrate.engine import overseer, vdso
from migrate.engine.clocks import wanted_offsets
from migrate.engine.kernel.maps import PAGE
from migrate.engine.kernel.timens import Offsets
from migrate.engine.kinds import address_space, needs
from migrate.engine.kinds.credentials import Credentials
from migrate.engine.kinds.limits import Limits
from migrate.engine.preview import Preview
from migrate.errors import Problem, Refused
from migrate.transport.agent import Agent, making_sense

_CAPABILITIES = {21: "CAP_SYS_ADMIN", 19: "CAP_SYS_PTRACE"}
_RESERVE = 64 << 20  # bytes that the destination needs besides the pages


def host_problems(preview: Preview, facts: Facts, no_clock: bool = False, others: int = 0) -> list[Problem]:
    """Machine, rights and room of the destination. ``no_clock``: the clocks may jump; ``others``: bytes that those have
    in memory that move with it."""
    hello, found = facts.hello, []
    if hello["machine"] != platform.machine():
        found.append(Problem("destination", f"is {hello['machine']}, and this is {platform.machine()}"))
    if hello["page_size"] != PAGE:
        found.append(Problem("destination", f"has pages of {hello['page_size']} bytes, and we have {PAGE}"))
    lacking = [name for bit, name in _CAPABILITIES.items() if not facts.task.effective >> bit & 1]
    if lacking:
        advice = "connect as root, or use --sudo" if hello["uid"] else "the root user there is confined"
        found.append(Problem("destination", f"the agent lacks {' and '.join(lacking)}", advice))
    wanted = wanted_offsets(Offsets(*preview.clock_offsets), facts.here, facts.there)
    if facts.offsets is None and wanted != Offsets() and not no_clock:
        found.append(_jump("has no time namespaces", "it needs CONFIG_TIME_NS, Linux 5.6"))
    resident = preview.resident + others
    if resident + _RESERVE > facts.memory_available:
        found.append(
            Problem(
                "destination",
                f"has {facts.memory_available >> 20} MiB of memory to spare, the process uses {resident >> 20}",
            )
        )
    return found


def clock_problems(inside: Inside, no_clock: bool) -> list[Problem]:
    """The time namespace, which only the overseer could try to make."""
    if not inside.no_clocks or no_clock:
        return []
    advice = "raise user.max_time_namespaces there, and let the agent have CAP_SYS_TIME"
    return [_jump(f"gives the process no time namespace ({inside.no_clocks})", advice)]


def ipc_problems(inside: Inside) -> list[Problem]:
    """The IPC namespace, the same."""
    if not inside.no_ipc:
        return []
    what = f"gives the process no IPC namespace for its System V objects ({inside.no_ipc})"
    return [Problem("destination kernel", what, "it needs CONFIG_IPC_NS and CONFIG_CHECKPOINT_RESTORE, and root")]


def _jump(what: str, advice: str) -> Problem:
    consequence = "CLOCK_MONOTONIC of the process would jump"
    return Problem("destination kernel", f"{what}: {consequence}", f"{advice}; or let it jump (--no-clock)")


KEEP = "keep"


def control_group(wanted: str | None, previews: Sequence[Preview]) -> tuple[str | None, list[Problem]]:
    """The control group to be in there (see `agents.cgroup`), and why there can be none. ``wanted``: of --cgroup."""
    if wanted != KEEP:
        return wanted, []
    first, problems = previews[0].surroundings.cgroup, []
    for each in previews:
        found = each.surroundings.cgroup
        if not found:
            what = "is in no control group of version 2 that could be kept"
        elif found.endswith(" (deleted)"):
            what = f"its control group {found.removesuffix(' (deleted)')} has been removed"
        elif found.startswith("/.."):
            what = f"its control group ({found}) is outside of the cgroup namespace of the command"
        elif found != first:
            what = f"is in the control group {found}, and process {previews[0].pid} in {first}"
        else:
            continue
        problems.append(Problem(f"pid {each.pid}", f"{what} (--cgroup keep)", "name one by --cgroup PATH"))
    return first, problems


def process_problems(preview: Preview, facts: Facts) -> list[Problem]:
    """What the destination cannot give to the process, as far as it shows from outside."""
    where = f"pid {preview.pid}"
    credentials = Credentials.from_status(preview.status, 0)
    return [
        *Limits.from_text(preview.limits).problems(where, facts.task.limits, facts.task.can_raise),
        *credentials.problems(where, facts.task.bounding, facts.task.securebits),
        *address_space.problems(preview.vmas, where, facts.max_map_count, len(preview.tids)),
    ]


def kernel_problems(
    preview: Preview, inside: Inside, ia32: vdso.VDSO | None
) -> tuple[list[Problem], vdso.Verdict]:
    """The vDSO, which only the overseer could look at. ``ia32``: that of processes of 32 bits; None: there are none
    such there, as far as is known (`migrate.destination.Destination.ia32`)."""
    pretended, where, problems = faults.pretended("vdso"), f"pid {preview.pid}", []
    there = inside.vdso
    if preview.compat and ia32 is None:
        what = "is of 32 bits (ia32), and the destination's kernel runs no such program"
        problems.append(Problem(where, what, "it needs CONFIG_IA32_EMULATION, and no ia32_emulation=0"))
    elif preview.compat and ia32 is not None:
        there = ia32
    there = vdso.VDSO(()) if pretended == "missing" else there
    if preview.compat and preview.vdso.area is not None and there.area is None:
        what = "is of 32 bits, its signal handlers return by way of the vDSO, and the destination has none for such"
        problems.append(Problem(where, what, "it needs abi.vsyscall32=1 there (vdso32=1)"))
    verdict = vdso.decide(preview.vdso, there, where, differ=pretended == "differs")
    return [*problems, *verdict.problems], verdict


async def file_problems(
    needed: Sequence[needs.FileNeed], source: Agent, destination: Destination, one_machine: bool
) -> tuple[list[Problem], frozenset[str]]:
    """Files that are not there, or not the same. Also the names of deleted files that are taken there."""
    paths = needs.paths(needed)
    there = await destination.stat(paths)
    now = (await source.request("stat", paths=paths, nofollow=True))["stats"]
    found = needs.compare(needed, there, dict(zip(paths, now, strict=True)), one_machine=one_machine)
    wrong = {problem.what.split(" ")[0] for problem in found}
    same = sorted(
        {need.path for need in needed if need.content and need.path not in wrong and _is_file(there, need.path)}
    )
    ours = await source.submit("digest", paths=same)
    theirs = await destination.agent.submit("digest", paths=same)
    mine, other = (await ours.reply())["digests"], (await theirs.reply())["digests"]
    with making_sense(destination.agent.name, "what it tells of the contents of files"):
        pairs = zip(same, mine, other, strict=True)
        different = [(path, _difference(path, here, there)) for path, here, there in pairs if here != there]
    for path, what in different:
        where = next(need.where for need in needed if need.path == path)
        found.append(Problem(where, what, "install the same version there"))
    terminal = next((need for need in needed if need.kind == needs.TERMINAL), None)
    if terminal is not None and (why := (await destination.agent.request("typing")).number("errno")):
        what = f"what waits in a terminal cannot be put into one on the destination ({os.strerror(why)})"
        found.append(Problem(terminal.where, what, "sysctl dev.tty.legacy_tiocsti=1 there"))
    return found, needs.taken(needed, there)


def _is_file(there: Mapping[str, Mapping[str, int]], path: str) -> bool:
    return "errno" not in there[path]


def _difference(path: str, here: Any, there: Any) -> str:
    for side, answer in (("here", here), ("on the destination", there)):
        if "errno" in answer:
            return f"{path} cannot be read {side}: {os.strerror(answer['errno'])}"
    return f"{path} has the same size and time on the destination, but not the same content"


def channels(previews: Sequence[Preview], facts: Facts, streams: int = 0) -> overseer.Channels:
    """Two numbers that no process uses, as high as the destination's limit allows, and as many more as there are
    ``streams``."""
    used = {number for preview in previews for number in preview.descriptors}
    soft = min(facts.task.limits.limits[overseer.RLIMIT_NOFILE][0], 1 << 16)
    free = (number for number in range(soft - 1, overseer.JOURNAL + 1, -1) if number not in used)
    try:
        control, data, *rest = [next(free) for _ in range(2 + streams)]
        return overseer.Channels(control, data, tuple(rest), overseer.JOURNAL + 1 + len(previews))
    except StopIteration:
        what = f"no {2 + streams} descriptor numbers below {soft} that the process does not use"
        raise Refused([Problem("destination", what, "raise the limit of open files (ulimit -n) there")]) from None
