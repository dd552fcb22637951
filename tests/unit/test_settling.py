"""What becomes of a migration that is prepared when its connection, its agent or its overseer ends: the agent as a
local process, with a stand-in for the restorer that says in the journal what it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from agents import journal, settling
from agents.journal import ABORTED, BEGUN, COMMITTED, DESTINATION, PREPARED, RELEASED, RELEASING, Directory
from migrate.transport.agent import AgentError
from tests.tasks import wait_until
from tests.unit.asking import ID, Side, alive, fake, prepare, side
from tests.unit.test_journal import full

BOOT = journal.boot_id()
COMMIT = (COMMITTED, RELEASING, RELEASED)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def restoree() -> Iterator[subprocess.Popen[bytes]]:
    """Stands in for the process on the destination."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def release(states: Sequence[str], word: str = "ok", rest: str = "") -> bytes:
    """The program of the commit: what the stand-in writes, and then does."""
    lines = [journal.line(state, BOOT).decode() for state in states]
    return b"journal " + json.dumps([lines, word, rest]).encode()


def written() -> list[str]:
    """The states in the journal."""
    with Directory.opened() as directory, directory.open(ID, DESTINATION) as record:
        return [each.state for each in record.records()]


def prepared(
    test: Callable[[Side], Awaitable[None]], tmp_path: Path, program: bytes, restoree: int, lease: float = 60
) -> None:
    """Runs ``test`` with an agent that is prepared."""

    async def main() -> None:
        with trio.fail_after(60):
            async with side(fake(tmp_path / "pages")) as subject:
                ask = subject.agent.request
                await ask("begin", migration=ID, lease=lease, about={"comm": "xz"})
                await ask("overseer", restorees=0)
                await ask("stage", b"ok" + program, release=len(program), revocable=3, restoree=restoree)
                await ask("prepare", parts=[[0, 2]])
                await test(subject)

    trio.run(main)


def settle(how: str) -> str:
    """As a new agent does it."""
    with Directory.opened() as directory:
        return str(settling.settle(directory, ID, how)["outcome"])


async def from_elsewhere(how: str) -> str:
    return await trio.to_thread.run_sync(settle, how)


Process = subprocess.Popen[bytes]


@pytest.mark.parametrize(
    ("written_by_it", "gone", "outcome", "last"),
    [
        ((), False, settling.ROLLED_BACK, ABORTED),
        (COMMIT[:1], False, settling.ROLLED_BACK, ABORTED),
        (COMMIT[:2], False, settling.MOVED, RELEASED),
        (COMMIT[:2], True, settling.IN_DOUBT, RELEASING),
        (COMMIT, True, settling.MOVED, RELEASED),
        (COMMIT, False, settling.MOVED, RELEASED),
    ],
)
def test_the_overseer_dies_in_the_commit(
    tmp_path: Path, restoree: Process, written_by_it: Sequence[str], gone: bool, outcome: str, last: str
) -> None:
    """Before RELEASING the process dies with it; after that, it is what lives that counts."""

    async def test(subject: Side) -> None:
        tied = COMMIT[1] not in written_by_it
        if gone or tied:
            restoree.kill()
            restoree.wait()
        reply = await subject.agent.request("commit")
        assert (reply["outcome"], reply["pid"]) == (outcome, restoree.pid)

    prepared(test, tmp_path, release(written_by_it, "die", "9"), restoree.pid)
    assert written()[-1] == last
    assert settle(settling.ASK) == outcome
    if outcome == settling.IN_DOUBT:
        assert settle(settling.COMMIT) == settle(settling.ABORT) == outcome
        assert settle(settling.FORCE_ABORT) == settle(settling.FORCE_COMMIT) == settling.ROLLED_BACK


def test_what_was_found_out_cannot_be_written_down(restoree: Process) -> None:
    """It lives, its overseer does not: it has moved. When there is room again, the journal says so."""
    people: dict[str, Any] = {"overseer": [restoree.pid, 0], "restoree": settling.person(restoree.pid)}
    with Directory.opened() as directory:
        with directory.create(ID, DESTINATION) as record:
            for state in (PREPARED, *COMMIT[:2]):
                record.append(state, **(people if state == PREPARED else {}))
            size = os.fstat(record.fd).st_size
        with full(size + 10):
            told = settling.settle(directory, ID, settling.ASK)
        assert told["outcome"] == settling.MOVED and "could not be written down" in told["why"]
        assert written()[-1] == RELEASING
        assert settling.settle(directory, ID, settling.ASK)["outcome"] == settling.MOVED
    assert written()[-1] == RELEASED


def test_a_record_of_the_commit_is_torn(tmp_path: Path, restoree: Process) -> None:
    """The disk is full in the middle of one: it does not count, and what is written next is whole."""
    program = b"journal " + json.dumps([[journal.line(COMMITTED, BOOT).decode()[:30]], "fail", "1"]).encode()

    async def test(subject: Side) -> None:
        reply = await subject.agent.request("commit")
        assert (reply["failed"], reply["outcome"]) == (1, settling.ROLLED_BACK)

    prepared(test, tmp_path, program, restoree.pid)
    assert written() == [BEGUN, PREPARED, ABORTED]


@pytest.mark.parametrize("how", [settling.COMMIT, settling.ABORT])
@pytest.mark.parametrize("ending", ["eof", "SIGHUP", "garbage", "nothing"])
def test_asked_from_elsewhere(tmp_path: Path, restoree: Process, ending: str, how: str) -> None:
    """However its connection ends, or seems not to have: it waits to be asked."""

    async def test(subject: Side) -> None:
        agent = subject.stream.process
        if ending == "eof":
            await subject.stream.send_eof()
        elif ending == "garbage":
            await subject.stream.send_all(b"x" * 100)
        elif ending == "SIGHUP":
            agent.send_signal(signal.SIGHUP)
            await subject.agent.request("ping")
        assert await from_elsewhere(settling.ASK) == settling.PREPARED
        expected = settling.MOVED if how == settling.COMMIT else settling.ROLLED_BACK
        assert await from_elsewhere(how) == expected
        assert await from_elsewhere(how) == expected
        if ending in ("eof", "garbage"):
            await agent.wait()
        else:
            await subject.agent.request("ping")

    prepared(test, tmp_path, release(COMMIT), restoree.pid)
    assert written() == ([BEGUN, PREPARED, *COMMIT] if how == settling.COMMIT else [BEGUN, PREPARED, ABORTED])
    assert not list(tmp_path.rglob("*.socket"))


def test_commit_comes_late(tmp_path: Path, restoree: Process) -> None:
    """What was called off from elsewhere stays called off."""

    async def test(subject: Side) -> None:
        assert await from_elsewhere(settling.ABORT) == settling.ROLLED_BACK
        with pytest.raises(Exception, match="called off") as caught:
            await subject.agent.request("commit")
        assert getattr(caught.value, "kind", "") in ("not-committed", "pages")

    prepared(test, tmp_path, release(COMMIT), restoree.pid)
    assert written() == [BEGUN, PREPARED, ABORTED]


@pytest.mark.parametrize("connected", [False, True])
def test_the_lease_ends(tmp_path: Path, restoree: Process, connected: bool) -> None:
    async def test(subject: Side) -> None:
        if not connected:
            await subject.stream.send_eof()
        await subject.stream.process.wait()

    prepared(test, tmp_path, release(COMMIT), restoree.pid, lease=0.5)
    assert written() == [BEGUN, PREPARED, ABORTED]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_agent_is_killed(tmp_path: Path, restoree: Process, number: signal.Signals) -> None:
    """Its overseer goes with it, and so does the process."""

    async def test(subject: Side) -> None:
        subject.stream.process.send_signal(number)
        await subject.stream.process.wait()
        restoree.kill()  # as the kernel does it for a real one
        restoree.wait()
        assert await from_elsewhere(settling.COMMIT) == settling.ROLLED_BACK

    prepared(test, tmp_path, release(COMMIT), restoree.pid)
    assert written() == [BEGUN, PREPARED, ABORTED]


def test_the_overseer_dies_while_it_waits(tmp_path: Path, restoree: Process) -> None:
    async def test(subject: Side) -> None:
        overseer = await prepare(subject, b"ok", release(COMMIT))
        await subject.stream.send_eof()
        assert await from_elsewhere(settling.ASK) == settling.PREPARED
        os.kill(overseer, signal.SIGKILL)
        await subject.stream.process.wait()

    prepared(test, tmp_path, release(COMMIT), restoree.pid)
    assert written()[-1] == ABORTED


@pytest.mark.parametrize(
    ("states", "outcome"),
    [
        ((BEGUN,), settling.ROLLED_BACK),
        ((BEGUN, PREPARED), settling.ROLLED_BACK),
        ((BEGUN, PREPARED, COMMITTED), settling.MOVED),
        ((BEGUN, PREPARED, COMMITTED, RELEASING), settling.MOVED),
        ((BEGUN, PREPARED, *COMMIT), settling.MOVED),
        ((BEGUN, PREPARED, ABORTED), settling.ROLLED_BACK),
    ],
)
def test_the_host_was_started_anew(states: Sequence[str], outcome: str) -> None:
    """What came after COMMITTED may not have reached the disk, so the process may have run."""
    with Directory.opened() as directory:
        directory.create(ID, DESTINATION).close()
        path = Path(directory.path, f"{ID}.destination")
    path.write_bytes(b"".join(journal.line(state, "another boot") for state in states))
    assert settle(settling.COMMIT) == outcome


def test_the_agent_says_what_it_does(tmp_path: Path, restoree: Process) -> None:
    """In a log that goes with its journal."""
    program = release(COMMIT)

    async def main() -> None:
        async with side(fake(tmp_path / "pages")) as subject:
            ask = subject.agent.request
            about = {"comm": "xz", "pid": 812, "source": "node1"}
            path = Path((await ask("begin", migration=ID, lease=60, about=about, log=True))["log"])
            assert path.stat().st_mode & 0o777 == 0o600
            await ask("overseer", restorees=0)
            await ask("stage", b"ok" + program, release=len(program), revocable=3, restoree=restoree.pid)
            await ask("prepare", parts=[[0, 2]])
            with pytest.raises(AgentError, match="no such verb"):
                await ask("nonsense")
            await from_elsewhere(settling.ASK)
            await ask("commit")
            await ask("bye")

    trio.run(main)
    lines = [json.loads(line) for line in (tmp_path / "migrate" / "journal" / f"{ID}.log").read_text().splitlines()]
    assert {(each["id"], each["pid"]) for each in lines} == {(ID, 812)}
    told = [each.get("verb") or each.get("state") or each["event"] for each in lines]
    assert told == [
        *("begun", "begin", "overseer", "stage", "prepared", "prepare", "nonsense", "asked"),
        *("released", "commit", "ended"),
    ]
    assert (lines[0]["comm"], lines[0]["source"]) == ("xz", "node1") and "no such verb" in lines[6]["error"]
    elapsed = [each["elapsed"] for each in lines]
    assert elapsed == sorted(elapsed) and all(each["seconds"] >= 0 for each in lines if each["event"] == "request")
    with Directory.opened() as directory:
        directory.remove(ID, DESTINATION)
    assert not list((tmp_path / "migrate" / "journal").iterdir())


def test_nothing_is_known() -> None:
    assert settle(settling.COMMIT) == settling.UNKNOWN


def test_fates() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        person = settling.person(process.pid)
        assert settling.fate(*person) == settling.LIVES
        assert settling.fate(process.pid, person[1] + 100) == settling.GONE, "another one with its number"
        process.send_signal(signal.SIGSTOP)
        wait_until("stopped", lambda: settling.stat_fields(f"/proc/{process.pid}/stat")[0] == "T")
        assert settling.fate(*person) == settling.LIVES
        process.kill()
        wait_until("a zombie", lambda: not alive(process.pid))
        assert settling.fate(*person) == settling.GONE
    assert settling.fate(*person) == settling.GONE


def test_old_journals_are_removed_but_not_one_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    with Directory.opened() as directory:
        with directory.create(ID, journal.SOURCE, pid=1) as ended:
            ended.append(journal.DONE)
        other = journal.new_id()
        with directory.create(other, journal.SOURCE, pid=1) as doubtful:
            doubtful.append(journal.INTENT, halted=True)
        assert {each["outcome"] for each in settling.survey(directory)} == {settling.IN_DOUBT, settling.MOVED}
        monkeypatch.setattr(settling, "KEPT", -1.0)
        assert [(each["id"], each["outcome"]) for each in settling.survey(directory)] == [(other, settling.IN_DOUBT)]
        assert directory.names() == [(other, journal.SOURCE)]


def test_another_host_shares_the_directory() -> None:
    """Whether that one was started anew cannot be told from here."""
    with Directory.opened() as directory:
        directory.create(ID, DESTINATION).close()
        path = Path(directory.path, f"{ID}.destination")
    about = {BEGUN: {"host": "elsewhere"}}
    lines = (journal.line(state, "another boot", **about.get(state, {})) for state in (BEGUN, PREPARED))
    path.write_bytes(b"".join(lines))
    with Directory.opened() as directory:
        told = settling.settle(directory, ID, settling.ABORT)
    assert told["outcome"] == settling.IN_DOUBT and "elsewhere" in told["why"]
