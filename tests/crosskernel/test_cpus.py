"""A destination whose CPU has less is refused before anything is touched, and can be insisted on."""

from __future__ import annotations

import re

import pytest

from tests.crosskernel.travels import Travels


@pytest.mark.every_kernel
@pytest.mark.timeout(900)
def test_a_smaller_cpu_is_refused_by_name_and_can_be_insisted_on(travels: Travels) -> None:
    """The victim does not use what is missing. --cpu-check says what is looked at; what is overlooked is a warning."""
    big, smaller, smallest = "6.1/max", "6.1", "6.1/qemu64"
    travels.world.need(big, smaller, smallest)
    travel = travels.start("numbered", big)

    def refused(small: str, *options: str) -> str:
        with pytest.raises(AssertionError, match="exit 3"):
            travel.move(small, *options)
        assert travel.node.alive(travel.pid)
        return str(travel.reports[-1]["error"])

    [lacking] = re.findall(r"destination CPU: lacks ([^;]+);", refused(smallest))
    assert {"avx2", "sse4_2", "xsave"} <= set(lacking.split())
    assert not set(lacking.split()) & {"sse2", "lm"}
    error = refused(smaller)
    assert "destination CPU: lacks " in error and "--cpu-check" in error
    error = refused(smaller, "--cpu-check", "xstate")
    assert "does not enable XSAVE state components" in error and "lacks " not in error
    travel.move(smaller, "--cpu-check", "off")
    assert re.search(r"warning: destination CPU lacks .*: the process ends by SIGILL if it uses them", travel.said)
    assert re.search(r"warning: .* XSAVE state components .*: what the process has in them is lost", travel.said)
    travel.tell()
    travel.verdict()
