"""Marks for tests of what only newer kernels have. Where CI promises such a kernel, a skip is a failure (conftest.py);
tests/crosskernel runs the tests on older ones, too, and looks at what they skip."""

from __future__ import annotations

import pytest

from migrate.engine.kernel.probes import has_guard_regions, has_pagemap_scan, has_wp_async

ABSENT = "this kernel has no"
"""What every reason begins with."""

guard_regions = pytest.mark.skipif(not has_guard_regions(), reason=f"{ABSENT} MADV_GUARD_INSTALL (6.13)")
pagemap_scan = pytest.mark.skipif(
    not (has_pagemap_scan() and has_wp_async()),
    reason=f"{ABSENT} PAGEMAP_SCAN with asynchronous write protection (6.7)",
)
