"""Whether a process has children: asked from inside, and seen from outside."""

from __future__ import annotations

import os

from migrate.engine.kernel.proc import Proc
from migrate.engine.kinds import children
from migrate.engine.program import Program
from migrate.pie import local


def _has() -> bool:
    """Asked of this very process."""
    program = Program("children")
    decode = children.ask(program)
    return decode(local.run(program.link()))


def _tell() -> str:
    """What is seen before there is a child, while it lives, when it has ended, and when it has been waited for."""
    said = [f"{_has()}"]
    reader, writer = os.pipe()
    born = os.fork()
    if not born:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    with Proc(os.getpid()) as proc:
        said.append(f"{_has()} {children.seen(proc) == [born]}")
        os.close(writer)
        os.waitid(os.P_PID, born, os.WEXITED | os.WNOWAIT)
        said.append(f"{_has()} {children.seen(proc) == [born]}")
        os.waitpid(born, 0)  # it is there still: to be asked changes nothing
        said.append(f"{_has()} {children.seen(proc) == []}")
    return ", ".join(said)


def test_children_living_and_ended() -> None:
    reader, writer = os.pipe()
    child = os.fork()  # the tests may have children of their own
    if not child:
        try:
            os.write(writer, _tell().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    assert said == "False, True True, True True, False True"


def test_refusal() -> None:
    assert "has children (5, 6), and" in str(children.refusal("pid 4", [5, 6]))
    assert "has children, and" in str(children.refusal("pid 4", []))
