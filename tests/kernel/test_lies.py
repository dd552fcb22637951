"""A destination that lies: whatever its agent answers, the process runs on here, unharmed, and what was odd is said."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from migrate.errors import Failed, InDoubt, MigrateError
from migrate.transport import frames
from tests.kernel.liar import NAME, Fields, Lie, Source, source
from tests.migration.scene import left_in, states
from tests.tasks import status_field, wait_until
from tests.victims import Victims

ALMOST = "before-commit:fail"  # so that a lie that makes no difference does not move it
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 7, 1 << 40, 1 << 70, 1.5, "", "x", "\0\ud800", [], [1], ["x"], [[]], [None, {}], {}, {"a": 1},
)  # fmt: skip


class Process:
    """Counts into a file, and so notices a pause for ever, an end, and a copy of itself."""

    def __init__(self, victims: Victims, directory: Path) -> None:
        self._log = directory / "count"
        null = subprocess.DEVNULL
        self.popen = subprocess.Popen(
            [victims("counter"), str(self._log), "1", "1000"], stdin=null, stdout=null, stderr=null,
            start_new_session=True,
        )  # fmt: skip
        wait_until("counting", self._log.exists)
        self._maps = Path(f"/proc/{self.pid}/maps").read_text()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def unharmed(self) -> None:
        """An AssertionError unless it counts on, alone, as it was."""
        before = self._log.stat().st_size
        wait_until("counting on", lambda: self._log.stat().st_size > before)
        wait_until("let go", lambda: status_field(self.pid, "TracerPid") == ["0"])
        assert not states(self.pid) & {"T", "t"} and not left_in(self.pid)
        assert Path(f"/proc/{self.pid}/maps").read_text() == self._maps
        numbers = [int(line.split()[1]) for line in self._log.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        assert numbers == list(range(len(numbers)))

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()


@pytest.fixture
def process(victims: Victims, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    # trio keeps the thread in which it starts processes for ten seconds, and would be said to have left it behind
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.1)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Process(victims, tmp_path)
    yield made
    made.close()


def honest(verb: str, fields: Fields, blob: bytes) -> tuple[Fields, bytes]:
    return fields, blob


def instead(wanted: str, number: int = 1, blob: bytes | None = None, **changed: Any) -> Lie:
    """The ``number``-th answer to a verb, with other values; those that are `...` are left out."""
    seen = 0

    def lie(verb: str, fields: Fields, was: bytes) -> tuple[Fields, bytes]:
        nonlocal seen
        seen += verb == wanted
        if verb != wanted or seen != number:
            return fields, was
        fields = {name: value for name, value in {**fields, **changed}.items() if value is not ...}
        return fields, was if blob is None else blob

    return lie


def tell(process: Process, test: Callable[[Source], Any]) -> None:
    async def main() -> None:
        with trio.fail_after(300):
            async with source(process.pid) as made:
                await test(made)

    trio.run(main)


LIES: dict[str, tuple[Lie, str]] = {
    "another version": (instead("hello", agent=99), "speaks version 99 of the protocol, not 1"),
    "no version": (instead("hello", agent=...), "speaks version None"),
    "another machine": (instead("hello", machine="vax"), "is vax, and this is x86_64"),
    "other pages": (instead("hello", page_size=16384), "has pages of 16384 bytes"),
    "no clock": (instead("hello", monotonic_ns="noon"), "lacks monotonic_ns"),
    "no files": (instead("read", blob=b""), "what it tells of its host makes no sense"),
    "garbage in files": (instead("read", lengths=[4] * 9, blob=b"\xff\0ab" * 9), "what it tells of its host makes no"),
    "too many files": (instead("read", lengths=[0] * 99, blob=b""), "what it tells of its host makes no sense"),
    "numbers of threads": (instead("tids", tids=["1", None]), "what it tells of its host makes no sense"),
    "fewer files": (instead("stat", stats=[]), "what it tells of files makes no sense"),
    "files of no size": (instead("stat", stats=...), "stat: the answer lacks 'stats'"),
    "no digests": (instead("digest", digests=[]), "what it tells of the contents of files makes no sense"),
    "other digests": (instead("digest", digests=...), "digest: the answer lacks 'digests'"),
    "no address space": (instead("overseer", maps="nothing to see"), "the address space of its overseer makes no"),
    "half of the results": (instead("run", blob=bytes(100)), "what its overseer found out makes no sense: .* belong"),
    "results of nothing": (instead("run", blob=b""), "what its overseer found out makes no sense"),
    "an op that is none": (instead("run", failed=1 << 40), "op 1099511627776 is said to have failed"),
    "a program that is none": (instead("run", failed=1, program=77), "which program failed makes no sense"),
    "a part that is none": (instead("run", failed=1, part=-9), "which program failed makes no sense"),
    "no outcome": (instead("run", number=3, failed=None), "'failed' of the answer is None, not a whole number"),
    "a refusal": (instead("run", number=2, ok=False, error={"kind": "refused", "problems": []}), "run: no reason was"),
    "no reason": (instead("run", ok=False, error="x"), "a refusal without a reason"),
    "an odd reason": (instead("run", ok=False, error={"errno": "x"}), "why 'run' failed makes no sense"),
    "another question": (instead("run", id=12345), "a reply to a request that was not made: 12345"),
    "a page that differs": (instead("pages", blob=bytes(16)), "memory on the liar is not what it is here: "),
    "half a digest": (instead("pages", blob=b"x" * 17), "what it tells of pages makes no sense"),
    "pages without an end": (instead("pages", next=0), "what it tells of pages makes no sense"),
    "garbage": (lambda verb, fields, blob: b"\0garbage" * 9, "not a frame: it begins with"),
    "too much": (
        lambda verb, fields, blob: frames.HEADER.pack(frames.MAGIC, frames.REPLY, 0, 0, 2**32 - 1, 0),
        "the meta of a REPLY frame is 4294967295 bytes, the limit is",
    ),
    "pages of its own": (
        lambda verb, fields, blob: frames.encode(frames.Frame(frames.PAGES, frames.pages_meta([]))),
        "a PAGES frame was not expected",
    ),
    "orders": (
        lambda verb, fields, blob: frames.encode(frames.Frame(frames.REQUEST, b'{"id": 1, "verb": "kill"}')),
        "a REQUEST frame was not expected",
    ),
}


def test_lies_are_named(process: Process) -> None:
    async def test(made: Source) -> None:
        for name, (lie, says) in LIES.items():
            with pytest.raises(MigrateError, match=says) as caught:
                await made.move(lie, ALMOST, "--verify")
            text = str(caught.value)
            assert NAME in text or "destination" in text, (name, text)
            assert "injected" not in text, name
            process.unharmed()

    tell(process, test)


def test_the_test_itself(process: Process) -> None:
    """Without a lie it goes as far as it is let."""

    async def test(made: Source) -> None:
        with pytest.raises(Failed, match="injected at before-commit"):
            await made.move(honest, ALMOST, "--verify")
        process.unharmed()

    tell(process, test)


@pytest.mark.timeout(300)
def test_any_field_of_any_answer(process: Process) -> None:
    """Each in turn becomes something odd, or is left out; what makes no difference may go as far as it is let."""
    chosen = random.Random(4)

    async def test(made: Source) -> None:
        seen: dict[tuple[str, str], int] = {}

        def notes(verb: str, fields: Fields, blob: bytes) -> tuple[Fields, bytes]:
            for field in fields:
                seen[verb, field] = seen.get((verb, field), 0) + 1
            return fields, blob

        with pytest.raises(Failed, match="injected"):
            await made.move(notes, ALMOST, "--verify")
        assert len(seen) > 40
        for (verb, field), times in seen.items():
            value = chosen.choice((*ODD, ...))
            lie = instead(verb, chosen.randint(1, times), **{field: value})
            try:
                await made.move(lie, ALMOST, "--verify")
            except MigrateError as error:
                assert not isinstance(error, InDoubt) and len(str(error)) > 20, (verb, field, value, error)
            except BaseException as error:
                raise AssertionError(f"{verb}.{field} as {value!r}: {error!r}") from error
        process.unharmed()

    tell(process, test)


@pytest.mark.parametrize(
    "answer",
    [{"failed": "x"}, {"failed": ...}, {"failed": 99}, {"ok": False, "error": {"kind": "refused", "problems": []}}],
    ids=["nonsense", "nothing", "impossible", "refused"],
)
def test_after_commit_a_lie_is_doubt(process: Process, answer: Fields) -> None:
    """It may run there by now, and does. Whatever is said, the copy here does not."""
    overseers: list[int] = []
    about_commit = instead("commit", **answer)

    def lie(verb: str, fields: Fields, blob: bytes) -> Any:
        if verb == "overseer":
            overseers.append(fields["pid"])
        return about_commit(verb, fields, blob)

    async def test(made: Source) -> None:
        with pytest.raises(InDoubt):
            await made.move(lie, "")

    try:
        tell(process, test)
        wait_until("stopped", lambda: states(process.pid) == {"T"})
    finally:
        for overseer in overseers:  # it is the first of its PID namespace, and all of that ends with it
            os.kill(overseer, signal.SIGKILL)
            os.waitpid(overseer, 0)  # orphans of a test are its own
