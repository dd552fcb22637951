"""What all command lines of `migrate` are parsed with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeVar

from agents.cgroup import check_path
from migrate.errors import UsageError

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Tells of an error by raising it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class Help(argparse.RawDescriptionHelpFormatter):
    """In 80 columns, whatever the terminal has."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=80)


def checked(parse_value: Callable[[str], T]) -> Callable[[str], T]:
    """argparse drops what a ValueError says; this keeps it."""

    def parse_or_explain(text: str) -> T:
        try:
            return parse_value(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_or_explain


def positive(text: str) -> int:
    """A number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{text!r} is not a positive number")
    return int(text)


def control_group(text: str) -> str:
    """The value of --cgroup."""
    if text == "keep":
        return text
    return check_path(text)


def add_cgroup(parser: argparse._ArgumentGroup, where: str) -> None:
    """``where``: "here"."""
    parser.add_argument(
        "--cgroup",
        metavar="keep|PATH",
        type=checked(control_group),
        help=f"which control group it is in {where}: one of the name that it has, or that of PATH below the mount of "
        "cgroup v2; made if missing, without limits of its own (default: that of the agent)",
    )


def process_number(text: str) -> int:
    """What may be that of a process."""
    try:
        number = positive(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a process number") from None
    if number >= 1 << 22:  # PID_MAX_LIMIT, proc(5)
        raise ValueError(f"{text} is greater than any process number")
    return number
