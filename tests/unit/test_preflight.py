"""What of the destination stands in the way: its clocks, and what it does not let us do with terminals."""

from __future__ import annotations

import platform
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from migrate.destination import Facts, Inside
from migrate.engine.clocks import Clocks
from migrate.engine.kernel.timens import Offsets
from migrate.engine.kinds.needs import FILE, TERMINAL, FileNeed
from migrate.engine.preview import Preview
from migrate.preflight import clock_problems, file_problems, host_problems
from migrate.transport.agent import Reply


def given(offsets: Offsets | None, there: Clocks) -> tuple[Preview, Facts]:
    """Two hosts that differ in nothing else."""
    hello = {"machine": platform.machine(), "page_size": 4096, "uid": 0}
    task = SimpleNamespace(effective=(1 << 40) - 1)
    here = Clocks("ours", 1000, 2000)
    facts = SimpleNamespace(hello=hello, task=task, offsets=offsets, here=here, there=there, memory_available=1 << 40)
    return cast(Preview, SimpleNamespace(clock_offsets=(0, 0), resident=0)), cast(Facts, facts)


OTHER_BOOT, SAME_BOOT = Clocks("theirs", 10, 20), Clocks("ours", 1000, 2000)


@pytest.mark.parametrize(
    ("offsets", "there", "no_clock", "found"),
    [
        (None, OTHER_BOOT, False, ["destination kernel"]),
        (None, OTHER_BOOT, True, []),
        (None, SAME_BOOT, False, []),
        (Offsets(), OTHER_BOOT, False, []),
    ],
)
def test_clocks_that_cannot_go_on(offsets: Offsets | None, there: Clocks, no_clock: bool, found: list[str]) -> None:
    problems = host_problems(*given(offsets, there), no_clock)
    assert [problem.where for problem in problems] == found
    assert all("--no-clock" in problem.advice for problem in problems)


@pytest.mark.parametrize(
    ("reason", "no_clock", "count"), [("unshare: No space left", False, 1), ("x: y", True, 0), ("", False, 0)]
)
def test_a_time_namespace_that_is_not_given(reason: str, no_clock: bool, count: int) -> None:
    problems = clock_problems(cast(Inside, SimpleNamespace(no_clocks=reason)), no_clock)
    assert len(problems) == count
    assert all(reason in problem.what and "--no-clock" in problem.advice for problem in problems)


class Agents:
    """Both, who have no files. ``errno``: of typing on the destination."""

    name = "the other"

    def __init__(self, errno: int) -> None:
        self.errno = errno
        self.asked: list[str] = []

    async def request(self, verb: str, **arguments: Any) -> Reply:
        self.asked.append(verb)
        stats = [{"errno": 2} for _ in arguments.get("paths", ())]
        return Reply({"stats": stats, "digests": [], "errno": self.errno}, b"", self.name)

    async def submit(self, verb: str, **arguments: Any) -> Any:
        reply = await self.request(verb, **arguments)

        async def answer() -> Reply:
            return reply

        return SimpleNamespace(reply=answer)

    async def stat(self, paths: list[str]) -> dict[str, dict[str, int]]:
        return {path: {"errno": 2} for path in paths}

    agent = property(lambda self: self)


@pytest.mark.parametrize(("errno", "kind", "refused"), [(5, TERMINAL, True), (0, TERMINAL, False), (5, FILE, False)])
def test_a_terminal_that_could_not_be_typed_into(errno: int, kind: str, refused: bool) -> None:
    agents = cast(Any, Agents(errno))
    needed = [FileNeed("pid 812 fd 3", "/dev/pts/0", kind)]
    problems, _ = trio.run(file_problems, needed, agents, agents, False)
    assert ("typing" in agents.asked) == (kind == TERMINAL)
    assert any("legacy_tiocsti" in problem.advice for problem in problems) == refused
