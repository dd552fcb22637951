"""Errors by blame: whose fault it is decides the class, and the class decides the exit code."""

from __future__ import annotations

from dataclasses import dataclass


class MigrateError(Exception):
    """Anything that we tell the user in a sentence instead of a traceback."""

    exit_code = 5
    migration: str | None = None  # its id, where it had one by then


class UsageError(MigrateError):
    """The command line makes no sense."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One reason why a process cannot be moved: where (``pid 812 fd 5``), what (``io_uring instance``), what to do."""

    where: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.advice}" if self.advice else "")


class Passing(Problem):
    """One that may be gone a moment later: something is on its way between two of those that move."""


class Refused(MigrateError):
    """The process cannot be moved, and nothing has been touched. All the reasons at once."""

    exit_code = 3

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)) + "\n(nothing was changed)")
        self.problems = problems


class Unreachable(MigrateError):
    """The destination cannot be connected to, or will not let us in."""

    exit_code = 4


class Failed(MigrateError):
    """Something went wrong before the commit; the process runs on the source."""

    exit_code = 5


class OpFailed(Failed):
    """An op of a program failed: ``restoring fd 7 (/var/log/app.log) of pid 812: openat: No such file…``."""


class NumberTaken(OpFailed):
    """A number of the process or of a thread was given to somebody else on the destination since it was asked for."""


class NoRoomToFork(OpFailed):
    """The destination has not the memory for a second process with the memory of the first, though it may well have it
    for what becomes of that (vm.overcommit_memory is 2 there, say)."""


class ProgramTooLarge(Failed):
    """A program outgrew the restorer's buffer."""

    def __init__(self, title: str, size: int, limit: int) -> None:
        super().__init__(f"the program for {title} is {size} bytes, the restorer takes {limit}")


class NotCommitted(Failed):
    """COMMIT was sent, and the destination could not let the process go: nothing of it has run there."""


class InDoubt(MigrateError):
    """COMMIT was sent and no answer came: the process may run on either side, and the source copy stays stopped."""

    exit_code = 6


class ImageError(Failed):
    """An image cannot be written or read: ``image.threads[3].mask: expected int, found str``."""


class Interrupted(MigrateError):
    """The user (or a signal) said stop before the commit, and everything was rolled back."""

    exit_code = 130


class KinChanged(Failed):
    """Processes have joined the tree that is being moved, or left it."""
