"""`make vagrant-demo`: two virtual machines with different kernels; a program is moved from one to the other, and back.

By default the machines are made of Debian packages (box.py), and a libvirt of our own runs them, in namespaces
(private-libvirt): nothing is asked of this machine but root, and of it all nothing is left but what was built, which is
kept in XDG_CACHE_HOME/migrate-vagrant. With ``--box`` they are made of a public box, by the libvirt of this machine.

The program (digits.py) computes with all that it has in memory, so that its results are wrong where a step was lost or
repeated. They are checked here, by other formulas. The exit code is 0 only when everything holds.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from types import FrameType
from typing import Any

from vagrant import box, bundle, contained

HERE = Path(__file__).parent
LOCAL = "local"
PACKAGES = (
    "vagrant", "vagrant-libvirt", "libvirt-daemon-system", "libvirt-clients", "libvirt-daemon-driver-qemu",
    "dnsmasq-base", "iptables", "qemu-system-x86", "qemu-utils", "debootstrap", "e2fsprogs", "openssh-client",
    "busybox-static",
)  # fmt: skip
PLACE = "/tmp/digits"
"""The program's directory, on each of the machines."""
STARTER = f"""#!/bin/sh
PYTHONPATH=/opt/migrate:/{box.NEEDS} exec python3 -m migrate.cli "$@"
"""
OPTIONS = ("-v", "--json", "--max-downtime", "2s", "--no-converge", "continue")
"""The downtime that is aimed at is that of emulated machines, ten to twenty times slower than this one."""
Answer = dict[str, Any]


class DemoFailed(Exception):
    """Something that the demo shows does not hold."""


class Interrupted(BaseException):
    """Somebody wants us to end."""


def say(text: str) -> None:
    """One line, at once: what runs beside us writes to the same terminal."""
    print(text, flush=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    say(f"\n== {title}")
    start = time.monotonic()
    yield
    say(f"   ({time.monotonic() - start:.1f} s)")


# The machines


@dataclass
class Machines:
    """What Vagrant has brought up."""

    work: Path
    environment: Mapping[str, str]

    @property
    def _log(self) -> Path:
        return self.work / "vagrant.log"

    def vagrant(self, *arguments: str) -> str:
        """Run vagrant. What it says is for when it fails."""
        command = ["vagrant", "--no-tty", *arguments]
        with self._log.open("a") as log:
            done = subprocess.run(
                command, cwd=HERE, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )  # fmt: skip
            log.write(done.stdout)
        if done.returncode:
            said = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
            raise DemoFailed(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def run(self, machine: str, command: str, stdin: Path = Path(os.devnull)) -> str:
        """Run a shell command there as root; its output. What it says of errors goes to the terminal."""
        argv = [*self._ssh(machine), f"sudo sh -c {shlex.quote(command)}"]
        with stdin.open("rb") as file:
            done = subprocess.run(argv, stdin=file, stdout=subprocess.PIPE, timeout=900)
        if done.returncode:
            raise DemoFailed(f"on {machine}: {command}: exit {done.returncode}\n{done.stdout.decode(errors='replace')}")
        return done.stdout.decode()

    def connect(self) -> None:
        """One connection to each, for all commands."""
        (self.work / "ssh").write_text(self.vagrant("ssh-config"))
        for machine in box.MACHINES:
            subprocess.run([*self._ssh(machine), "-M", "-N", "-f"], check=True, stdout=subprocess.DEVNULL)

    def disconnect(self) -> None:
        """Where there is one."""
        for machine in box.MACHINES:
            subprocess.run([*self._ssh(machine), "-q", "-O", "exit"], stderr=subprocess.DEVNULL)

    def _ssh(self, machine: str) -> list[str]:
        return ["ssh", "-F", str(self.work / "ssh"), "-S", str(self.work / machine), machine]


@contextmanager
def machines(work: Path, name: str) -> Iterator[Machines]:
    """Source and destination, up; they are gone afterwards."""
    environment = dict(os.environ, VAGRANT_CHECKPOINT_DISABLE="1", VAGRANT_DEFAULT_PROVIDER="libvirt", MIGRATE_BOX=name)
    # here rather than beside the Vagrantfile and in ~/.vagrant.d, where the user's own are
    environment["VAGRANT_DOTFILE_PATH"] = str(work / "machines")
    if Path(name).is_dir():
        environment["VAGRANT_HOME"] = str(work / "home")
        environment.setdefault("MIGRATE_DRIVER", "kvm" if _kvm_works(Path(name)) else "qemu")
        say(f"\nmachines by {'KVM' if environment['MIGRATE_DRIVER'] == 'kvm' else 'software emulation'}")
    made = Machines(work, environment)
    try:
        with step("bring up source and destination"):
            made.vagrant("up")
            made.connect()
        yield made
    finally:
        with step("take them down"):
            made.disconnect()
            made.vagrant("destroy", "--force")


def _kvm_works(boxes: Path) -> bool:
    kernel = boxes / next(iter(box.MACHINES)) / "vmlinuz"
    return subprocess.run([str(HERE / "kvm-works"), str(kernel)]).returncode == 0


def introduce(made: Machines, needs: Path | None) -> None:
    """Bring migrate to both, with what it needs where that is not there yet, and the program; each may log in at the
    other as root."""
    key = made.work / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vagrant-demo", "-f", str(key)], check=True)

    whole = made.work / "root"
    bundle.migrate(whole / "opt/migrate")
    if needs:
        shutil.copytree(needs, whole / box.NEEDS)
    bundle.pack(whole / "opt", made.work / "opt.tar")

    def unpack(name: str) -> str:
        command = f"mkdir -p {PLACE} && tar -x -C /opt && cat /etc/ssh/ssh_host_ed25519_key.pub"
        return made.run(name, command, made.work / "opt.tar")

    def acquaint(name: str) -> None:
        files = {
            "root/.ssh/id_ed25519": (0o600, key.read_text()),
            "root/.ssh/authorized_keys": (0o600, key.with_suffix(".pub").read_text()),
            "root/.ssh/known_hosts": (0o600, "".join(f"{other} {host_keys[other]}" for other in host_keys)),
            "usr/local/bin/migrate": (0o755, STARTER),
            "opt/digits.py": (0o644, (HERE / "digits.py").read_text()),
        }
        own = made.work / f"{name}.tar"
        with tarfile.open(own, "w") as archive:
            for path, (mode, text) in files.items():
                entry = tarfile.TarInfo(path)  # root's, and of the same time on both machines
                entry.mode, entry.size = mode, len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
        made.run(name, "mkdir -p -m 700 /root/.ssh && tar -x -C /", own)

    with ThreadPoolExecutor() as both:
        host_keys = dict(zip(box.MACHINES, both.map(unpack, box.MACHINES), strict=True))
        list(both.map(acquaint, box.MACHINES))


# The program


def ask(made: Machines, machine: str, what: str = "report") -> Answer:
    """What the program, on that machine, says of itself."""
    written = f"echo {what} >ask.new && mv ask.new ask"
    waited = "for i in $(seq 600); do [ ! -e answer ] || exec cat answer; sleep 0.1; done; exit 1"
    answer: Answer = json.loads(made.run(machine, f"cd {PLACE} && rm -f answer && {written} && {waited}"))
    lengths = ", ".join(f"{name} to {len(digits)}" for name, digits in answer["digits"].items())
    say(f"   pid {answer['pid']} on {machine}, Linux {answer['kernel']}, knows {lengths} digits")
    return answer


def migrate(made: Machines, pid: int, origin: str, target: str) -> Answer:
    """Move it by the command; the object of --json. What -v says goes to this terminal."""
    command = f"migrate {' '.join(OPTIONS)} {pid} root@{target}"
    say(f"{origin}# {command}")
    report: Answer = json.loads(made.run(origin, command))
    if not report["ok"]:
        raise DemoFailed(f"migrate ended well, and says: {report['error']}")
    # its number stays, so that a process which had not been moved would be there still
    made.run(origin, f"! grep -v '^State:.Z' /proc/{pid}/status 2>/dev/null | grep '^State:'")
    return report


def check(answer: Answer, kernels: Sequence[str]) -> None:
    """All digits are right, by other formulas than the program's; each thread was on these kernels, in this order."""
    sys.set_int_max_str_digits(0)
    for name, digits in answer["digits"].items():
        starts = answer["kernels"][name]
        if [kernel for _, kernel in starts] != kernels:
            raise DemoFailed(f"{name}: the thread should have been on {kernels}: {starts}")
        right = NUMBERS[name](10 ** (len(digits) + 20))  # twenty more, because formulas round
        if not str(right).startswith(digits):
            wrong = len(os.path.commonprefix([str(right), digits])) + 1
            raise DemoFailed(f"{name}: digit {wrong} of {len(digits)} is wrong: {starts}")
        ends = [*(start - 1 for start, _ in starts[1:]), len(digits)]
        spans = [f"{start}-{end} on {kernel}" for (start, kernel), end in zip(starts, ends, strict=True)]
        say(f"   {name}: {len(digits)} digits, all right: {', '.join(spans)}")
    if answer["backwards"]:
        raise DemoFailed(f"CLOCK_MONOTONIC went back {answer['backwards']} times")
    say(f"   CLOCK_MONOTONIC never went back, and jumped by at most {answer['longest']:.3f} s")


def _e(one: int) -> int:
    total, term, number = 0, one, 1
    while term:
        total, term, number = total + term, term // number, number + 1
    return total


def _coth(one: int) -> int:
    square = _e(one) ** 2
    return (square + one * one) * one // (square - one * one)


NUMBERS: Mapping[str, Callable[[int], int]] = {
    "e": _e,
    "sqrt 2": lambda one: isqrt(2 * one * one),
    "golden ratio": lambda one: (one + isqrt(5 * one * one)) // 2,
    "coth 1": _coth,
}
"""The numbers of digits.py, times ``one``."""


def demonstrate(work: Path, name: str, needs: Path | None = None) -> None:
    """The whole of it, once there is a libvirt. DemoFailed when something does not hold."""
    reports = []
    with machines(work, name) as made:
        with step("migrate on both; each may log in at the other as root"):
            introduce(made, needs)
        with step("a program on source"):
            start = f"setsid python3 /opt/digits.py {PLACE} </dev/null >/dev/null 2>&1 & echo $!"
            pid = int(made.run("source", start))
            kernels = [ask(made, "source")["kernel"]]
        # There: another kernel. Back: the one whose vDSO the program has had all along.
        for origin, target, decision in (("source", "destination", "proxy"), ("destination", "source", "remap")):
            with step(f"from {origin} to {target}"):
                report = migrate(made, pid, origin, target)
                reports.append(report)
                kernels.append(ask(made, target)["kernel"])
                if report["vdso"] != decision:
                    raise DemoFailed(f"the vDSO: {report['vdso']}, not {decision}")
                pid = report["new_pid"]
        with step("what it has computed, checked here"):
            check(ask(made, "source", "end"), kernels)
    for report, place in zip(reports, ("there", "back"), strict=True):
        say(f"{place}: down for {report['downtime_ms']:.1f} ms; vDSO: {report['vdso']}")


# Where it runs


def install() -> None:
    """With apt-get, what this machine lacks."""
    query = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *PACKAGES]
    known = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    missing = [package for package in PACKAGES if not re.search(f"^{package} installed$", known, re.MULTILINE)]
    if not missing:
        return
    with step(f"install {' '.join(missing)}"):
        # RUNLEVEL: nothing is started; it is our own libvirtd that is needed
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive", RUNLEVEL="1")
        subprocess.run(["apt-get", "update", "-q"], check=True)
        subprocess.run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing], check=True,
            env=environment)  # fmt: skip


@contextmanager
def kept() -> Iterator[Path]:
    """The directory of what is kept, ours alone for now. What was left there by halves is removed before and after."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "migrate-vagrant")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another demo is running: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        _sweep(place)
        try:
            yield place
        finally:
            _sweep(place)


def _sweep(place: Path) -> None:
    for pattern in ("run-*", "half-*", "box-*"):
        for left in place.glob(pattern):
            shutil.rmtree(left)


def run(name: str) -> int:
    """Make what is missing, then `demonstrate`. Returns the exit code."""
    install()
    with kept() as place, tempfile.TemporaryDirectory(prefix="run-", dir=place) as scratch:
        work = Path(scratch)
        if name == LOCAL:
            with step("two kernels, and a box of Debian packages"):
                box.main(place)
            inside = [sys.executable, "-m", "vagrant.demo", "--box", str(place), "--inside", scratch]
            command = [str(HERE / "private-libvirt"), str(work / "libvirt"), *inside]
            try:
                contained.run(command, network=False)
            except subprocess.CalledProcessError:
                return 1  # it has said why
        else:
            demonstrate(work, name, bundle.needs(place))
    say("\ndemo passed")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:  # it takes a moment, and once is enough
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signal.strsignal(number))


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--box", default=LOCAL, help="a public box; needs a running libvirt (default: %(default)s)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("root is needed, for namespaces and libvirt")
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if not arguments.inside:
            return run(arguments.box)
        demonstrate(arguments.inside, arguments.box)
    except Interrupted as signalled:
        say(f"\n{signalled}: everything was taken down")
        return 130
    except subprocess.CalledProcessError as error:
        say(f"\ndemo failed: {shlex.join(map(str, error.cmd)) if isinstance(error.cmd, list) else error.cmd} "
            f"ended with {error.returncode}")  # fmt: skip
        return 1
    except (DemoFailed, OSError, subprocess.TimeoutExpired) as error:
        say(f"\ndemo failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
