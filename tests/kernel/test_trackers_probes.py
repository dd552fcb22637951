"""Probes say what trying says, choose() takes what they promise, the pump keeps its promises of memory and speed."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from migrate.engine.kernel import probes
from migrate.engine.kernel.pagemap import Category, Pagemap
from migrate.engine.memory import choice
from migrate.engine.memory.choice import choose
from migrate.engine.memory.digests import DigestTracker
from migrate.engine.memory.pageset import PAGE, PageSet
from migrate.engine.memory.planner import RoundPlanner
from migrate.engine.memory.pump import PagePump
from migrate.engine.memory.softdirty import SoftDirtyTracker
from migrate.engine.memory.tracker import Scan
from migrate.engine.memory.writeprotect import WriteProtectTracker
from migrate.errors import Failed
from tests.kernel import features
from tests.kernel.puppets import Puppet
from tests.victims import Victims


@pytest.fixture
def puppet(victims: Victims) -> Iterator[Puppet]:
    with Puppet(victims("puppet")) as found:
        yield found


def test_probes_agree_with_the_kernel_configuration() -> None:
    """Where the kernel tells its configuration (/proc/config.gz)."""
    config = subprocess.run(["zcat", "/proc/config.gz"], capture_output=True, text=True, check=False).stdout
    if config:
        assert probes.has_soft_dirty() == ("CONFIG_MEM_SOFT_DIRTY=y" in config)
        if "CONFIG_USERFAULTFD=y" not in config:
            assert not probes.has_wp_async()
    assert probes.has_page_is_guard() <= probes.has_pagemap_scan()
    assert probes.has_page_is_guard() <= probes.has_guard_regions()


def test_probes_leave_nothing_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("has_wp_async", "has_soft_dirty", "has_guard_regions", "has_map_files", "has_page_is_guard"):
        probe = getattr(probes, name)
        probe.cache_clear()
        assert probe() in (True, False)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_unprivileged_process_can_be_tracked() -> None:
    """userfaultfd() is EPERM to it unless it handles faults of user mode only."""
    code = (
        "import ctypes, os\n"
        "from migrate.engine.kernel.probes import has_map_files, has_wp_async\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # PR_SET_DUMPABLE: lost with the uid, and its own /proc with it
        "print(has_wp_async(), has_map_files())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(probes.has_wp_async()), "False"]


def test_the_best_tracker_is_chosen(puppet: Puppet, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = puppet.descriptors()
    best = choose(puppet.proc, puppet.pidfd, puppet.syscall)
    try:
        if probes.has_wp_async() and probes.has_pagemap_scan():
            assert isinstance(best.tracker, WriteProtectTracker)
            assert best.rejected == ()
    finally:
        best.tracker.close()
    assert puppet.descriptors() == descriptors
    for soft_dirty, kind in ((True, SoftDirtyTracker), (False, DigestTracker)):
        monkeypatch.setattr(choice, "has_pagemap_scan", lambda: False)
        monkeypatch.setattr(choice, "has_soft_dirty", lambda answer=soft_dirty: answer)
        found = choose(puppet.proc, puppet.pidfd, puppet.syscall)
        found.tracker.close()
        assert isinstance(found.tracker, kind)
        assert len(found.rejected) == 1 + (not soft_dirty)


@features.pagemap_scan
def test_a_task_that_may_not_have_a_userfaultfd(puppet: Puppet) -> None:
    """No descriptor left, or a seccomp filter that says no."""
    descriptors = puppet.descriptors()
    soft, hard = resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Failed, match=f"userfaultfd in {puppet.pid}: {os.strerror(errno.EMFILE)}"):
            WriteProtectTracker.create(puppet.proc, puppet.pidfd, puppet.syscall)
        found = choose(puppet.proc, puppet.pidfd, puppet.syscall)
        found.tracker.close()
        assert not isinstance(found.tracker, WriteProtectTracker)
        assert os.strerror(errno.EMFILE) in found.rejected[0]
    finally:
        resource.prlimit(puppet.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert puppet.descriptors() == descriptors


@features.pagemap_scan
def test_a_scan_goes_on_where_its_buffer_was_full(puppet: Puppet) -> None:
    start = puppet.map(64)
    for index in range(0, 64, 2):
        puppet.fill(start + index * PAGE, 1)
    pagemap = Pagemap(puppet.proc, regions=5)
    try:
        there = int(Category.PRESENT)
        found = list(pagemap.scan(start, start + 64 * PAGE, mask=there, returns=there))
    finally:
        pagemap.close()
    assert found == [(start + i * PAGE, start + (i + 1) * PAGE, there) for i in range(0, 64, 2)]


def test_the_pump_is_as_fast_as_reading_and_takes_no_memory(puppet: Puppet) -> None:
    """Against bare process_vm_readv of the same pages in the same minute: both suffer from a busy machine."""
    pages = 1 << 15
    start = puppet.map(pages)
    puppet.fill(start, 7, pages * PAGE)
    areas = puppet.areas()
    ratios = []
    for _ in range(5):
        planner = RoundPlanner()
        pump = PagePump(puppet.proc, planner)
        plan = planner.plan(Scan(PageSet([(start, start + pages * PAGE)])), areas)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        assert sum(len(frame.blob) for frame in pump.frames(plan, areas)) == pages * PAGE
        framed = time.process_time() - begun
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        begun = time.process_time()
        buffer = memoryview(bytearray(1 << 20))
        for address in range(start, start + pages * PAGE, 1 << 20):
            assert not pump._memory.read(buffer, [(address, 256)])
        ratios.append(framed / (time.process_time() - begun))
        pump.close()
        assert grown < 8 << 10  # KiB
    assert min(ratios) < 2
