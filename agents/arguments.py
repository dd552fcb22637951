"""The arguments of a request, which somebody else has written.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_KINDS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: type(value) is bool,
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in (int, float) and 0 <= value < 1e9,
    "str": lambda value: type(value) is str,
    "list[int]": lambda value: type(value) is list and all(type(each) is int for each in value),
    "list[int] | None": lambda value: value is None or _KINDS["list[int]"](value),
    "list[str]": lambda value: type(value) is list and all(type(each) is str for each in value),
    "list[list[int]]": lambda value: type(value) is list and all(map(_KINDS["list[int]"], value)),
    "dict[str, Any]": lambda value: type(value) is dict,
}


def check(method: Callable[..., object], fields: dict[str, Any]) -> None:
    """Raises ValueError where a method cannot be called with these, by its type hints: a verb that finds out half-way
    through that a number is none has done the first half."""
    for name, value in fields.items():
        wanted = method.__annotations__.get(name)
        if name == "blob" or wanted is None:
            raise ValueError(f"no such argument: {name!r:.200}")
        if not _KINDS[wanted](value):
            raise ValueError(f"{name} is not {wanted}: {value!r:.200}")
