"""NUMA memory policy of VMAs (mbind(2)); that of threads goes with their scheduling.

numa_maps shows the policy that is in force for an area, its own or else that of the task. So an area that shows the
same as its task is taken to have none of its own; the difference would only show if the task changed its own later.
"""

from __future__ import annotations

import re

from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.program import Arg, Program

# include/uapi/linux/mempolicy.h; the names are policy_modes[] of mm/mempolicy.c
_MODES = {
    "default": 0,
    "prefer": 1,
    "bind": 2,
    "interleave": 3,
    "local": 4,
    "prefer (many)": 5,
    "weighted interleave": 6,
}
_FLAGS = {"static": 1 << 15, "relative": 1 << 14, "balancing": 1 << 13}
_MASK_WORDS = 16  # MAX_NUMNODES is 1024 (CONFIG_NODES_SHIFT=10, the most there is)
_LINE = re.compile(r"([0-9a-f]+) ((?:prefer \(many\)|weighted interleave|[a-z]+)(?:=[a-z|]+)?(?::[0-9,-]+)?)(?: .*)?")


def numa_maps(text: str) -> dict[int, str]:
    """Start of the VMA -> policy, for those that do not show "default" (numa(7))."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError("numa_maps", f"not a policy: {line!r}")
        if match[2] != "default":
            found[int(match[1], 16)] = match[2]
    return found


def parse(policy: str) -> tuple[int, int]:
    """Mode with flags as mbind(2) takes it, and the nodes as a bit mask. Raises ProcFormatError."""
    head, _, nodes = policy.partition(":")
    name, _, flags = head.partition("=")
    mode, mask = _MODES.get(name, -1), 0
    try:
        for flag in filter(None, flags.split("|")):
            mode |= _FLAGS[flag]
        for part in filter(None, nodes.split(",")):
            first, _, last = part.partition("-")
            for node in range(int(first), int(last or first) + 1):
                mask |= 1 << node
    except (KeyError, ValueError):
        mode = -1
    if mode < 0:
        raise ProcFormatError("numa_maps", f"not a policy: {policy!r}")
    return mode, mask


def bind(program: Program, start: int, size: int, policy: str, label: str) -> None:
    """Give an area its policy, before it is filled."""
    mode, mask = parse(policy)
    program.syscall("mbind", start, size, mode, *_nodes(program, mask), 0, label=f"memory policy of {label}")


def _nodes(program: Program, mask: int) -> tuple[Arg, int]:
    """nodemask and maxnode; the kernel takes one bit off maxnode (get_nodes(), mm/mempolicy.c)."""
    if not mask:
        return 0, 0
    return program.data(mask.to_bytes(_MASK_WORDS * 8, "little")), _MASK_WORDS * 64 + 1
