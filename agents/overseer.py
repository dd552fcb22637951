"""The overseer as the agent sees it: a child process that runs programs, and a control socket for each restorer.

The overseer is the first restorer: a static executable around the blob, started from a memfd. Its descriptors: 0 is
the agent's own standard input, from which it reads the contents of pages; 1 and 2 are /dev/null; 3 is its control
socket; 4 is the journal of the migration, open for appending, or /dev/null; 5, 6, … are the control sockets of the
restorees that it will create, and behind them, where a restoree is to have them, come three standard streams. All of
them end with the agent (PR_SET_PDEATHSIG, and PTRACE_O_EXITKILL for the restorees) until a program of the commit says
otherwise.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Sequence
from typing import NoReturn

from agents import libc

RUN, RUN_RETURN, PAGES = 1, 2, 3  # migrate/pie/program.h
_MESSAGE = struct.Struct("<IIQ")  # type, length of the meta, length of the blob
_ANSWER = struct.Struct("<iIq")  # op or run that failed or -1, 0, result
_NO_RUNS = struct.pack("<II", 0, 0)
_ENDINGS = {2: "its answer was not taken", 3: "it did not understand a message", 4: "no memory for its buffer"}
PATIENCE = 30.0  # seconds that programs may take: they map and open, and never wait for anything but a file system
GRACE = 10.0  # seconds that a program may go on for after the connection has ended
LEASE = 60.0  # seconds without a sign of the coordinator after which it is taken for gone
_KILL_PATIENCE = 10.0  # seconds until killed processes must be gone


class RestorerDied(Exception):
    """The overseer or a restoree has ended, or will never answer."""


class OutOfStep(Exception):
    """A restorer failed in the middle of a page frame: nobody knows where the next one begins."""


class ConnectionEnded(Exception):
    """The coordinator is gone while a restorer works."""


class Overseer:
    """One overseer and the restorees that its programs create. Slot 0 is the overseer, k the k-th restoree."""

    def __init__(self, pid: int, controls: list[socket.socket], data_fd: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self._controls = controls
        self._data_fd = data_fd
        self._status: int | None = None

    @classmethod
    def start(
        cls,
        executable: int | str,
        argv: Sequence[str],
        restorees: int,
        new_pid_namespace: bool,
        data_fd: int,
        journal: int | None = None,
        streams: Sequence[int] = (),
    ) -> Overseer:
        """Starts it and waits until it answers.

        :param executable: a descriptor or a path.
        :param journal: the descriptor that becomes its 4.
        :param streams: those that come after the control sockets.
        :param new_pid_namespace: it becomes pid 1 of a new PID namespace, and sees it in /proc.
        :raises OSError: what could not be done, in words. RestorerDied: it ended before it answered.
        """
        pairs = [socket.socketpair() for _ in range(restorees + 1)]
        told, tells = os.pipe()
        try:
            # A signal that raises must not find us with a child that nobody knows of.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = _fork(new_pid_namespace)
                if pid == 0:
                    ends = [child.fileno() for _, child in pairs]
                    _become(executable, argv, data_fd, journal, ends, streams, new_pid_namespace, tells)
                overseer = cls(pid, [ours for ours, _ in pairs], data_fd)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for _, child in pairs:
                child.close()
            os.close(tells)
            tells = -1
            complaint = os.read(told, 4096)
        except BaseException:
            for ours, child in pairs:
                ours.close()
                child.close()
            raise
        finally:
            os.close(told)
            if tells >= 0:
                os.close(tells)
        try:
            if complaint:
                number, _, doing = complaint.decode("utf-8", "replace").partition(" ")
                raise OSError(int(number), f"starting the overseer: {doing}")
            # Close-on-exec descriptors are closed before the new mappings are made (fs/exec.c, begin_new_exec), so the
            # end of the pipe says too little: a frame of no pages is answered by the program itself.
            overseer.place(0, _NO_RUNS, 0)
        except BaseException:
            overseer.kill()
            raise
        return overseer

    def maps(self) -> str:
        """/proc/PID/maps of the overseer."""
        with open(f"/proc/{self.pid}/maps") as file:
            return file.read()

    # Talking to a restorer

    def run(self, slot: int, programs: bytes | memoryview, return_image: bool) -> tuple[int, int, int, bytes]:
        """Runs programs that lie back to back, until one fails: its index, the op that failed or -1, what that
        returned, and all images after the run where asked for."""
        control = self._control(slot)
        message = _MESSAGE.pack(RUN_RETURN if return_image else RUN, 0, len(programs))
        try:
            control.sendall(message)
            control.sendall(programs)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(slot) from None
        program, failed, result = self._answer(slot, PATIENCE)
        return program, failed, result, self._receive(slot, len(programs)) if return_image else b""

    def release(self, program: bytes) -> tuple[int, int]:
        """Runs the program of the commit: the op that failed or -1, and what that returned. That the connection ends
        does not end the wait. One that hangs, as on the journal's disk, is killed: what it has done by then the
        journal tells when it is dead."""
        control = self._control(0)
        try:
            control.sendall(_MESSAGE.pack(RUN, 0, len(program)))
            control.sendall(program)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(0) from None
        if not select.select([control.fileno(), self.pidfd], [], [], PATIENCE)[0]:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            select.select([self.pidfd], [], [])
        failed, _, result = _ANSWER.unpack(self._receive(0, _ANSWER.size))
        return failed, result

    def place(self, slot: int, meta: bytes, blob_len: int) -> tuple[int, int]:
        """Lets a restorer place one page frame, whose contents come next on the data descriptor.

        The run that failed or -1, and the result. Raises OutOfStep where the contents may have been read in part.
        """
        control = self._control(slot)
        try:
            control.sendall(_MESSAGE.pack(PAGES, len(meta), blob_len) + meta)
            _, failed, result = self._answer(slot)
        except (BrokenPipeError, ConnectionResetError):
            raise OutOfStep(str(self._died(slot))) from None
        except RestorerDied as error:
            raise OutOfStep(str(error)) from None
        if failed >= 0 and -result in (errno.EPIPE, errno.EFAULT, errno.EIO):
            raise OutOfStep(f"placing a page frame: {os.strerror(-result)}")
        return failed, result

    def check(self, slot: int) -> None:
        """Raises ValueError when there is no such slot."""
        if not 0 <= slot < len(self._controls):
            raise ValueError(f"there is no slot {slot}: {len(self._controls) - 1} restorees")

    def _control(self, slot: int) -> socket.socket:
        self.check(slot)
        return self._controls[slot]

    def _answer(self, slot: int, patience: float = math.inf) -> tuple[int, int, int]:
        self._await(slot, patience)
        failed, program, result = _ANSWER.unpack(self._receive(slot, _ANSWER.size))
        return program, failed, result

    def _await(self, slot: int, patience: float) -> None:
        """Until the restorer of a slot has something to say.

        Not for ever: it may die, or hang for ``patience`` seconds, and the connection may end. When that happens with
        requests still unread, they were sent before, so what is under way may be what they wait for: it gets GRACE
        seconds. A connection over which nothing comes for LEASE seconds, not even the coordinator's ping, has ended
        too.
        """
        control, deadline = self._controls[slot].fileno(), None
        over = time.monotonic() + patience
        poll = select.poll()
        poll.register(control, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self._data_fd, 0)  # POLLHUP and POLLERR are reported always
        while True:
            now = time.monotonic()
            left = min(over - now, LEASE if deadline is None else deadline - now)
            ready = dict(poll.poll(max(0.0, left * 1000)))
            if control in ready:
                return
            if self.pidfd in ready:
                raise self._died(slot)
            if time.monotonic() >= over:
                who = f"the restorer of restoree {slot}" if slot else "the overseer"
                raise RestorerDied(f"{who} hangs: no answer within {patience:g} s; does a file system there hang?")
            if not ready and deadline is None and _unread(self._data_fd):
                continue
            if self._data_fd in ready and _unread(self._data_fd):
                poll.unregister(self._data_fd)
                deadline = time.monotonic() + GRACE
            else:
                raise ConnectionEnded("the connection ended while a restorer was at work")

    def _receive(self, slot: int, length: int) -> bytes:
        buffer, done = bytearray(length), 0
        view = memoryview(buffer)
        while done < length:
            try:
                count = self._controls[slot].recv_into(view[done:])
            except ConnectionResetError:
                count = 0
            if not count:
                raise self._died(slot)
            done += count
        return bytes(buffer)

    # Its end

    def _died(self, slot: int) -> RestorerDied:
        """What to say about a restorer whose socket has ended."""
        # The socket ends an instant before the process can be waited for.
        ended = select.select([self.pidfd], [], [], 0.5 if slot == 0 else 0.05)[0]
        if ended:
            return RestorerDied(f"the overseer {_in_words(self._wait())}")
        return RestorerDied(f"the restorer of restoree {slot} has ended or closed its socket")

    def has_ended(self) -> bool:
        """Whether the overseer lives no more."""
        return bool(select.select([self.pidfd], [], [], 0)[0])

    def died(self) -> RestorerDied:
        """The overseer's pidfd is readable: how it ended."""
        return self._died(0)

    def _wait(self) -> int:
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def kill(self) -> None:
        """Ends the overseer, and with it every restoree; returns when they are gone."""
        if self._status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._wait()
        for control in self._controls:
            # One that is not traced yet does not end with the overseer, but at the end of its input.
            control.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _KILL_PATIENCE
        alive = []
        for slot, control in enumerate(self._controls):
            if slot and not _drain(control, deadline):
                alive.append(slot)
        self.close()
        if alive:
            raise RestorerDied(f"restorees {alive} still live {_KILL_PATIENCE} s after the overseer")

    def close(self) -> None:
        """Forgets it: it is committed, or dead."""
        for control in self._controls:
            control.close()
        os.close(self.pidfd)


def _drain(control: socket.socket, deadline: float) -> bool:
    """Reads a socket to its end, which comes when every process that held the other end is gone."""
    while True:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([control], [], [], left)[0]:
            return False
        try:
            if not control.recv(1 << 16):
                return True
        except ConnectionResetError:
            return True


def _unread(fd: int) -> int:
    """Bytes that can be read from a pipe or socket."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def _in_words(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"was killed by signal {number} ({signal.strsignal(number)})"
    code = os.WEXITSTATUS(status)
    return "exited with status {}{}".format(code, f" ({_ENDINGS[code]})" if code in _ENDINGS else "")


# Its beginning


def _fork(new_pid_namespace: bool) -> int:
    """fork(2), the child being pid 1 of a new PID namespace where asked for."""
    if not new_pid_namespace:
        return os.fork()
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc.unshare(libc.CLONE_NEWPID)  # of the children only, pid_namespaces(7)
        try:
            pid = os.fork()
            if pid == 0:
                return 0
        finally:
            # Later children are ours again; in the child this is EINVAL, as the namespace is not below its own.
            if os.getpid() != 1:
                libc.setns(ours, libc.CLONE_NEWPID)
    finally:
        os.close(ours)
    return pid


def _become(
    executable: int | str,
    argv: Sequence[str],
    data_fd: int,
    journal: int | None,
    controls: Sequence[int],
    streams: Sequence[int],
    new_pid_namespace: bool,
    complain: int,
) -> NoReturn:
    """In the child: turns into the overseer, or writes to ``complain`` why not. ``controls``: what becomes 3, 5, …"""
    doing = "setting it up"
    try:
        doing = "PR_SET_PDEATHSIG"
        # Where the agent died before this, the control socket is at its end and the restorer exits on its own.
        libc.set_pdeathsig(signal.SIGKILL)
        os.setsid()
        os.chdir("/")
        if new_pid_namespace:
            doing = "a mount namespace with /proc of the new PID namespace"
            libc.unshare(libc.CLONE_NEWNS)
            libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
            libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
        doing = "descriptors"
        null = os.open("/dev/null", os.O_RDWR)
        wanted = [data_fd, null, null, controls[0], null if journal is None else journal, *controls[1:], *streams]
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(wanted)) for fd in (*wanted, complain)]
        complain = high.pop()
        program = executable
        if isinstance(executable, int):
            program = fcntl.fcntl(executable, fcntl.F_DUPFD_CLOEXEC, len(wanted))
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= len(wanted):
                try:
                    os.set_inheritable(int(name), False)
                except OSError as error:
                    if error.errno != errno.EBADF:  # the descriptor of the listing itself
                        raise
        doing = "signals"
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        doing = "personality"
        libc.no_randomization()
        doing = "execve of {}".format("the restorer" if isinstance(executable, int) else executable)
        os.execve(program, list(argv), {})
    except OSError as error:
        os.write(complain, f"{error.errno or 5} {doing}: {error.strerror}".encode())
    except BaseException as error:
        os.write(complain, f"{errno.EINVAL} {doing}: {error!r}".encode())
    finally:
        os._exit(127)
