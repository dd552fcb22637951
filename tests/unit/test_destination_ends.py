"""The destination agent: how it ends, and what ends with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from migrate.engine.program import OpKind, Program
from migrate.transport import frames
from migrate.transport.agent import AgentError, ConnectionLost
from migrate.transport.frames import PAGE, Run
from tests.tasks import children
from tests.unit.asking import ID, Side, alive, fake, prepare, wait_gone, with_agent


@pytest.mark.parametrize(
    ("program", "says"),
    [(b"die 9", r"killed by signal 9 \(Killed\)"), (b"exit 3", r"exited with status 3 \(it did not understand")],
)
def test_a_restorer_that_dies_at_work(pages: Path, program: bytes, says: str) -> None:
    async def test(subject: Side) -> None:
        await subject.agent.request("overseer", restorees=1)
        with pytest.raises(AgentError, match=says) as caught:
            await subject.agent.request("run", program, parts=[[0, len(program)]])
        assert caught.value.kind == "restorer-died"
        await subject.agent.request("hello")

    with_agent(test, fake(pages))


def test_a_restorer_that_dies_idle_is_reported(pages: Path) -> None:
    async def test(subject: Side) -> None:
        pid = (await subject.agent.request("overseer", restorees=1))["pid"]
        os.kill(pid, signal.SIGKILL)
        while not subject.events:
            await trio.sleep(0.001)
        assert subject.events[0]["event"] == "restorer-died" and "killed by signal 9" in subject.events[0]["message"]
        with pytest.raises(AgentError, match="killed by signal 9"):
            await subject.agent.request("run", b"x", parts=[[0, len(b"x")]])
        await subject.agent.request("abort")
        await subject.agent.request("overseer", restorees=0)

    with_agent(test, fake(pages))


def test_a_restorer_that_dies_in_a_page_frame(pages: Path) -> None:
    """How much it had read nobody knows, so the agent gives up, and says why."""

    async def test(subject: Side) -> None:
        pid = (await subject.agent.request("overseer", restorees=1))["pid"]
        os.kill(pid, signal.SIGSTOP)
        await subject.agent.send_pages(0, 0, frames.pages_meta([Run(0x1000, 256)]), bytes(256 * PAGE))
        pending = await subject.agent.submit("sync")
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(AgentError, match="killed by signal 9") as caught:
            await pending.reply()
        assert caught.value.kind == "restorer-died"
        assert await subject.stream.process.wait() == 1

    with_agent(test, fake(pages))


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", frames.HEADER.pack(b"MIG1", 3, 0, 0, 0, 0)])
def test_garbage_ends_it_in_words(garbage: bytes) -> None:
    async def test(subject: Side) -> None:
        await subject.stream.send_all(garbage)
        error = await subject.agent.wait_lost()
        assert isinstance(error, AgentError) and error.kind == "protocol"
        assert "not a frame" in str(error) or "only 0 bytes" in str(error)
        with pytest.raises(AgentError):
            await subject.agent.request("hello")

    with_agent(test)


@pytest.mark.parametrize("how", ["eof", "SIGTERM", "SIGHUP", "SIGKILL", "bye"])
@pytest.mark.parametrize("busy", [False, True])
def test_everything_ends_with_the_agent(pages: Path, how: str, busy: bool) -> None:
    pids: list[int] = []

    async def test(subject: Side) -> None:
        pids.append((await subject.agent.request("overseer", restorees=1))["pid"])
        if busy:
            await subject.agent.submit("run", b"hang", parts=[[0, len(b"hang")]])
            await trio.sleep(0.1)
        if how == "bye":
            await subject.agent.request("bye")
        elif how == "eof":
            await subject.stream.aclose()
        else:
            subject.stream.process.send_signal(signal.Signals[how])
        await subject.stream.process.wait()

    if not (busy and how == "bye"):  # it would never come to that
        with_agent(test, fake(pages))
        wait_gone(pids[0])


def test_a_restorer_that_hangs(pages: Path) -> None:
    """Also when there is something to be read all the while, as the pings of the coordinator."""
    pids: list[int] = []

    async def test(subject: Side) -> None:
        pids.append((await subject.agent.request("overseer", restorees=1))["pid"])
        pending = await subject.agent.submit("run", b"hang", parts=[[0, len(b"hang")]])
        await subject.agent.submit("ping")
        with pytest.raises(AgentError, match="the overseer hangs: no answer within 0.3 s") as error:
            await pending.reply()
        assert error.value.kind == "restorer-died"
        await subject.agent.request("abort")
        wait_gone(pids[0])

    with_agent(test, fake(pages), "overseer.PATIENCE = 0.3")


@pytest.mark.parametrize("busy", [False, True])
def test_a_silent_coordinator(pages: Path, busy: bool) -> None:
    """The connection does not end, as when a cable is pulled, and nothing comes over it."""
    pids: list[int] = []

    async def test(subject: Side) -> None:
        pids.append((await subject.agent.request("overseer", restorees=1))["pid"])
        if busy:
            await subject.agent.submit("run", b"hang", parts=[[0, len(b"hang")]])
        assert await subject.stream.process.wait() == 1
        wait_gone(pids[0])

    with_agent(test, fake(pages), "conversation.LEASE = overseer.LEASE = 2")


def test_silence_in_the_middle_of_a_message(pages: Path) -> None:
    """A cable that is pulled while something is on its way."""
    whole = frames.encode(frames.Frame(frames.REQUEST, frames.json_meta({"id": 9, "verb": "hello"}), bytes(100)))
    for cut in (5, 20, len(whole) - 1):

        async def test(subject: Side, cut: int = cut) -> None:
            pid = (await subject.agent.request("overseer", restorees=1))["pid"]
            await subject.stream.send_all(whole[:cut])
            assert await subject.stream.process.wait() == 1
            wait_gone(pid)

        with_agent(test, fake(pages), "conversation.LEASE = overseer.LEASE = 2")


def test_lost_agent_is_told(pages: Path) -> None:
    async def test(subject: Side) -> None:
        await subject.agent.request("overseer", restorees=1)
        pending = await subject.agent.submit("run", b"hang", parts=[[0, len(b"hang")]])
        subject.stream.process.kill()
        with pytest.raises(ConnectionLost, match="the destination (has gone|broke)"):
            await pending.reply()
        with pytest.raises(ConnectionLost):
            await subject.agent.request("hello")

    with_agent(test, fake(pages))


# The real restorer


def test_a_write_that_faults_ends_it_in_words() -> None:
    async def test(subject: Side) -> None:
        await subject.agent.request("overseer", restorees=0)
        await subject.agent.send_pages(0, 0, frames.pages_meta([Run(0x1000_0000, 1)]), bytes(PAGE))
        with pytest.raises(AgentError, match="Bad address"):
            await subject.agent.request("sync")

    with_agent(test)


def test_committed_overseer_outlives_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    pids: list[int] = []

    async def test(subject: Side) -> None:
        await subject.agent.request("begin", migration=ID, lease=9, about={})
        pids.append((await subject.agent.request("overseer", restorees=0))["pid"])
        assert os.readlink(f"/proc/{pids[0]}/fd/4").endswith(f"{ID}.destination")
        program, nothing = Program("release"), Program("nothing")
        program.syscall("prctl", 1, 0, label="outlive the agent")
        program.op(OpKind.PARK, 3, label="stay")
        nothing.syscall("getpid", label="nothing")
        assert await prepare(subject, nothing.link().image, program.link().image) == pids[0]
        assert (await subject.agent.request("commit"))["outcome"] == "moved"
        assert (await subject.agent.request("commit"))["outcome"] == "moved", "asked again, as after a lost answer"
        with pytest.raises(AgentError, match="too late"):
            await subject.agent.request("abort")
        await subject.agent.request("bye")
        assert await subject.stream.process.wait() == 0

    try:
        with_agent(test)
        assert alive(pids[0])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            wait_gone(pid)


def test_overseer_that_cannot_start() -> None:
    async def test(subject: Side) -> None:
        with pytest.raises(AgentError, match="execve of /no/such/program: No such file") as caught:
            await subject.agent.request("overseer", restorees=1)
        assert caught.value.errno == 2
        assert not children(subject.stream.process.pid)

    with_agent(test, ["/no/such/program"])
