"""What the parsers of /proc raise, and what they share."""

from __future__ import annotations

from collections.abc import Mapping

from migrate.errors import Failed


class ProcFormatError(Failed):
    """A file of /proc does not look as proc(5) says: a kernel that we do not know, or a bug of ours."""

    def __init__(self, file: str, what: str) -> None:
        super().__init__(f"/proc/PID/{file}: {what}")
        self.file = file


def field(fields: Mapping[str, str], name: str, file: str) -> str:
    """A field that every kernel has."""
    try:
        return fields[name]
    except KeyError:
        raise ProcFormatError(file, f"no line {name!r}") from None


def number(text: str, base: int, name: str, file: str) -> int:
    """An integer, or an error that names the field."""
    try:
        return int(text, base)
    except ValueError:
        kind = {8: "an octal", 10: "a decimal", 16: "a hexadecimal"}[base]
        raise ProcFormatError(file, f"{name} is {text!r}, not {kind} number") from None


def numbers(text: str, base: int, name: str, file: str) -> tuple[int, ...]:
    """Integers separated by white space."""
    return tuple(number(word, base, name, file) for word in text.split())
