"""The kernels to test across: Debian's cloud kernels, fetched with apt and kept ready to boot.

``fetch`` gives a kernel and an archive of modules for each. They are made once and kept outside the checkout, under a
digest of the recipe (this file and initrd.py). A directory of the cache is complete or not there: it is made
aside, under a lock, and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crosskernel import initrd

HERE = Path(__file__).parent
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie", "7.2": "sid"}
"""A kernel by the name that the tests use, and the Debian release that has it. sid moves on: there the name says from
when on."""
META = "linux-image-cloud-amd64"
MIRROR = "http://deb.debian.org/debian/"
"""Where this machine's apt knows none."""
ARCHIVE = "http://archive.debian.org/debian/"
"""Where releases are that have left the mirrors."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Kernel:
    """One kernel, ready to boot."""

    name: str
    directory: Path

    @property
    def image(self) -> Path:
        """The compressed kernel, as qemu's -kernel wants it."""
        return self.directory / "vmlinuz"

    @property
    def modules(self) -> Path:
        """The initial RAM disk but for its init: see initrd.py."""
        return self.directory / "modules.cpio.gz"


def default_cache() -> Path:
    """Where kernels are kept: XDG_CACHE_HOME/migrate-tests, which nobody checks in."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home, "migrate-tests")


def fetch(cache: Path | None = None) -> dict[str, Kernel]:
    """All kernels by name; made first where they are not in the cache (about 120 MB to download).

    OSError or CalledProcessError when they cannot be had; then nothing of them is left.
    """
    place = (cache or default_cache()) / f"kernels-{_recipe()}"
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent):
            if not place.is_dir():  # nobody else has made it while we waited
                _build(place)
    return {name: Kernel(name, place / name) for name in SUITES}


def _recipe() -> str:
    """What the result depends on; a change of any of it makes another directory."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("kernels.py", "initrd.py"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the cache's lock. The kernel lets go of it with its holder, whatever that one was doing."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(place: Path) -> None:
    for half in place.parent.glob("half-*"):  # of a builder that was killed; we hold the lock
        shutil.rmtree(half)
    aside = Path(tempfile.mkdtemp(prefix="half-", dir=place.parent))
    try:
        with tempfile.TemporaryDirectory(prefix="half-", dir=place.parent) as scratch:
            for name, packages in Apt(Path(scratch)).download().items():
                _make(packages, Path(scratch, name), aside / name)
        aside.chmod(0o755)
        aside.rename(place)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in place.parent.glob("kernels-*"):
        # a run with another recipe may be using it: what was just made is recent, what is old is not in use
        if old != place and old.stat().st_mtime < place.stat().st_mtime - 7 * 86400:
            shutil.rmtree(old)


def _make(packages: Sequence[Path], tree: Path, target: Path) -> None:
    """Put together what one kernel boots from."""
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", str(package), str(tree)], check=True)
    # Debian's usual places, and those since the image package was split (linux 7.x in sid)
    images = [*tree.glob("boot/vmlinuz-*"), *tree.glob("usr/lib/modules/*/vmlinuz")]
    modules = [*tree.glob("lib/modules/*"), *tree.glob("usr/lib/modules/*")]
    if len(images) != 1 or len(modules) != 1:
        raise FileNotFoundError(f"{target.name}: one kernel and one tree of modules expected: {images} {modules}")
    target.mkdir()
    shutil.copyfile(images[0], target / "vmlinuz")
    (target / "release").write_text(modules[0].name + "\n")
    (target / "modules.cpio.gz").write_bytes(initrd.modules(modules[0]))
    shutil.rmtree(tree)


class Apt:
    """apt with sources and lists of its own below ``scratch``: the machine's are read, and never changed."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.sources = scratch / "sources.list"
        (scratch / "lists" / "partial").mkdir(parents=True)
        (scratch / "archives" / "partial").mkdir(parents=True)
        self.options = [
            f"-oDir::Etc::sourcelist={self.sources}", "-oDir::Etc::sourceparts=/dev/null", f"-oDir::Cache={scratch}",
            f"-oDir::State::lists={scratch}/lists", "-oAcquire::Languages=none", "-oAPT::Sandbox::User=root",
            "-oAPT::Architecture=amd64", "-oAcquire::Retries=3", "-oAcquire::http::Timeout=60",
            # a release of the archive is signed once and for all
            "-oAcquire::Check-Valid-Until=false",
            # what cannot be fetched is an error, not a warning
            "-oAPT::Update::Error-Mode=any",
        ]
        mirrors = dict.fromkeys(SUITES.values(), debian_mirror())
        try:
            self._update(mirrors)
        except OSError as error:
            gone = [suite for suite in mirrors if re.search(rf"repository '\S+ {suite} Release'", str(error))]
            if not gone:
                raise
            self._update(mirrors | dict.fromkeys(gone, ARCHIVE))

    def _update(self, mirrors: Mapping[str, str]) -> None:
        """Have the lists of these releases, each from its mirror."""
        lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite, mirror in mirrors.items()]
        self.sources.write_text("".join(lines))
        self._run("apt-get", "-qq", "update")

    def download(self) -> dict[str, list[Path]]:
        """The packages of every kernel of `SUITES`, downloaded."""
        wanted = self._packages()
        everything = {f"{name}={version}" for packages in wanted.values() for name, version in packages}
        self._run("apt-get", "-qq", "download", *sorted(everything))
        found: dict[str, list[Path]] = {}
        for kernel, packages in wanted.items():
            # apt writes a version's colon and its like in the way of URLs
            found[kernel] = [path for name, _ in packages for path in self.scratch.glob(f"{name}_*.deb")]
        return found

    def _packages(self) -> dict[str, list[tuple[str, str]]]:
        """Follow the metapackages to what has the files in it: kernel → packages, name and version."""
        newest = list(SUITES)[-1]
        metas = self._show([META])
        waiting: dict[str, list[dict[str, str]]] = {}
        for kernel in SUITES:
            # apt-cache shows the highest version first
            found = [each for each in metas if kernel == newest or each["Version"].startswith(f"{kernel}.")]
            if not found:
                raise FileNotFoundError(f"no {META} {kernel} in {', '.join(SUITES.values())}")
            waiting[kernel] = found[:1]
        wanted: dict[str, list[tuple[str, str]]] = {kernel: [] for kernel in SUITES}
        while any(waiting.values()):
            needed = {kernel: [need for each in found for need in _parts(each)] for kernel, found in waiting.items()}
            # one call for all: apt takes seconds to open the lists of four releases
            records = self._show(sorted({name for needs in needed.values() for name, _ in needs}))
            for kernel, needs in needed.items():
                wanted[kernel] += [need for need in needs if need not in wanted[kernel]]
                waiting[kernel] = [each for each in records if (each["Package"], each["Version"]) in needs]
        return wanted

    def _show(self, packages: Sequence[str]) -> list[dict[str, str]]:
        """The records of packages in all releases."""
        if not packages:
            return []
        text = self._run("apt-cache", "show", *packages)
        return [
            dict(re.findall(r"^(\S+): (.*)$", record, re.MULTILINE)) for record in text.strip().split("\n\n") if record
        ]

    def _run(self, command: str, *arguments: str) -> str:
        argv: Sequence[str] = [command, *self.options, *arguments]
        done = subprocess.run(argv, cwd=self.scratch, text=True, capture_output=True)
        if done.returncode:
            raise OSError(
                f"Debian's kernels for the tests across kernels cannot be fetched: {command} {' '.join(arguments)} "
                f"ended with {done.returncode}. They come from\n{self.sources.read_text()}"
                f"which this machine must be able to reach; `make kernels` tries again.\n{done.stderr}"
            )
        return done.stdout


def _parts(record: Mapping[str, str]) -> list[tuple[str, str]]:
    """What else belongs to this very build; alternatives and tools are wanted without an exact version."""
    return re.findall(r"(linux-(?:image|base|binary|modules)-\S+) \(= ([^\s)]+)\)", record.get("Depends", ""))


def debian_mirror() -> str:
    """The mirror that this machine's own apt uses for Debian; `MIRROR` where it has none, or no lists yet."""
    form = "$(REPO_URI)|$(ORIGIN)|$(LABEL)"
    command = ["apt-get", "indextargets", "--format", form, "Created-By: Packages"]
    for line in subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines():
        uri, origin, label = line.split("|")
        if origin == label == "Debian":
            return uri
    return MIRROR


if __name__ == "__main__":
    for ready in fetch().values():
        print(f"{ready.name}: Linux {(ready.directory / 'release').read_text().strip()} in {ready.directory}")
