"""Actions, alternate stacks and queues: put back in another process, then looked at by it and from outside."""

from __future__ import annotations

import os
import signal
import struct
import time

from migrate.engine.kinds.signals import Action, SignalActions, SignalQueue
from migrate.engine.program import Program
from tests.kernel.actors import Actor, collect, seen, syscall

SA = 0x04000000 | 0x10000000 | 0x4 | 0x08000000  # RESTORER, RESTART, SIGINFO, ONSTACK


def _set_actions() -> None:
    """Handlers at odd addresses (nothing is delivered), ignored and default ones. Not through libc, which would put its
    own restorer there and would not let 32 and 33 be touched."""
    for number in range(1, 65):
        if number in (9, 19):
            continue
        kind = number % 4
        handler = (0, 1, 0x1000 + number, 0x7000_0000_0000 + number)[kind]
        flags = SA if kind > 1 else 0
        action = struct.pack("<QQQQ", handler, flags, 0x2000 + number if flags else 0, (1 << (number - 1)) & ~0x40100)
        syscall("rt_sigaction", number, action, 0, 8)


def test_actions() -> None:
    with Actor() as source, Actor() as there:
        source.call(_set_actions)
        before = collect(source).process.actions
        assert before.actions[33] == Action(0x1000 + 34, SA, 0x2000 + 34, 1 << 33)
        assert before.actions[8] == before.actions[18] == Action(0, 0, 0, 0)
        program = Program("actions")
        before.restore(program)
        there.run(program)
        assert collect(there).process.actions == before
        assert seen(there, "SigIgn", "SigCgt") == seen(source, "SigIgn", "SigCgt")


def test_defaults_replace_what_is_inherited() -> None:
    """Python ignores SIGPIPE, and so would all that it starts."""
    with Actor() as there:
        assert there.call(signal.getsignal, signal.SIGPIPE) == signal.SIG_IGN
        program = Program("actions")
        SignalActions.reset(program)
        there.run(program)
        assert seen(there, "SigIgn", "SigCgt") == {"SigIgn": "0" * 16, "SigCgt": "0" * 16}


def _set_stack(pointer: int, flags: int, size: int) -> None:
    syscall("sigaltstack", struct.pack("<QIIQ", pointer, flags, 0, size), 0)


def test_alternate_stack() -> None:
    for stack in ((0x5555_0000, 0, 0x8000), (0x5555_0000, 1 << 31, 0x8000), (0, 2, 0)):  # SS_AUTODISARM, SS_DISABLE
        with Actor() as source, Actor() as there:
            there.call(_set_stack, 0x6666_0000, 0, 0x9000)
            source.call(_set_stack, *stack)
            before = collect(source).thread.stack
            assert (before.pointer, before.flags, before.size) == stack
            program = Program("stack")
            before.restore(program)
            there.run(program)
            assert collect(there).thread.stack == before


def _queue_all_sorts() -> None:
    """Legacy and real-time signals, from the user, the kernel, a timer and sigqueue; for the process and the thread."""
    me = os.getpid()
    os.kill(me, signal.SIGUSR1)
    for value in (7, 8, 9):
        record = struct.pack("<iiiiiiQ", 40, 0, -1, 0, me, os.getuid(), value).ljust(128, b"\0")  # SI_QUEUE
        syscall("rt_sigqueueinfo", me, 40, record)
    syscall("tgkill", me, me, signal.SIGUSR2)
    syscall("tgkill", me, me, 50)
    syscall("tgkill", me, me, 50)
    os.kill(me, 45)
    child = os.fork()  # SIGCHLD by the kernel: CLD_EXITED
    if child == 0:
        os._exit(3)
    os.waitpid(child, 0)
    event = struct.pack("<Qiii44x", 0xABCDEF, 60, 0, 0)
    ident = bytearray(4)
    syscall("timer_create", 1, event, ident)
    syscall("timer_settime", int.from_bytes(ident, "little"), 0, struct.pack("<qqqq", 0, 0, 0, 1), 0)
    while 60 not in signal.sigpending():
        time.sleep(0.001)
    syscall("timer_delete", int.from_bytes(ident, "little"))


def _codes(queue: SignalQueue) -> list[tuple[int, int]]:
    return [struct.unpack_from("<i4xi", record) for record in queue.records]


def test_queues() -> None:
    with Actor() as source, Actor() as there:
        source.call(_queue_all_sorts)
        before = collect(source)
        usual = [(10, 0), (40, -1), (40, -1), (40, -1), (45, 0), (17, 1)]
        # since "posix-timers: Embed sigqueue in struct k_itimer" (6.13) a deleted timer takes its signal along
        assert _codes(before.process.queue) in (usual, [*usual, (60, -2)])
        assert _codes(before.thread.queue) == [(12, -6), (50, -6), (50, -6)]
        program = Program("queues")
        before.process.queue.restore(program)
        before.thread.queue.restore(program, there.pid)
        there.run(program)
        after = collect(there)
        assert after.process.queue == before.process.queue
        assert after.thread.queue == before.thread.queue
        assert seen(there, "SigPnd", "ShdPnd") == seen(source, "SigPnd", "ShdPnd")


def _queue_timer_signal() -> None:
    event = struct.pack("<Qiii44x", 0xABCDEF, 60, 0, 0)
    syscall("timer_create", 1, event, bytearray(4))
    syscall("timer_settime", 0, 0, struct.pack("<qqqq", 0, 0, 0, 1), 0)
    while 60 not in signal.sigpending():
        time.sleep(0.001)


def _take(number: int) -> tuple[int, int, bytes]:
    info = bytearray(128)
    got = syscall("rt_sigtimedwait", struct.pack("<Q", 1 << (number - 1)), info, struct.pack("<qq", 0, 0), 8)
    return got, struct.unpack_from("<i", info, 8)[0], bytes(info)


def test_signal_of_a_timer_is_delivered_with_its_value() -> None:
    with Actor() as source, Actor() as there:
        source.call(_queue_timer_signal)
        before = collect(source).process.queue
        assert _codes(before) == [(60, -2)]
        program = Program("queue")
        before.restore(program)
        there.run(program)
        number, code, info = there.call(_take, 60)
        assert (number, code, struct.unpack_from("<Q", info, 24)[0]) == (60, -2, 0xABCDEF)


def test_ignored_signals_stay_queued_while_blocked() -> None:
    with Actor() as source, Actor() as there:
        source.call(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
        source.call(_raise, signal.SIGUSR1)
        before = collect(source).process
        assert _codes(before.queue) == [(10, 0)]
        program = Program("actions, then the queue")
        SignalActions.reset(program)
        before.actions.restore(program)
        before.queue.restore(program)
        there.run(program)
        assert collect(there).process.queue == before.queue


def _raise(number: int) -> None:
    os.kill(os.getpid(), number)


def test_nothing_pending_needs_no_op() -> None:
    with Actor() as source:
        task = collect(source)
        program = Program("queues")
        task.process.queue.restore(program)
        task.thread.queue.restore(program, source.pid)
        assert len(program) == 0
