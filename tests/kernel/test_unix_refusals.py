"""What unix sockets cannot be moved is told by name; what is queued is read without being taken."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable

import pytest

from migrate.engine.kinds.descriptor_reader import DescriptorReader
from migrate.engine.kinds.opened import DumpOptions
from migrate.engine.kinds.unix import Message, Sender, UnixPair
from tests.kernel.descriptor_bed import FROZEN, child, libc, put
from tests.kernel.test_descriptors_table import held, only

UNIX = socket.AF_UNIX


def pair(kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    """At 10 and 11, as sockets that do not close them."""
    first, second = socket.socketpair(UNIX, kind)
    put(first.detach(), 10)
    put(second.detach(), 11)
    return socket.socket(fileno=os.dup(10)), socket.socket(fileno=os.dup(11))


def with_rights() -> None:
    first, second = pair()
    with first, second:
        alone = libc.eventfd(0, 0)
        first.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [10, alone]))])
        os.close(alone)


def receive() -> tuple[bytes, int]:
    with socket.socket(fileno=os.dup(11)) as found:
        content, fds, _, _ = socket.recv_fds(found, 10, 5, socket.MSG_DONTWAIT)
        for fd in fds:
            os.close(fd)
        return content, len(fds)


def with_urgent_data() -> None:
    first, second = pair()
    with first, second:
        first.send(b"xy", socket.MSG_OOB)


def with_filter() -> None:
    first, second = pair(socket.SOCK_DGRAM)
    with first, second:
        code = array.array("B", b"\x06\0\0\0\xff\xff\0\0")  # BPF_RET | BPF_K
        program = array.array("Q", [1, code.buffer_info()[0]])
        first.setsockopt(socket.SOL_SOCKET, 26, program.tobytes())


def not_accepted() -> None:
    listening = socket.socket(UNIX)
    listening.bind(b"\0migrate-test-%d" % os.getpid())
    listening.listen()
    put(listening.detach(), 10)
    waiting = socket.socket(UNIX)
    waiting.connect(b"\0migrate-test-%d" % os.getpid())
    waiting.send(b"x")
    put(waiting.detach(), 11)


def not_accepted_and_gone() -> None:
    not_accepted()
    os.close(11)


def left_by_its_peer() -> None:
    first, second = pair(socket.SOCK_DGRAM)
    other = socket.socket(UNIX, socket.SOCK_DGRAM)
    with first, second:
        other.bind(b"\0migrate-test-%d" % os.getpid())
        second.connect(other.getsockname())
        first.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    put(other.detach(), 12)


def of_a_stranger() -> None:
    receiver = socket.socket(UNIX, socket.SOCK_DGRAM)
    receiver.bind(b"\0migrate-test-%d" % os.getpid())
    with socket.socket(UNIX, socket.SOCK_DGRAM) as sender:
        sender.bind(b"\0migrate-stranger")
        sender.sendto(b"x", receiver.getsockname())
    put(receiver.detach(), 10)


def in_another_namespace() -> None:
    first, second = pair()
    first.close()
    second.close()
    os.close(11)
    assert libc.unshare(0x40000000) == 0  # CLONE_NEWNET


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_urgent_data, {11: "unix socket with urgent data in it (MSG_OOB)"}),
        (with_filter, {10: "unix socket with a packet filter (SO_ATTACH_FILTER)"}),
        (
            not_accepted,
            {11: "unix socket that has sent something over a connection that has not been accepted yet"},
        ),
        (
            not_accepted_and_gone,
            {10: "unix socket with connections that are closed by now, not accepted yet"},
        ),
        (
            left_by_its_peer,
            {10: "unix socket connected to one that is not connected to it and is connected to another one"},
        ),
        (in_another_namespace, {10: "unix socket of another network namespace"}),
    ],
)
@pytest.mark.parametrize("frozen", [True, False])
def test_refused_by_name(make: Callable[[], None], words: dict[int, str], frozen: bool) -> None:
    with child() as source:
        source.do(make)
        _, problems = source.dump(FROZEN if frozen else DumpOptions())
        found = {int(problem.where.split()[-1]): problem.what for problem in problems}
        assert found == words
        assert all(problem.advice for problem in problems)


def test_datagrams_of_an_abstract_name_are_seen_when_it_stands_still() -> None:
    with child() as source:
        source.do(of_a_stranger)
        assert source.dump(DumpOptions())[1] == []
        _, (problem,) = source.dump(FROZEN)
        what = "unix socket with a datagram from migrate-stranger, an abstract name, which is not connected to it"
        assert problem.what == what


def test_descriptors_that_only_a_queue_has_are_seen_when_it_stands_still() -> None:
    """We keep none of them, and take none away."""
    with child() as source:
        source.do(with_rights)
        assert source.dump(DumpOptions())[1] == []
        ours = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            _, (problem,) = source.dump(FROZEN)
            waits = "unix socket in which a descriptor waits to be received (SCM_RIGHTS)"
            assert problem.what == f"{waits}: eventfd that nobody else has open" and problem.where.endswith("fd 11")
        assert len(os.listdir("/proc/self/fd")) == ours
        assert source.do(receive) == (b"x", 2)


def queue_messages() -> None:
    first, second = pair(socket.SOCK_SEQPACKET)
    with first, second:
        for text in (b"one", b"", b"three"):
            second.send(text)


def take() -> list[bytes]:
    with socket.socket(fileno=os.dup(10)) as found:
        found.settimeout(0)
        return [found.recv(100) for _ in range(3)]


def test_reading_takes_nothing() -> None:
    """Nor does it change options; but an empty message is passed over the second time, which is noticed."""
    with child() as source:
        source.do(queue_messages)
        table, problems = source.dump()
        assert problems == []
        (made,) = table.objects
        assert isinstance(made, UnixPair)
        messages = tuple(Message(text, None) for text in (b"one", b"", b"three"))
        assert {end.waiting for end in made.ends} == {(), messages}
        _, problems = source.dump()
        what = "unix socket with empty messages in it that have been looked at (MSG_PEEK)"
        assert [problem.what for problem in problems] == [what]
        assert source.do(take) == [b"one", b"", b"three"]
        table, problems = source.dump()
        assert problems == []


def with_sender() -> None:
    first, second = pair()
    with first, second:
        second.send(b"before ")
        first.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        second.send(b"and after")


def test_senders_are_noted() -> None:
    with child() as source:
        source.do(with_sender)
        table, problems = source.dump()
        assert problems == []
        (made,) = table.objects
        assert isinstance(made, UnixPair)
        expected = (Message(b"before ", None), Message(b"and after", Sender(source.pid, os.getuid(), os.getgid())))
        assert expected in [end.waiting for end in made.ends]
        assert {end.peer.pid for end in made.ends} == {source.pid}


def test_the_other_end_is_outside() -> None:
    first, second = socket.socketpair()
    with first, second:
        one, two = first.fileno(), second.fileno()
        with held(lambda: only({one: 10})) as (other, _), held(lambda: only({two: 10})) as (proc, pidfd):
            _, problems = DescriptorReader(proc, pidfd, frozenset({os.getpid()})).dump(FROZEN)
            (problem,) = [problem for problem in problems if problem.where.endswith("fd 10")]
            assert problem.what == f"unix socket to process {other.pid}" and "only standard streams" in problem.advice
