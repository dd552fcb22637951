"""What all victims under a test have in common, wherever they are: their own directory, and what they say.

Victims that use tests/victims/victim.h say "ready" and "pass" on standard output; what they have to complain about is
on standard error. They find their directory in $VICTIM_DIR, and look at themselves as soon as there is $VICTIM_GO.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count(1)


@dataclass
class Driven:
    """One victim, and what it has said."""

    name: str
    directory: Path

    @property
    def out(self) -> str:
        """What it said on standard output."""
        return (self.directory / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it said on standard error."""
        return (self.directory / "err").read_text(errors="replace")

    def tell(self) -> None:
        """Have it look at itself."""
        (self.directory / "go").touch()

    @property
    def complaint(self) -> str:
        """What to say about a victim that did not pass."""
        complaint = f"{self.err[-2000:]!r} (nothing: killed by a signal)"
        return f"{self.name} said {self.out[-200:]!r}, and complained: {complaint}"


def fresh_directory(base: Path) -> tuple[Path, dict[str, str]]:
    """A directory for a victim of any user, and the environment that tells it."""
    directory = base / f"victim-{next(_numbers)}"
    directory.mkdir()
    directory.chmod(0o777)
    return directory, {"VICTIM_GO": str(directory / "go"), "VICTIM_DIR": str(directory)}
