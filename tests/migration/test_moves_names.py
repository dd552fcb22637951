"""A process with a host name of its own (uts_namespaces(7)) keeps it; the hosts keep theirs."""

from __future__ import annotations

import os
import subprocess

from tests.migration.journey import Journeys

NAMED = 'echo moving > /proc/sys/kernel/hostname; echo far > /proc/sys/kernel/domainname; exec "$0" "$@"'


def names(outer: int) -> list[str]:
    """Host and domain of the namespace that it is in."""
    files = ("/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname")
    shown = subprocess.run(["nsenter", f"--target={outer}", "--uts", "cat", *files], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.split()


def test_a_host_name_of_its_own(journeys: Journeys) -> None:
    pair = journeys.pair
    journey = journeys.start("numbered", wrap=("unshare", "--uts", "sh", "-c", NAMED))
    before = [names(host.init) for host in (pair.a, pair.b)]
    journey.move()
    assert names(journey.task.outer) == ["moving", "far"]
    assert [names(host.init) for host in (pair.a, pair.b)] == before
    assert os.readlink(f"/proc/{journey.task.outer}/ns/uts") != os.readlink(f"/proc/{pair.b.init}/ns/uts")
    journey.tell()
    journey.verdict()
