"""What the machines get: migrate, and the packages that it needs, for Python 3.11 (Debian 12) on x86-64."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = "3.11"
# any of these names on a wheel will do: the machines have glibc 2.36 (PEP 600)
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def needs(kept: Path) -> Path:
    """The directory of the packages; fetched once, and kept in ``kept``. CalledProcessError when that fails."""
    wanted = _project()["dependencies"]
    recipe = hashlib.blake2b(repr((wanted, PYTHON, PLATFORMS)).encode(), digest_size=8).hexdigest()
    site = kept / f"needs-{recipe}"
    if not site.is_dir():
        with tempfile.TemporaryDirectory(prefix="half-", dir=kept) as scratch:
            made = Path(scratch, "site")
            platforms = [f"--platform={platform}" for platform in PLATFORMS]
            _python(
                "pip", "install", "-qq", "--disable-pip-version-check", f"--target={made}", "--only-binary=:all:",
                f"--python-version={PYTHON}", "--implementation=cp", "--no-compile", *platforms, *wanted,
            )  # fmt: skip
            _compile(made)
            made.rename(site)
    return site


def migrate(target: Path) -> None:
    """Put migrate itself there."""
    for package in ("migrate", "agents"):
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    _compile(target)


def pack(directory: Path, tar: Path) -> None:
    """A tar of what is in a directory; the same files have the same times wherever it is unpacked."""
    same = ("--owner=0", "--group=0", "--mtime=2020-01-01")
    subprocess.run(["tar", "--create", *same, f"--file={tar}", f"--directory={directory}", "."], check=True)


def _project() -> dict[str, list[str]]:
    project: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _compile(directory: Path) -> None:
    """Emulated machines are slow compilers. What another Python than theirs compiles is of no use, and no harm."""
    _python("compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(directory), str(directory))


def _python(*module: str) -> None:
    subprocess.run([sys.executable, "-m", *module], check=True)
