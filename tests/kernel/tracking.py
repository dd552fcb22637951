"""For tests of trackers: a process to be tracked, and its mirror by each tracker that works on this kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.engine.kernel.probes import has_pagemap_scan, has_soft_dirty, has_wp_async
from migrate.engine.memory import writeprotect
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.softdirty import SoftDirtyTracker
from migrate.engine.memory.tracker import Tracker
from migrate.engine.memory.writeprotect import WriteProtectTracker
from tests.kernel.puppets import (
    Mirror,
    Puppet,
)
from tests.victims import Victims

KINDS = ["digests"]
if has_pagemap_scan() and has_wp_async():
    KINDS += ["write-protect, small areas walked alone", "write-protect"]
if has_soft_dirty():
    KINDS.append("soft-dirty")


@pytest.fixture
def puppet(victims: Victims) -> Iterator[Puppet]:
    with Puppet(victims("puppet")) as found:
        yield found


def make(kind: str, puppet: Puppet) -> Tracker:
    if kind == "digests":
        return DigestTracker(puppet.proc)
    if kind == "soft-dirty":
        return SoftDirtyTracker(puppet.proc)
    return WriteProtectTracker.create(puppet.proc, puppet.pidfd, puppet.syscall)


@pytest.fixture(params=KINDS)
def mirror(request: pytest.FixtureRequest, puppet: Puppet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    if "alone" in request.param:
        # As large anonymous memory is, which would take too long to compare.
        monkeypatch.setattr(writeprotect, "_LARGE", PAGE)
        monkeypatch.setattr(writeprotect, "_LONG", 3 * PAGE)
    found = Mirror(puppet, make(request.param, puppet))
    yield found
    found.close()


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "file"
    path.write_bytes(b"".join(bytes([65 + n]) * PAGE for n in range(16)))
    return str(path)


def written(mirror: Mirror, start: int, pages: int) -> set[int]:
    """Which of these pages the last scan found written, by index."""
    found = mirror.scan.written.clip([(start, start + pages * PAGE)])
    return indexes(found, start)


def indexes(pages: PageSet, start: int) -> set[int]:
    return {(a - start) // PAGE + i for a, count in pages.runs() for i in range(count)}


def sent(mirror: Mirror, start: int, pages: int) -> set[int]:
    """Which of these pages the last plan sent, by index."""
    runs = [*mirror.plan.send, *mirror.plan.forced]
    plan = PageSet((address, address + count * PAGE) for address, count in runs)
    return indexes(plan.clip([(start, start + pages * PAGE)]), start)
