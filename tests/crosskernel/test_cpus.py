"""A destination whose CPU has less is refused before anything is touched, and can be insisted on."""

from __future__ import annotations

import re

import pytest

from tests.crosskernel.travels import Travels


@pytest.mark.every_kernel
@pytest.mark.timeout(600)
def test_a_smaller_cpu_is_refused_by_name(travels: Travels) -> None:
    big, small = "6.1/max", "6.1/qemu64"
    travels.world.need(big, small)
    travel = travels.start("numbered", big)
    with pytest.raises(AssertionError, match="exit 3"):
        travel.move(small)
    [lacking] = re.findall(r"destination CPU: lacks ([^;]+);", travel.reports[-1]["error"])
    assert {"avx2", "sse4_2", "xsave"} <= set(lacking.split())
    assert not set(lacking.split()) & {"sse2", "lm"}
    assert travel.node.alive(travel.pid)
    travel.tell()
    travel.verdict()


@pytest.mark.every_kernel
@pytest.mark.timeout(600)
def test_a_smaller_cpu_can_be_insisted_on(travels: Travels) -> None:
    """The victim does not use what is missing. --cpu-check says what is looked at; what is overlooked is a warning."""
    big, small = "6.1/max", "6.1"
    travels.world.need(big, small)
    travel = travels.start("numbered", big)
    with pytest.raises(AssertionError, match="exit 3"):
        travel.move(small)
    assert "destination CPU: lacks " in travel.reports[-1]["error"] and "--cpu-check" in travel.reports[-1]["error"]
    with pytest.raises(AssertionError, match="exit 3"):
        travel.move(small, "--cpu-check", "xstate")
    assert "does not enable XSAVE state components" in travel.reports[-1]["error"]
    assert "lacks " not in travel.reports[-1]["error"]
    travel.move(small, "--cpu-check", "off")
    assert re.search(r"warning: destination CPU lacks .*: the process ends by SIGILL if it uses them", travel.said)
    assert re.search(r"warning: .* XSAVE state components .*: what the process has in them is lost", travel.said)
    travel.tell()
    travel.verdict()
