"""A victim's way over several endpoints, by the real command, as tests/migration/journey.py has it for two."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crosskernel.guests import HOST, Topology
from tests.crosskernel.nodes import Node
from tests.driven import Driven, fresh_directory
from tests.hosts import NULL
from tests.tasks import wait_until
from tests.victims import Victims

PYTHON = "/usr/bin/python3"
"""The distribution's, for victims: the one that the tests run by may be of somebody's own make."""


@dataclass
class Travel(Driven):
    """One victim among several endpoints. ``at`` is where it is now."""

    world: Topology
    at: str
    pid: int
    moved: list[str]
    """Gets a line for each move."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""
    """What the command said on standard error the last time."""

    @property
    def node(self) -> Node:
        """Where it is now."""
        return self.world[self.at]

    @property
    def maps(self) -> list[str]:
        """Its mappings, but for the device and inode numbers, which are each host's."""
        lines = (line.split(None, 5) for line in self.node.read(f"/proc/{self.pid}/maps").splitlines())
        return [" ".join([*words[:3], *words[5:]]) for words in lines]

    def move(self, dest: str, *options: str) -> dict[str, Any]:
        """Move it, and return what --json said. AssertionError unless it is there, and not here, and alive."""
        # This machine's CPU has more than what guests are shown, which victims are started without knowledge of
        check = ["--cpu-check", "off"] if self.at == HOST else []
        source, there = self.node, self.world[dest]
        # nothing is measured here: two emulated machines share a core, and the rounds take what they take
        patience = ["--max-downtime", "5s", "--no-converge", "continue"]
        command = ["--json", "-v", "-F", str(source.ssh_config), *patience, *check, *options]
        done = source.migrate(*command, str(self.pid), there.destination)
        self.said = done.stderr
        said = f"{self.at} to {dest}: exit {done.returncode}\n{done.stdout}{done.stderr}{self.complaint}"
        lines = done.stdout.splitlines()
        assert lines, said
        report: dict[str, Any] = json.loads(lines[-1])
        self.reports.append(report)
        assert done.returncode == 0 and report["ok"], said
        assert not source.alive(self.pid), f"{self.pid} was moved and still runs on {self.at}"
        self.moved.append(
            f"{self.name:10} {self.at:>6} to {dest:6} {report['vdso']:6} {report['tracker']:12} "
            f"down {report['downtime_ms']:7.0f} ms, {report['total_s']:4.0f} s in all"
        )
        self.at, self.pid = dest, report["new_pid"]
        there.adopt(self.pid)
        assert there.alive(self.pid), f"{said}\n{self._kernel_said()}"
        return report

    def verdict(self, seconds: float = 120.0) -> str:
        """Wait for its end; an AssertionError says what it complained of. Returns what it said."""
        self.node.wait_gone(self.pid, seconds)
        assert not self.err and self.out.endswith("pass\n"), self.complaint + self._kernel_said()
        return self.out

    def _kernel_said(self) -> str:
        return self.node.run(["dmesg"], check=False).stdout[-1000:]


@dataclass
class Travels:
    """Starts victims on the endpoints of one topology. ``moved``: a line for each move of any of them."""

    world: Topology
    victims: Victims
    moved: list[str] = field(default_factory=list)

    def start(self, victim: str, at: str, *args: str, flags: Sequence[str] = ()) -> Travel:
        """Start a compiled victim on an endpoint, and wait until it is ready."""
        travel = self.run(victim, at, [self.ship(victim, *flags), *args])
        wait_until(f"{victim} on {at}", lambda: "ready\n" in travel.out or travel.err, 120)
        assert "ready\n" in travel.out, travel.complaint
        return travel

    def run(self, name: str, at: str, argv: Sequence[str], stdin: Path = NULL) -> Travel:
        """Start any program, its standard output and error in files of its own directory, $VICTIM_DIR."""
        self.world.need(at)
        directory, own = fresh_directory(self.world.directory)
        # What the guests' CPU lacks of this machine's must not be what libc chooses its functions by.
        tunables = {"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={WITHOUT}"} if at == HOST else {}
        out, err = directory / "out", directory / "err"
        pid = self.world[at].spawn(argv, stdin=stdin, stdout=out, stderr=err, env={**own, **tunables})
        return Travel(name, directory, self.world, at, pid, self.moved)

    def ship(self, victim: str, *flags: str) -> str:
        """The compiled victim where all endpoints have it, under one name and with one time: the name."""
        compiled = Path(self.victims(victim, *flags))
        shipped = self.world.directory / compiled.name
        if not shipped.exists():
            shutil.copy2(compiled, shipped)
        return str(shipped)


WITHOUT = ",".join(f"-{name}" for name in (
    "AVX512F", "AVX512VL", "AVX512BW", "AVX512DQ", "AVX512CD", "AVX512ER", "AVX512PF", "FSRM", "ERMS", "RTM",
    "XSAVEC",
))
"""The tunable glibc.cpu.hwcaps (Tunables in the GNU C Library manual): features that libc must not see."""
