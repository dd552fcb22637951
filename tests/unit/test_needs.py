"""What must be on the destination, compared with what is."""

from __future__ import annotations

import errno
import stat

import pytest

from migrate.engine.kinds.needs import (
    ANY,
    DEVICE,
    DIRECTORY,
    FIFO,
    FILE,
    FREE_NAME,
    NEW_NAME,
    FileNeed,
    Stat,
    compare,
    paths,
    taken,
)

REG, DIR, CHR, PIPE = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFCHR | 0o666, stat.S_IFIFO | 0o600
GONE: Stat = {"errno": errno.ENOENT}


def file(mode: int = REG, size: int = 10, mtime_ns: int = 100, rdev: int = 0, ino: int = 1) -> Stat:
    return {"mode": mode, "size": size, "mtime_ns": mtime_ns, "rdev": rdev, "ino": ino}


NEED = FileNeed("pid 8 fd 3", "/d/f", FILE, 10, 100)


@pytest.mark.parametrize(
    ("need", "reply", "words"),
    [
        (NEED, file(), None),
        (NEED, GONE, "/d/f is not on the destination"),
        (NEED, {"errno": errno.EACCES}, "/d/f on the destination: Permission denied"),
        (NEED, file(DIR), "is not a file on the destination"),
        (NEED, file(size=11), "has 11 bytes on the destination and 10 here"),
        (NEED, file(mtime_ns=100 + 2 * 10**9), "at another time on the destination (2 s later)"),
        (FileNeed("", "/proc/8/status", FILE), file(size=0, mtime_ns=7), None),
        (FileNeed("", "/d", DIRECTORY), file(DIR, ino=5), None),
        (FileNeed("", "/d", DIRECTORY), file(), "is not a directory"),
        (FileNeed("", "/d", DIRECTORY, ino=4), file(DIR, ino=5), "read half-way"),
        (FileNeed("", "/d", DIRECTORY, ino=5), file(DIR, ino=5), None),
        (FileNeed("", "/dev/null", DEVICE, rdev=259), file(CHR, rdev=259), None),
        (FileNeed("", "/dev/null", DEVICE, rdev=259), file(CHR, rdev=261), "is another device"),
        (FileNeed("", "/dev/null", DEVICE, rdev=259), file(), "is not a device"),
        (FileNeed("", "/d/p", FIFO), file(PIPE), None),
        (FileNeed("", "/d/p", FIFO), file(), "is not a fifo"),
        (FileNeed("", "/d/x", ANY), file(PIPE), None),
        (FileNeed("", "/d/x", ANY), GONE, "is not on the destination"),
        (FileNeed("", "/d/x", NEW_NAME), file(), "/d/x is there on the destination already"),
    ],
)
def test_one_need(need: FileNeed, reply: Stat, words: str | None) -> None:
    problems = compare([need], {need.path: reply})
    assert len(problems) == (words is not None)
    if words is not None:
        assert words in problems[0].what and problems[0].where == need.where


def test_a_file_that_grows_may_be_anywhere_in_between() -> None:
    now = {"/d/f": file(size=20, mtime_ns=200)}
    for size, mtime, good in ((10, 100, True), (15, 150, True), (20, 200, True), (9, 150, False), (15, 201, False)):
        assert (compare([NEED], {"/d/f": file(size=size, mtime_ns=mtime)}, now) == []) is good


def test_every_problem_once() -> None:
    other = FileNeed("pid 8 fd 4", "/d/f", FILE, 10, 100)
    assert len(compare([NEED, other, FileNeed("", "/e", ANY)], {"/d/f": GONE, "/e": GONE})) == 2


def test_names_of_deleted_files() -> None:
    needs = [FileNeed("", "/d/a", FREE_NAME), FileNeed("", "/e/b", FREE_NAME), FileNeed("", "/g/c", FREE_NAME)]
    assert paths(needs) == ["/d", "/d/a", "/e", "/e/b", "/g", "/g/c"]
    there = {"/d": file(DIR), "/d/a": file(), "/e": file(DIR), "/e/b": GONE, "/g": GONE, "/g/c": GONE}
    assert taken(needs, there) == {"/d/a"}
    assert [problem.what for problem in compare(needs, there)] == [
        "/g, where its deleted file c was, is not a directory on the destination"
    ]


def test_a_new_name_is_nobodys() -> None:
    """But the source's own, where both sides see the same files."""
    need, reply = FileNeed("pid 8 fd 3", "/dev/shm/x", NEW_NAME), {**file(ino=7), "dev": 25}
    directory = {"/dev/shm": file(DIR)}
    assert not compare([need], {"/dev/shm/x": GONE, **directory}, {"/dev/shm/x": reply})
    other = {**reply, "ino": 8}
    for now, one_machine, refused in ((reply, True, 0), (reply, False, 1), (other, True, 1), (GONE, True, 1)):
        problems = compare([need], {"/dev/shm/x": reply, **directory}, {"/dev/shm/x": now}, one_machine=one_machine)
        assert len(problems) == refused, (now, one_machine)
    assert compare([need], {"/dev/shm/x": GONE, "/dev/shm": GONE})
