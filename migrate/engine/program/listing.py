"""Programs for people to read, as strace would have written them:

     12  r12 = openat(AT_FDCWD, "/var/log/app.log", O_WRONLY, 0)  # fd 7 (/var/log/app.log)
     13  dup3(r12, 7, 0) = 7  # fd 7 (/var/log/app.log)

An op whose result is used later is named after its index; data is shown as text where it is text, else as
``data+0x40[16]``. After a run, each line shows what the op returned.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from migrate.engine.program.ops import MAX_ERRNO, Address, Arg, Buffer, Check, Load, Op, OpKind, Slot
from migrate.engine.program.program import Linked, Results
from migrate.engine.program.symbols import writer
from migrate.wording import printable

_OWN = ("write", "pwrite64", "sendto")  # calls with contents of the process's files, pipes and sockets
_TEXT_SHOWN = 120  # characters of a string


def listing(linked: Linked, results: Results | None = None) -> str:
    """The whole program, with what its ops returned if it has run."""
    return "\n".join([f"# {_one_line(linked.title)}", *_lines(linked, results)])


def line(linked: Linked, index: int) -> str:
    """One op, without its index: ``openat(AT_FDCWD, "/var/log/app.log", O_WRONLY, 0)``."""
    op = linked.ops[index]
    if op.kind is OpKind.CLONE:
        target = linked.starts[op.child] if op.child is not None else "?"
        return f"clone3({_argument(linked, op, 0)}, {_argument(linked, op, 1)}) -> child goes on at {target}"
    name = op.name if op.name else op.kind.name.lower()
    return f"{name}({', '.join(_argument(linked, op, i) for i in range(len(op.args)))})"


def describe_failure(linked: Linked, failed_index: int, result: int, doing: str = "restoring", where: str = "") -> str:
    """``restoring fd 7 (/var/log/app.log) of pid 1234: openat: No such file or directory``.

    ``result`` is what the op returned; ``where`` is ``of pid 1234``, or ``of pid 1234 on node2``. An index that the
    program does not have (the other side may be out of its mind) is told as such."""
    of = f" {where}" if where else ""
    if not 0 <= failed_index < len(linked.ops):
        return f"{doing} {linked.title}{of}: op {failed_index} is said to have failed, there are {len(linked.ops)}"
    op = linked.ops[failed_index]
    name = op.name if op.name else "clone3" if op.kind is OpKind.CLONE else op.kind.name.lower()
    if op.kind is OpKind.CHECK and result == -errno.EILSEQ:  # the interpreter's own; strerror speaks of characters
        what = "not what it should be"
    elif _is_error(result):
        what = os.strerror(-result)
    elif op.check is Check.EXACT:
        what = f"returned {result}, expected {op.expect}"
    else:
        what = f"returned {result}"
    return f"{doing} {op.label}{of}: {name}: {what}"


def _lines(linked: Linked, results: Results | None) -> Iterator[str]:
    used = {linked.starts[a.branch] + a.index for op in linked.ops for a in op.args if isinstance(a, Slot)}
    failed = _failed_index(linked, results)
    width = max(2, len(str(len(linked.ops) - 1)))
    ends = [*linked.starts[1:], len(linked.ops)]
    for branch, (start, end) in enumerate(zip(linked.starts, ends, strict=True)):
        if branch:
            yield f"# branch {branch}"
        for index in range(start, end):
            op = linked.ops[index]
            name = f"r{index} = " if index in used else ""
            mark = "!" if index == failed else " "
            outcome = ""
            if results is not None and op.kind is not OpKind.END:
                stopped = failed is not None and start <= failed < index < end
                outcome = "  (not run)" if stopped else f" = {_returned(results.of(Slot(branch, index - start)))}"
            yield f"{mark}{index:>{width}}  {name}{line(linked, index)}{outcome}  # {_one_line(op.label)}"


def _failed_index(linked: Linked, results: Results | None) -> int | None:
    """Results knows the op that failed; equal ops may be many, so look for the very one."""
    if results is None or results.failed is None:
        return None
    return next(i for i, op in enumerate(linked.ops) if op is results.failed[0])


def _argument(linked: Linked, op: Op, position: int) -> str:
    arg: Arg = op.args[position]
    if isinstance(arg, Slot):
        return f"r{linked.starts[arg.branch] + arg.index}"
    if isinstance(arg, Load):
        return f"{'i32' if arg.size == 4 else 'u64'}[data+{arg.offset:#x}]"
    if isinstance(arg, Address):
        return f"data+{arg.offset:#x}"
    if isinstance(arg, Buffer):
        start = linked.data_at + arg.offset
        # What a process has written is its own affair, and listings go into logs.
        text = None if op.name in _OWN else _text(linked.image[start : start + arg.size])
        return text if text is not None else f"data+{arg.offset:#x}[{arg.size}]"
    return writer(op.name, position)(arg)


def _text(content: bytes) -> str | None:
    """A quoted C string, if the bytes are one that people can read."""
    if len(content) < 2 or content[-1] or 0 in content[:-1]:
        return None
    text = content[:-1].decode("utf-8", "backslashreplace")
    if not text.isprintable():
        return None
    text = text.replace('"', '\\"')
    return f'"{text}"' if len(text) <= _TEXT_SHOWN else f'"{text[:_TEXT_SHOWN]}"…'


def _one_line(label: str) -> str:
    """Labels hold names of files, and those may hold anything."""
    return printable(label).replace("\n", "\\n")


def _returned(result: int) -> str:
    if _is_error(result):
        return f"-1 {errno.errorcode.get(-result, -result)} ({os.strerror(-result)})"
    return str(result) if -65536 < result < 65536 else hex(result & (1 << 64) - 1)


def _is_error(result: int) -> bool:
    return -MAX_ERRNO <= result < 0
