"""What `make vagrant-demo` concludes from what its program says; the program itself, without a machine around it."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from migrate import __version__
from vagrant import bundle, demo, digits

KERNELS = ["5.10", "7.2", "5.10"]


def answer() -> dict[str, Any]:
    """Of a program that was moved after 100 digits, and back after 200."""
    found = {
        name: "".join(map(str, islice(digits.digits(terms()), 5000))) for name, terms in digits.NUMBERS.items()
    }  # more digits than Python converts unasked
    starts = list(zip((1, 101, 201), KERNELS, strict=True))
    return {"digits": found, "kernels": dict.fromkeys(found, starts), "backwards": 0, "longest": 0.5}


def test_the_programs_digits_are_those_of_other_formulas() -> None:
    demo.check(answer(), KERNELS)


@pytest.mark.parametrize("name", digits.NUMBERS)
def test_a_digit_that_is_lost_or_repeated_is_found(name: str) -> None:
    for lost, repeated in ((150, 151), (150, 149)):
        told = answer()
        whole = told["digits"][name]
        told["digits"][name] = whole[:lost] + whole[repeated:]
        with pytest.raises(demo.DemoFailed, match=f"{name}: digit 1[45].* is wrong"):
            demo.check(told, KERNELS)


def test_a_thread_that_was_not_on_the_other_kernel_is_found() -> None:
    told = answer()
    told["kernels"]["e"] = [(1, "5.10")]
    with pytest.raises(demo.DemoFailed, match="e: the thread should have been on"):
        demo.check(told, KERNELS)


def test_a_clock_that_went_back_is_found() -> None:
    with pytest.raises(demo.DemoFailed, match="went back 1 times"):
        demo.check(answer() | {"backwards": 1}, KERNELS)


def test_what_the_machines_get_of_migrate_runs(tmp_path: Path) -> None:
    bundle.migrate(tmp_path)
    command = [sys.executable, "-m", "migrate.cli", "--version"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    assert __version__ in said
