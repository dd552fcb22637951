"""Programs that get moved: one small C (or Python) program for each kernel feature, compiled when first asked for."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
IA32 = ("-m32", "-Wno-format", "-Wno-overflow", "-D_FILE_OFFSET_BITS=64")
"""To compile one for 32 bits: they write numbers of 64 bits with the letters for a long in what they complain of."""
FLAGS = ("-O1", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11", "-pthread")


def default_cache() -> Path:
    """Where compiled victims are kept from one run to the next: `.venv` is never packaged nor checked in."""
    return HERE.parent.parent / ".venv" / "victims"


class Victims:
    """Compiles ``tests/victims/NAME.c`` with gcc, and remembers the result by the digest of source and flags."""

    def __init__(self, cache: Path | None = None, compiler: str = "gcc") -> None:
        self.cache = cache or default_cache()
        self.compiler = compiler

    def __call__(self, name: str, *flags: str) -> str:
        """The path of the compiled victim; ``flags`` come after ours (``-static``, ``-lrt``, ``-m32``)."""
        source = HERE / f"{name}.c"
        headers = b"".join(header.read_bytes() for header in sorted(HERE.glob("*.h")))
        key = hashlib.blake2b(source.read_bytes() + headers + repr((FLAGS, flags)).encode(), digest_size=8).hexdigest()
        binary = self.cache / f"{name}-{key}"
        if not binary.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            # compiled aside: two test runs at once must not meet half a file, nor replace one that runs already
            descriptor, scratch = tempfile.mkstemp(dir=self.cache)
            os.close(descriptor)
            subprocess.run([self.compiler, *FLAGS, "-o", scratch, str(source), *flags], check=True)
            os.chmod(scratch, 0o755)
            with suppress(FileExistsError):
                os.link(scratch, binary)
            os.unlink(scratch)
        return str(binary)


def check_counter(lines: Iterable[str], threads: int) -> int:
    """How many lines a counter wrote; ValueError names the first gap, repeat or torn line, or a thread that is silent.

    A line without its newline at the very end is one that is being written.
    """
    expected = dict.fromkeys(range(threads), 0)
    total = 0
    for position, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            raise ValueError(f"line {position} is torn: {line!r}")
        try:
            thread, number = map(int, line.split())
        except ValueError:
            raise ValueError(f"line {position} is garbled: {line!r}") from None
        if number != expected.get(thread, -1):
            kind = "a repeat" if number < expected.get(thread, -1) else "a gap"
            raise ValueError(f"line {position}: {kind}: thread {thread} wrote {number}, not {expected.get(thread)}")
        expected[thread] += 1
        total += 1
    silent = [thread for thread, number in expected.items() if not number]
    if silent:
        raise ValueError(f"threads {silent} wrote nothing")
    return total
