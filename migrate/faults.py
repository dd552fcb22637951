"""Faults for tests: ``MIGRATE_FAULT=point:action[,point:action…]`` makes a migration go wrong at a named point.

Points of the coordinator, in order: ``connected``, ``preflight``, ``begun`` (its journal is there), ``created``,
``tracked``, ``round``, ``rehearsed``, ``intent`` (in the journal), ``frozen``, ``sent``, ``restored``,
``before-commit``, ``halted`` (the last one before COMMIT), ``commit-sent``, ``acknowledged``, ``ended`` (the copy here
was killed), ``done`` (in the journal), ``committed``. Points of the source agent, in the frozen window:
``source-stopped``, ``source-collected``, ``source-unlocked``, ``source-halted``, ``source-killed`` (the copy, after the
commit). Of the destination agent: ``there-begun``, ``there-prepared`` (in its journal), ``there-commit`` (COMMIT has
come), ``there-released`` (its answer is not sent). ``op:N`` is the N-th op (from 0) of all that is sent to the
destination to be run; those of the commit are among them, and come last.

Actions: ``fail`` (an error is raised; the op fails with ENOSYS), ``kill`` (SIGKILL to whoever is at the point; the
restorer that comes to the op exits), ``sleep=SECONDS``, ``hold=PATH`` (the file is made, and the point is left when the
file is gone), and for an op ``hang`` (it never returns).

Some points are pretences about the destination: ``vdso:differs`` (its vDSO is another one, though it is the same) or
``vdso:missing`` (it has none), ``ia32:missing`` (it runs no programs of 32 bits), ``fork:missing`` (no memory for a
copy of a process that has some), ``droppable:missing`` (it has no MAP_DROPPABLE memory), ``drift:lost=SECONDS`` (its
clocks have lost that on ours since they were compared), and ``lease:is=SECONDS``. One is about this host:
``frames:missing`` (we are shown no frame numbers). ``padding:is=BYTES`` makes both journals begin so much longer, so
that a disk can be full between any two of their records.

``page:flip=ADDRESS`` (hexadecimal) flips a bit of that page whenever it is on its way; it must not be compressed.

Where the variable is not set, a point costs a comparison.
"""

from __future__ import annotations

import itertools
import os
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from migrate.engine.program import Linked
from migrate.engine.program.ops import OP, Check, OpKind
from migrate.errors import Failed

Buffer = bytes | bytearray | memoryview
VARIABLE = "MIGRATE_FAULT"
_POLL = 0.002  # seconds between two looks whether a hold is over
_OPS_AT = struct.Struct("<8xI")  # struct program, program.h
_PAGE = 4096
_PAUSE, _EXIT_GROUP, _NO_CALL = 34, 231, 0xFFFF  # numbers of system calls; the last one is none

_ACTIONS = ("fail", "kill", "sleep", "hold", "hang", "differs", "missing", "lost", "is", "flip")


def _parse(text: str) -> dict[str, str]:
    """Point → action. ValueError: it makes no sense."""
    found = {}
    for part in filter(None, text.split(",")):
        point, separator, action = part.rpartition(":")
        if not separator or action.partition("=")[0] not in _ACTIONS:
            raise ValueError(f"{VARIABLE}: {part!r} is not point:action")
        found[point] = action
    return found


_faults = _parse(os.environ.get(VARIABLE, ""))
_ops = itertools.count()


def arm(text: str) -> None:
    """Sets them anew, for tests that run several migrations in one process; ops are counted from 0 again."""
    global _faults, _ops
    _faults, _ops = _parse(text), itertools.count()


def there() -> str:
    """Those of the destination agent."""
    return ",".join(f"{point}:{action}" for point, action in _faults.items() if point.startswith("there-"))


def pretended(point: str) -> str:
    """What is to be pretended at a point, or nothing."""
    return _faults.get(point, "")


def padding() -> dict[str, str]:
    """Of journals, for what is noted in them."""
    size = int(_faults.get("padding", "").partition("=")[2] or 0)
    return {"padding": "x" * size} if size else {}


async def reach(point: str) -> None:
    """A point of the coordinator."""
    if _faults and point in _faults:
        import trio  # here, because the agents import this file too, and need not wait for it

        for pause in _act(point):
            await trio.sleep(pause)


def hit(point: str) -> None:
    """A point of an agent, which may block."""
    if _faults and point in _faults:
        for pause in _act(point):
            time.sleep(pause)


def _act(point: str) -> Iterator[float]:
    """Does it; gives the seconds to wait."""
    action, _, detail = _faults[point].partition("=")
    if action == "fail":
        raise Failed(f"injected at {point}")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "sleep":
        yield float(detail)
    elif action == "hold":
        os.close(os.open(detail, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        while os.path.exists(detail):
            yield _POLL
    else:
        raise ValueError(f"{VARIABLE}: only an op can {action}")


def damage(runs: Iterable[tuple[int, int, int]], contents: Buffer) -> Buffer:
    """The contents of page runs (address, pages, what: 0 where they have contents), damaged if that is asked for."""
    action, _, address = _faults.get("page", "").partition("=")
    if action != "flip":
        return contents
    page, at = int(address, 16), 0
    for start, pages, what in runs:
        if what == 0 and start <= page < start + pages * _PAGE:
            changed = bytearray(contents)
            changed[at + page - start + _PAGE // 2] ^= 1
            return changed
        at += pages * _PAGE if what == 0 else 0
    return contents


def spoil(linked: Linked) -> Linked:
    """The program with its faulty op, if it is in this one."""
    if not _faults:
        return linked
    for index in range(len(linked.ops)):
        action = _faults.get(f"op:{next(_ops)}")
        if action is not None:
            linked = replace(linked, image=_spoiled(linked.image, index, action))
    return linked


def _spoiled(image: bytes, index: int, action: str) -> bytes:
    number = {"fail": _NO_CALL, "kill": _EXIT_GROUP, "hang": _PAUSE}.get(action)
    if number is None:
        raise ValueError(f"{VARIABLE}: an op cannot {action}")
    (ops_at,) = _OPS_AT.unpack_from(image)
    changed = bytearray(image)
    OP.pack_into(changed, ops_at + index * OP.size, OpKind.SYSCALL, Check.OK, 0, number, 0, 0, 0, *[0] * 6, 0)
    return bytes(changed)
