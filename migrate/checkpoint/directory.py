"""A checkpoint in a directory of its own: how it is written, so that a crash leaves none that looks whole, and read.

    DIR/image  DIR/pages  DIR/sums  DIR/manifest          a checkpoint
    DIR/0001/…  DIR/0002/…                                a series of them, each on top of those before it (--track)

Nothing is whole without its manifest, which is made under another name and renamed when all else is on the disk.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from agents.private import check_ancestors
from migrate.checkpoint.format import (
    IMAGE,
    MANIFEST,
    MAX_MANIFEST,
    PAGE,
    PAGES,
    SUMS,
    Checkpoint,
    File,
    Manifest,
    decode_checkpoint,
    digest,
    parse_manifest,
)
from migrate.checkpoint.pages import write
from migrate.errors import ImageError, Problem, Refused

_TEMPORARY = ".manifest"
_NUMBERED = re.compile(r"\d{4,9}", re.ASCII)
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class Place:
    """A directory in which a checkpoint is being written. `finish` or `discard` it, then `close` it."""

    def __init__(self, path: str, made: bool) -> None:
        self.path, self._made = path, made
        self._fd = os.open(path, _READ | os.O_DIRECTORY)
        self._files: list[str] = []
        self._open: dict[str, int] = {}
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise _refused(path, "another checkpoint is being written there") from None

    def create(self, name: str) -> int:
        """A new file there, for reading and writing; closed with this."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        self._files.append(name)
        self._open[name] = fd
        return fd

    def add(self, name: str, content: bytes) -> File:
        """A new file with that content."""
        write(self.create(name), [content], 0)
        return File(len(content), digest(content))

    def finish(self, manifest: Manifest) -> None:
        """From now on it is whole: everything else is on the disk before its manifest has its name."""
        for fd in self._open.values():
            os.fsync(fd)
        os.fsync(self._fd)
        self.add(_TEMPORARY, manifest.text())
        os.fsync(self._open[_TEMPORARY])
        os.rename(_TEMPORARY, MANIFEST, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self._files.clear()
        os.fsync(self._fd)
        if self._made:
            above = os.open(os.path.dirname(self.path), _READ | os.O_DIRECTORY)
            try:
                os.fsync(above)
            finally:
                os.close(above)

    @property
    def whole(self) -> bool:
        """Whether it has its manifest."""
        try:
            os.stat(MANIFEST, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def discard(self) -> None:
        """Nothing of it is left. Not after `finish`."""
        while self._files:
            with suppress(FileNotFoundError):
                os.unlink(self._files.pop(), dir_fd=self._fd)
        if self._made:
            with suppress(FileNotFoundError):
                os.rmdir(self.path)

    def close(self) -> None:
        for fd in (*self._open.values(), self._fd):
            os.close(fd)
        self._open.clear()


@contextmanager
def new_place(path: str, series: bool) -> Iterator[tuple[Place, str | None]]:
    """Where a checkpoint goes, and with ``series`` the last whole one before it. Refused where that cannot be. What is
    not finished at the end of the block is discarded."""
    path = os.path.abspath(path)
    with ExitStack() as stack:
        if series:
            above = stack.enter_context(_directory(path))
            if PAGES in os.listdir(above.path):
                raise _refused(path, "is a checkpoint by itself, not a series of them (--track)", "name another one")
            numbers = _numbers(path)
            before = next((name for name in reversed(numbers) if is_whole(os.path.join(path, name))), None)
            own = f"{int(numbers[-1]) + 1 if numbers else 1:04}"
            place = stack.enter_context(_directory(os.path.join(path, own)))
            yield place, before
        else:
            place = stack.enter_context(_directory(path))
            if found := sorted(os.listdir(path)):
                what = f"is not empty ({found[0]})"
                if PAGES in found and MANIFEST not in found:
                    what = "has a checkpoint that was never finished"
                raise _refused(path, what, "remove it, or name another directory")
            yield place, None


@contextmanager
def _directory(path: str) -> Iterator[Place]:
    """One of ours that only we can change, made where there is none."""
    made = False
    try:
        check_ancestors(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
            made = True
        except FileExistsError:
            pass  # whose it is, is looked at now
        found = os.lstat(path)
        if not stat.S_ISDIR(found.st_mode):
            raise _refused(path, "is not a directory")
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise _refused(path, "others may look into it, and it is to hold memory", "chmod 700, or name a new one")
        place = Place(path, made)
    except OSError as error:
        if made:
            os.rmdir(path)
        raise _refused(error.filename or path, error.strerror or str(error)) from error
    try:
        yield place
    finally:
        try:
            if not place.whole and not _numbers(path):
                place.discard()
        finally:
            place.close()


def _refused(path: str, what: str, advice: str = "") -> Refused:
    return Refused([Problem(path, what, advice)])


def _numbers(path: str) -> list[str]:
    """The checkpoints of a series, also those that are not whole, in their order."""
    return sorted(filter(_NUMBERED.fullmatch, os.listdir(path)), key=int)


def is_whole(path: str) -> bool:
    """Whether there is a checkpoint with its manifest."""
    return os.path.lexists(os.path.join(path, MANIFEST))


def found_at(path: str) -> tuple[str, list[str]]:
    """The checkpoint that a user means by a path: itself, or the last whole one of a series; and the series. ImageError
    where there is none."""
    path = os.path.abspath(path)
    try:
        if is_whole(path):
            return path, []
        numbers = _numbers(path)
        inside = os.listdir(path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    for name in reversed(numbers):
        if is_whole(os.path.join(path, name)):
            return os.path.join(path, name), numbers
    if PAGES in inside or numbers:
        raise ImageError(f"{path}: the checkpoint there was never finished: it has no {MANIFEST}")
    raise ImageError(f"{path}: there is no checkpoint")


# Reading


@dataclass
class Pages:
    """The pages of a checkpoint, and their checksums."""

    path: str
    fd: int
    size: int
    sums: bytes


@dataclass
class Opened:
    """A checkpoint that was read, but for its pages: ``files`` are its own and those of its ancestors."""

    path: str
    manifest: Manifest
    manifest_digest: str
    checkpoint: Checkpoint
    files: list[Pages]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of each file, in pages."""
        return tuple(file.size // PAGE for file in self.files)


@contextmanager
def opened(path: str) -> Iterator[Opened]:
    """The checkpoint in that very directory, whose manifest and image are checked. ImageError says what is wrong."""
    with ExitStack() as stack:
        fd = _open(stack, path)
        manifest, known = _manifest(fd, path)
        raw = _content(fd, path, IMAGE, manifest.files[IMAGE])
        try:
            checkpoint = decode_checkpoint(raw)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        if list(checkpoint.ancestors) != list(manifest.ancestors):
            raise ImageError(f"{path}/{IMAGE}: image.ancestors: not those of its manifest")
        files = [_pages(stack, fd, path, manifest)]
        for name, wanted in manifest.ancestors.items():
            other = os.path.join(os.path.dirname(path), name)
            above = _open(stack, other)
            its, found = _manifest(above, other)
            if found != wanted:
                raise ImageError(f"{path}/{MANIFEST}.ancestors.{name}: {other} is another checkpoint by now")
            files.append(_pages(stack, above, other, its))
        yield Opened(path, manifest, known, checkpoint, files)


def _open(stack: ExitStack, path: str) -> int:
    try:
        fd = os.open(path, _READ | os.O_DIRECTORY)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    stack.callback(os.close, fd)
    return fd


def _manifest(fd: int, path: str) -> tuple[Manifest, str]:
    raw = _read_file(fd, path, MANIFEST, MAX_MANIFEST)
    return parse_manifest(raw, f"{path}/{MANIFEST}"), digest(raw)


def read_manifest(path: str) -> Manifest:
    """Of the checkpoint in that very directory."""
    with ExitStack() as stack:
        return _manifest(_open(stack, path), path)[0]


def _content(fd: int, path: str, name: str, file: File) -> bytes:
    raw = _read_file(fd, path, name, file.size)
    if len(raw) != file.size:
        raise ImageError(f"{path}/{name}: {len(raw)} bytes, where {file.size} belong")
    if digest(raw) != file.digest:
        raise ImageError(f"{path}/{name}: its checksum is wrong")
    return raw


def _read_file(fd: int, path: str, name: str, limit: int) -> bytes:
    """Its first ``limit`` bytes, and one more where there are any."""
    try:
        inner = os.open(name, _READ | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        what = f"the checkpoint there was never finished: it has no {name}" if name == MANIFEST else f"no file {name}"
        raise ImageError(f"{path}: {what}") from None
    except OSError as error:
        raise ImageError(f"{path}/{name}: {error.strerror}") from error
    with os.fdopen(inner, "rb") as file:
        return file.read(limit + 1)


def _pages(stack: ExitStack, fd: int, path: str, manifest: Manifest) -> Pages:
    sums = _content(fd, path, SUMS, manifest.files[SUMS])
    try:
        inner = os.open(PAGES, _READ | os.O_NONBLOCK, dir_fd=fd)
    except OSError as error:
        raise ImageError(f"{path}/{PAGES}: {error.strerror}") from error
    stack.callback(os.close, inner)
    size = os.fstat(inner).st_size
    if size != manifest.files[PAGES].size:
        raise ImageError(f"{path}/{PAGES}: {size} bytes, where {manifest.files[PAGES].size} belong")
    return Pages(os.path.join(path, PAGES), inner, size, sums)
