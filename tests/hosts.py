"""Two hosts on this one machine: network, PID, mount, UTS and IPC namespaces, a veth pair, a real sshd in each.

The filesystem is shared, as two hosts with NFS have it; /run, /dev/shm and (where asked for) /tmp are each host's own.
None of the namespaces has a name, so they end with the last process in them: when a host's first process is killed,
the kernel kills the others and takes the network down. That process dies with the process that made the host
(PR_SET_PDEATHSIG), so even a test that is killed leaves nothing but its temporary directory, and the next run sweeps
that.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.logins import write_ssh, write_sshd, write_users
from tests.tasks import PATIENCE, Task, children, status_field, wait_until

PREFIX = "migrate-test-"
NS_GET_PARENT = 0xB702  # ioctl_nsfs(2)
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_pairs = itertools.count(1)
Stream = IO[Any] | int | None
NULL = Path("/dev/null")
STARTING = "migrate-test-starting"  # marks a process that is not yet the program to be started


def sweep() -> None:
    """Remove the directories of test runs that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else sweeps it
            held = _held(directory)
            if held is not None:
                shutil.rmtree(directory, ignore_errors=True)
                os.close(held)


@contextmanager
def directory() -> Iterator[Path]:
    """A temporary directory that is locked, so that a later run knows that it is still in use. (Its name has our PID
    for those who look; but who runs in another PID namespace knows nothing of that.)"""
    sweep()
    # locked before it has the name that others sweep by
    new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}{os.getpid()}-"))
    held = _held(new)
    path = new.rename(new.with_name(new.name[1:]))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if held is not None:
            os.close(held)


def _held(directory: Path) -> int | None:
    """A descriptor of the directory with its lock, which goes with it; None: somebody else has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Command(subprocess.Popen[Any]):
    """A command inside a host. Its process is nsenter's, which waits for the real one: signals go to that.

    nsenter ends as the command ended (util-linux, continue_as_child). Were nsenter itself killed, its child would
    become an orphan of ours for nobody to reap.
    """

    def send_signal(self, sig: int) -> None:
        """Signal the command; nsenter only while it has not started it."""
        for pid in children(self.pid) or [self.pid]:
            try:
                os.kill(pid, sig)
            except ProcessLookupError:
                continue


@dataclass
class Host:
    """One of the two hosts. ``pid`` arguments are the numbers that the host itself sees, unless called outer."""

    name: str
    address: str
    directory: Path
    ssh_config: Path
    init: int
    """Our number of the host's pid 1."""
    port: int = 22
    tasks: list[Task] = field(default_factory=list)

    @property
    def proc(self) -> Path:
        """The host's own /proc, readable from here."""
        return Path(f"/proc/{self.init}/root/proc")

    @property
    def destination(self) -> str:
        """What to type after ``migrate PID`` to get here."""
        return f"root@{self.address}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands run here, and of SSH sessions. State and caches are this host's own."""
        return {"PATH": SEARCH, "HOME": os.path.expanduser("~root"), "LANG": "C.UTF-8", "TERM": "dumb", **self.xdg}

    @property
    def xdg(self) -> dict[str, str]:
        """Where this host keeps state and caches: /root is shared, and two hosts' journals must not collide."""
        return {name: str(self.directory / kind) for name, kind in
                (("XDG_STATE_HOME", "state"), ("XDG_CACHE_HOME", "cache"))}

    @property
    def state(self) -> Path:
        """$XDG_STATE_HOME of this host, as it sees it: a test may have mounted something there."""
        return Path(f"/proc/{self.init}/root{self.directory}/state")

    def enter(self, argv: Sequence[str], cwd: str = "/") -> list[str]:
        """The command line that runs ``argv`` inside the host's namespaces."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        return ["nsenter", f"--target={self.init}", *spaces, f"--wdns={cwd}", "--", *argv]

    def run(
        self, argv: Sequence[str], *, timeout: float = 60, check: bool = True, input: str | None = None,
        env: Mapping[str, str] | None = None, cwd: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, as subprocess.run; the error carries what it said."""
        with self.popen(
            argv, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd,
        ) as process:
            try:
                out, err = process.communicate(input or "", timeout * PATIENCE)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: exit {process.returncode}\n{out}{err}")
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/", **options: Any,
    ) -> Command:
        """Start a command here that ends with the test, as subprocess.Popen; for what is to be moved, see `spawn`."""
        command = self.enter(["setpriv", "--pdeathsig", "KILL", *argv], cwd)
        return Command(command, env={**self.environment, **(env or {})}, **options)

    def spawn(
        self, argv: Sequence[str], *, stdin: Stream | Path = NULL, stdout: Stream | Path = NULL,
        stderr: Stream | Path = NULL, env: Mapping[str, str] | None = None, cwd: str = "/",
    ) -> Task:
        """Start a process of its own here, in its own session, and wait until it is the program that was asked for.

        A path as a stream is opened (for output: made anew) inside the host, where its mount is one of the host's;
        anything else is as for subprocess.Popen. Without setsid its session and group would be ours, which have no
        number in the host.
        """
        redirections = []
        passed: dict[str, Any] = {}
        for name, sign, stream in (("stdin", "<", stdin), ("stdout", ">", stdout), ("stderr", "2>", stderr)):
            if isinstance(stream, Path):
                redirections.append(f"{sign}{shlex.quote(str(stream))}")
            else:
                passed[name] = stream
        script = f'exec "$@" {" ".join(redirections)}'
        command = self.enter(["setsid", "sh", "-c", script, STARTING, *argv], cwd)
        starter = subprocess.Popen(command, env={**self.environment, **(env or {})}, **passed)

        def settled() -> bool:
            if starter.poll() is not None:
                raise AssertionError(f"{self.name}: {' '.join(argv)} ended at once with {starter.returncode}")
            # nsenter, setsid and sh all carry the word; the command line is empty in the middle of an exec
            words = [_command_line(child) for child in children(starter.pid)]
            return any(found and STARTING not in found for found in words)

        try:
            wait_until(f"{argv[0]} starting", settled)
            outer = children(starter.pid)[0]
        except BaseException:
            for pid in children(starter.pid) or [starter.pid]:
                _kill(pid)
            starter.wait()
            raise
        task = Task(outer, self.inner_pid(outer), starter)
        self.tasks.append(task)
        return task

    def adopt(self, pid: int) -> Task:
        """Take over a process that came here otherwise (it was moved): it is killed at the end of the test."""
        task = Task(self.host_pid(pid), pid)
        self.tasks.append(task)
        return task

    def pids(self) -> list[int]:
        """Every process of the host, its own pid namespaces within included, pid 1 excluded."""
        return sorted(int(name) for name in os.listdir(self.proc) if name.isdigit() and name != "1")

    def outer_pids(self) -> list[int]:
        """The same processes by our numbers."""
        wanted = os.stat(f"/proc/{self.init}/ns/pid").st_ino
        everyone = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return sorted(pid for pid in everyone if pid != self.init and _lives_in(pid, wanted))

    def inner_pid(self, outer: int) -> int:
        """The host's number of a process that we know by ours; ProcessLookupError when it is gone."""
        numbers = status_field(outer, "NSpid")
        if len(numbers) < 2:
            raise ProcessLookupError(f"process {outer} is not in {self.name}")
        return int(numbers[1])

    def host_pid(self, pid: int) -> int:
        """Our number of a process that the host knows as ``pid``; ProcessLookupError when it has none."""
        for outer in self.outer_pids():
            if status_field(outer, "NSpid")[1:2] == [str(pid)]:
                return outer
        raise ProcessLookupError(f"{self.name} has no process {pid}")

    def link_down(self) -> None:
        """Pull the cable: nothing gets through, and nobody is told."""
        self._ip("link", "set", "eth0", "down")

    def link_up(self) -> None:
        """Plug the cable in again."""
        self._ip("link", "set", "eth0", "up")

    def throttle(self, rate: str) -> None:
        """Let no more than ``rate`` (as tc(8) writes it: 100mbit, 12mbps) leave this host."""
        qdisc = ("root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")
        self.run(["tc", "qdisc", "replace", "dev", "eth0", *qdisc])

    def unthrottle(self) -> None:
        """Take `throttle` back."""
        self.run(["tc", "qdisc", "del", "dev", "eth0", "root"], check=False)

    def cut_ssh(self) -> int:
        """Kill every SSH session here, not the listening sshd; returns how many processes that were."""
        killed = 0
        for outer in self.outer_pids():
            parent = status_field(outer, "PPid")
            if status_field(outer, "Name") == ["sshd"] and parent != [str(self.init)]:
                _kill(outer)
                killed += 1
        return killed

    def finish(self) -> None:
        """End of a test: the tasks of the test are killed, the network is whole again."""
        while self.tasks:
            self.tasks.pop().close()
        self.unthrottle()
        self.link_up()

    def _ip(self, *arguments: str) -> None:
        self.run(["ip", *arguments])


@dataclass
class Pair:
    """Two hosts with a cable between them: ``a`` is node1, ``b`` is node2."""

    a: Host
    b: Host
    directory: Path

    def finish(self) -> None:
        """End of a test, on both."""
        self.a.finish()
        self.b.finish()


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass


def _lives_in(pid: int, namespace: int) -> bool:
    """Whether the process is in the PID namespace with this inode, or in one directly made within it."""
    try:
        handle = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False  # gone, or a process with more rights than ours: no host of ours
    try:
        if os.fstat(handle).st_ino == namespace:
            return True
        try:
            parent = fcntl.ioctl(handle, NS_GET_PARENT)
        except PermissionError:  # the parent is above our own namespace
            return False
        try:
            return os.fstat(parent).st_ino == namespace
        finally:
            os.close(parent)
    finally:
        os.close(handle)


@contextmanager
def booted(
    host: Host, private_tmp: bool = False, interpreter: str = sys.executable, shift: int = 0
) -> Iterator[subprocess.Popen[str]]:
    """The host's first processes, mounted but without a network yet, which `connected` is for; killed at the end."""
    sshd = shutil.which("sshd", path=SEARCH)
    if sshd is None:
        raise FileNotFoundError("sshd is not installed; `make setup` does that")
    write_users(host.directory)
    config = write_sshd(host.directory.parent, host.name, host.address, host.xdg)
    init = [interpreter, "-S", "-E", str(Path(__file__).with_name("host_init.py"))]
    spaces = ["--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--mount-proc", "--kill-child"]
    if shift:
        spaces += ["--time", f"--monotonic={shift}", f"--boottime={shift}"]
    command = [
        *("setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "--", *init),
        *(host.name, str(host.directory.parent), "private" if private_tmp else "shared"),
        *(sshd, "-D", "-f", str(config), "-E", str(host.directory / "sshd.log")),
    ]
    # A file, because unshare 2.38 complains of its own sigprocmask when the child that it waits for is killed.
    complaints = host.directory / "boot.log"
    with complaints.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=host.environment,
            start_new_session=True,
        )
    assert process.stdin and process.stdout
    try:
        if process.stdout.readline() != "mounted\n":
            raise RuntimeError(f"{host.name} did not come up: exit {process.wait()}\n{complaints.read_text()}")
        host.init = children(process.pid)[0]
        yield process
    finally:
        # With pid 1 the kernel kills everything in the host, and unshare, which waits for pid 1, ends as well.
        _kill(host.init or process.pid)
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def two_hosts(
    *, private_tmp: bool = False, interpreter: str = sys.executable, shift: int = 0
) -> Iterator[Pair]:
    """Boot two hosts and connect them; everything is gone afterwards. ``interpreter`` runs the hosts' pid 1. ``shift``:
    seconds by which the second one's monotonic clocks are ahead, in a time namespace."""
    number = next(_pairs) % 256
    net = f"10.{200 + os.getpid() % 50}.{number}"
    with directory() as base, ExitStack() as stack:
        names = {"node1": f"{net}.1", "node2": f"{net}.2"}
        config = write_ssh(base, names)
        hosts = [Host(name, address, base / name, config, 0) for name, address in names.items()]
        processes = [
            stack.enter_context(booted(host, private_tmp, interpreter, ahead))
            for host, ahead in zip(hosts, (0, shift), strict=True)
        ]
        first, second = hosts
        ends = ["link", "add", "eth0", "netns", str(first.init), "type", "veth", "peer", "name", "eth0", "netns"]
        subprocess.run(["ip", *ends, str(second.init)], check=True)
        for host, process in zip(hosts, processes, strict=True):
            connected(host, process)
        for host in hosts:
            wait_until(f"sshd on {host.name}", lambda host=host: listens(host))
        yield Pair(first, second, base)


def connected(host: Host, process: subprocess.Popen[str]) -> None:
    """Let a host that is `booted`, and has its eth0, take its address and go on to its sshd."""
    host._ip("address", "add", f"{host.address}/24", "dev", "eth0")
    host._ip("link", "set", "lo", "up")
    host.link_up()
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()


def listens(host: Host) -> bool:
    """Whether its sshd takes connections."""
    # proc_pid_net(5): local address, remote address, state; 0A is TCP_LISTEN
    table = Path(f"/proc/{host.init}/net/tcp").read_text()
    return re.search(rf":{host.port:04X} [0-9A-F]+:0000 0A ", table) is not None
