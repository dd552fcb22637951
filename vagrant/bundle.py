"""What the machines get: migrate and the packages that it needs, for Python 3.11 (Debian 12) on x86-64."""

from __future__ import annotations

import hashlib
import os
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


def bundle(kept: Path, tar: Path) -> None:
    """Write a tar of it. The packages are fetched once, and kept in ``kept``. CalledProcessError when that fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = project["dependencies"]
    site = kept / f"site-{hashlib.blake2b(repr((needs, PYTHON, PLATFORMS)).encode(), digest_size=8).hexdigest()}"
    if not site.is_dir():
        _fetch(needs, site)
    with tempfile.TemporaryDirectory(prefix="half-", dir=kept) as scratch:
        made = Path(scratch, "site")
        shutil.copytree(site, made, copy_function=os.link)
        for package in ("migrate", "agents"):
            shutil.copytree(ROOT / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
        # emulated machines are slow compilers; of another Python these would not be used
        _python("compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", scratch, str(made))
        info = made / f"migrate-{project['version']}.dist-info"  # where --version looks
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: migrate\nVersion: {project['version']}\n")
        # the same times on all machines, as moved programs map these files
        same = ("--owner=0", "--group=0", "--mtime=2020-01-01")
        subprocess.run(["tar", "--create", *same, f"--file={tar}", f"--directory={made}", "."], check=True)


def _fetch(needs: list[str], site: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="half-", dir=site.parent) as scratch:
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        _python(
            "pip", "install", "-qq", "--disable-pip-version-check", f"--target={scratch}/site", "--only-binary=:all:",
            f"--python-version={PYTHON}", "--implementation=cp", "--no-compile", *platforms, *needs,
        )  # fmt: skip
        Path(scratch, "site").rename(site)


def _python(*module: str) -> None:
    subprocess.run([sys.executable, "-m", *module], check=True)
