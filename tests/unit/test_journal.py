"""Journals: what is written is read, what is not whole does not count, what others could have planted is refused."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import journal, settling
from agents.journal import ABORTED, BEGUN, DESTINATION, PREPARED, SOURCE, Directory, JournalError

ID = "261121100343-51d09f3a2c1b"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "migrate" / "journal"


def test_written_and_read(home: Path) -> None:
    with Directory.opened() as directory:
        with directory.create(ID, DESTINATION, comm="é\n", pid=812) as made:
            made.append(PREPARED, sync=False, restoree=[1, 2])
            assert [record.state for record in made.records()] == [BEGUN, PREPARED]
            assert made.ends_with(PREPARED) and not made.ends_with(BEGUN)
            first = made.records()[0]
            assert first.fields == {"comm": "é\n", "pid": 812} and first.boot == journal.boot_id()
            with directory.open(ID, DESTINATION) as other:
                assert not other.lock() and len(other.records()) == 2
                os.write(made.reopened(), journal.line(ABORTED, "elsewhere"))
                assert other.records()[-1].boot == "elsewhere"
        with directory.open(ID, DESTINATION) as other:
            assert other.lock()
        assert directory.names() == [(ID, DESTINATION)]
        with pytest.raises(FileNotFoundError, match=f"{ID}.source"):
            directory.open(ID, SOURCE)
    assert home.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in home.iterdir()] == [(f"{ID}.destination", 0o600)]


def test_ids_sort_and_are_checked() -> None:
    ids = []
    for _ in range(20):
        ids.append(journal.check_id(journal.new_id()))
        time.sleep(0.0005)
    assert ids == sorted(set(ids))  # also those of one second, for what was begun last is settled first
    for text in ("", "../x", f"{ID}/", f"{ID}\n", "812"):
        with pytest.raises(ValueError, match="not the id"):
            journal.check_id(text)


LINES = [journal.line(BEGUN, "b", n=n) for n in range(3)]


@given(st.integers(0, sum(map(len, LINES))))
def test_cut_off_anywhere(length: int) -> None:
    """Whole lines count, and nothing else."""
    content = b"".join(LINES)[:length]
    records, whole = journal.parse(content, "it")
    assert len(records) == content.count(b"\n") and whole == sum(map(len, LINES[: len(records)]))


@given(st.integers(0, len(LINES[0]) - 2), st.integers(1, 255))
def test_a_byte_is_wrong(at: int, change: int) -> None:
    content = bytearray(b"".join(LINES))
    content[at] ^= change
    with pytest.raises(JournalError, match=r"^it, line 1: "):
        journal.parse(bytes(content), "it")


@given(st.binary())
def test_garbage(content: bytes) -> None:
    try:
        records, _ = journal.parse(content, "it")
    except JournalError:
        return
    assert not records


def test_what_was_torn_is_cut_off_before_more_is_written(home: Path) -> None:
    with Directory.opened() as directory, directory.create(ID, SOURCE) as made:
        os.write(made.fd, journal.line(PREPARED, "b")[:-5])
        assert len(made.records()) == 1 and not made.ends_with(PREPARED)
        made.mend()
        assert made.ends_with(BEGUN)
        made.append(ABORTED)
        assert [record.state for record in made.records()] == [BEGUN, ABORTED]


@contextmanager
def full(size: int) -> Iterator[None]:
    """No file can be longer: a write up to there is short, the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_half_a_record_is_left_where_the_disk_is_full(home: Path) -> None:
    """Or the next one, when there is room again, would make a line with it that makes no sense."""
    with Directory.opened() as directory, directory.create(ID, SOURCE) as made:
        size = os.fstat(made.fd).st_size
        for room in (10, 0):
            with full(size + room), pytest.raises(OSError):
                made.append(PREPARED)
            assert os.fstat(made.fd).st_size == size
        made.append(ABORTED)
        assert [record.state for record in made.records()] == [BEGUN, ABORTED]


def test_nothing_is_left_of_a_journal_that_cannot_be_made(home: Path) -> None:
    with Directory.opened() as directory:
        with full(10), pytest.raises(OSError):
            directory.create(ID, SOURCE)
        assert not list(home.iterdir())


@pytest.mark.parametrize("free", range(3))
def test_nothing_is_left_where_descriptors_run_out(home: Path, free: int) -> None:
    """Whichever of those that it takes to make one is the first that is not to be had."""
    with Directory.opened() as directory:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        held = [os.dup(0) for _ in range(highest)]
        for fd in held[len(held) - free :]:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, before[1]))
        try:
            directory.create(ID, DESTINATION).close()
        except OSError as error:
            assert error.errno == errno.EMFILE
            assert free < 2
        else:
            assert free == 2
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            for fd in held[: len(held) - free]:
                os.close(fd)
        assert bool(os.listdir(home)) == (free == 2)


def test_what_was_left_before_it_had_its_name(home: Path) -> None:
    """Its maker was killed, unless it is at work just now."""
    with Directory.opened() as directory:
        for name in (f".{ID}.source", f".{ID}.destination"):
            (home / name).touch(mode=0o600)
        os.utime(home / f".{ID}.source", (0, 0))
        assert settling.survey(directory) == []
        assert [path.name for path in home.iterdir()] == [f".{ID}.destination"]


def _made(home: Path) -> None:
    home.parent.mkdir(mode=0o700)
    home.mkdir(mode=0o700)


def _plant_mode(home: Path) -> None:
    _made(home)
    home.chmod(0o770)


def _plant_parent(home: Path) -> None:
    _made(home)
    home.parent.chmod(0o777)


def _plant_owner(home: Path) -> None:
    _made(home)
    os.chown(home, 4202, 4202)


def _plant_link(home: Path) -> None:
    home.parent.mkdir(mode=0o700)
    (home.parent / "real").mkdir(mode=0o700)
    home.symlink_to("real")


def _plant_file(home: Path) -> None:
    home.parent.mkdir(mode=0o700)
    home.touch()


@pytest.mark.parametrize("plant", [_plant_mode, _plant_parent, _plant_owner, _plant_link, _plant_file])
def test_directories_that_others_could_have_made(home: Path, plant: Callable[[Path], None]) -> None:
    plant(home)
    with pytest.raises(PermissionError, match="not a directory of our own"):
        Directory.opened()


def _loose(path: Path) -> None:
    path.chmod(0o640)


def _foreign(path: Path) -> None:
    os.chown(path, 4202, 4202)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("change", [_loose, _foreign, _fifo])
def test_files_that_are_not_ours_alone(home: Path, change: Callable[[Path], None]) -> None:
    with Directory.opened() as directory:
        directory.create(ID, SOURCE).close()
        change(home / f"{ID}.source")
        with pytest.raises(JournalError, match="not a file of our own"):
            directory.open(ID, SOURCE)


def test_a_link_in_place_of_a_journal(home: Path, tmp_path: Path) -> None:
    with Directory.opened() as directory:
        (tmp_path / "victim").touch(mode=0o600)
        (home / f"{ID}.source").symlink_to(tmp_path / "victim")
        with pytest.raises(OSError, match="symbolic links"):
            directory.open(ID, SOURCE)
