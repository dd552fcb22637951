"""Two CPUs compared, and an XSAVE image carried from the one to the other."""

from __future__ import annotations

import struct

import pytest

from migrate.engine.cpu import Carrier, Check, Cpu

AVX, AVX512 = (2, 576, 256), ((5, 832, 64), (6, 896, 512), (7, 1408, 1024))
OLD = Cpu(("sse", "avx2"), 0b111, 832, (AVX,))
NEW = Cpu(("sse", "avx2", "avx512f"), 0b11100111, 2432, (AVX, *AVX512))
OTHERWISE = Cpu(("sse", "avx2", "avx512f"), 0b11100111, 2432, (AVX, (5, 2368, 64), (6, 832, 512), (7, 1344, 1024)))
NONE = Cpu(("sse",), 0, 0, ())


def image(cpu: Cpu, components: int) -> bytes:
    """An area in which every component is of its own number, over and over."""
    area = bytearray(cpu.xsave_size)
    area[:512] = b"\1" * 512
    area[512:520] = struct.pack("<Q", components)
    for number, offset, size in cpu.components:
        area[offset : offset + size] = bytes([number]) * size
    return bytes(area)


@pytest.mark.parametrize("check", ["all", "xstate", "off"])
@pytest.mark.parametrize(("here", "there"), [(OLD, OLD), (OLD, NEW), (NEW, NEW)])
def test_a_cpu_that_has_no_less(here: Cpu, there: Cpu, check: Check) -> None:
    assert here.missing(there, check) == ([], [])


def test_everything_has_to_be_there() -> None:
    problems, warnings = NEW.missing(OLD)
    assert [str(problem) for problem in problems] == [
        "destination CPU: lacks avx512f; choose a host whose CPU has what this one has, or see --cpu-check",
        "destination kernel: does not enable XSAVE state components 5, 6, 7",
    ]
    assert not warnings


def test_features_may_be_overlooked_and_state_too() -> None:
    problems, warnings = NEW.missing(OLD, "xstate")
    assert [problem.where for problem in problems] == ["destination kernel"]
    assert warnings == ["destination CPU lacks avx512f: the process ends by SIGILL if it uses them"]
    problems, warnings = NEW.missing(OLD, "off")
    assert not problems
    lost = "destination kernel does not enable XSAVE state components 5, 6, 7: what the process has in them is lost"
    assert warnings[1:] == [lost]


@pytest.mark.parametrize("check", ["all", "xstate", "off"])
@pytest.mark.parametrize(("here", "there", "where"), [(OLD, NONE, "destination CPU"), (NONE, OLD, "this CPU")])
def test_without_xsave_there_is_no_way(here: Cpu, there: Cpu, where: str, check: Check) -> None:
    problems, _ = here.missing(there, check)
    assert (problems[0].where, problems[0].what) == (where, "has no XSAVE, by which registers are carried over")
    assert [problem.what for problem in problems[1:]] == ["lacks avx2"] * (check == "all" and here is OLD)


def test_an_image_that_fits_stays_as_it_is() -> None:
    own = image(NEW, 0b11100111)
    assert NEW.carrier(NEW).fit(own) == own
    assert OLD.carrier(NEW).fit(image(OLD, 7)) == image(OLD, 7) + bytes(NEW.xsave_size - OLD.xsave_size)


def test_what_the_destination_lacks_is_left_out() -> None:
    carrier = NEW.carrier(OLD)
    assert carrier.fit(image(NEW, 0b11100111)) == image(OLD, 0b111)
    assert carrier.components(image(NEW, 0b11100110)) == 0b110


def test_components_go_to_where_the_destination_keeps_them() -> None:
    [problem] = NEW.missing(OTHERWISE)[0]
    assert problem.what == "keeps XSAVE components 5, 6, 7 at other offsets"
    assert NEW.carrier(OTHERWISE).fit(image(NEW, 0b11100111)) == image(OTHERWISE, 0b11100111)
    assert OTHERWISE.carrier(NEW).fit(image(OTHERWISE, 0b10000001)) == image(NEW, 0b10000001)


def test_a_short_image_is_filled_up() -> None:
    """The kernel gives no more of it than the process may use: without permission no room for AMX tiles."""
    assert Carrier(832, 7, ((576, 576, 256),)).fit(image(OLD, 7)[:600])[600:] == bytes(232)
