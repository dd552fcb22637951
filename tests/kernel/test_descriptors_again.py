"""A second dump looks only at what has changed since; the first one is of a process that runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kinds import descriptor_reader
from migrate.engine.kinds.descriptors import Handle
from migrate.engine.kinds.eventfd import EventFd
from migrate.engine.kinds.memfd import Memfd
from migrate.engine.kinds.opened import DumpOptions, OpenFile
from tests.kernel.descriptor_bed import FROZEN, REQUEST, child, without_ours


def many(path: str, count: int) -> None:
    for index in range(count):
        fd = os.open(path, os.O_RDONLY)
        if index % 2:
            os.dup(fd)
    os.eventfd(1)


def test_dump_again_looks_only_at_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with child() as source:
        source.do(many, str(path), 40)
        reader = source.reader()
        first, problems = without_ours(reader, DumpOptions())
        assert not problems
        looked: list[list[int]] = []
        duplicate = OpenFile.duplicate

        def counting(self: OpenFile) -> object:
            looked.append(self.numbers)
            return duplicate(self)

        monkeypatch.setattr(OpenFile, "duplicate", counting)
        assert without_ours(reader, FROZEN) == (first, [])
        assert [numbers for numbers in looked if numbers[0] < REQUEST] == []
        source.do(os.lseek, 7, 3, os.SEEK_SET)
        source.do(os.write, source.do(os.open, str(path), os.O_WRONLY), b"ABC")
        second, _ = without_ours(reader, FROZEN)
        assert second != first
        assert second == source.dump()[0]
        source.do(os.close, 0)
        source.do(os.dup, 5)  # takes the place of 0
        third, _ = without_ours(reader, FROZEN)
        assert third == source.dump()[0]
        assert third.descriptors[0].description == [d for d in third.descriptors if d.number == 5][0].description


def test_contents_are_read_again_when_written(tmp_path: Path) -> None:
    with child() as source:
        assert source.do(os.memfd_create, "m") == 0
        source.do(os.write, 0, b"one")
        reader = source.reader()
        time.sleep(0.1)
        for content in (b"one", b"two", b"six"):
            source.do(os.pwrite, 0, content, 0)
            table, _ = without_ours(reader, FROZEN)
            (made,) = table.objects
            assert isinstance(made, Memfd) and made.chunks == ((0, content),)


def churn(path: str, seconds: float) -> None:
    end = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < end:
            fds = [os.open(path, os.O_RDWR), *os.pipe(), os.eventfd(0), os.memfd_create("x")]
            os.write(fds[2], b"x" * 100)
            fds.append(os.dup(fds[0]))
            for fd in fds:
                os.close(fd)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_rehearsal_of_a_process_that_opens_and_closes(tmp_path: Path) -> None:
    """Nothing may fail because something went away, nor hold what the process closed."""
    (tmp_path / "file").write_bytes(b"x")
    with child() as source:
        done = threading.Thread(target=source.do, args=(churn, str(tmp_path / "file"), 1.5))
        done.start()
        reader, dumps = source.reader(), 0
        while done.is_alive():
            reader.dump(DumpOptions())
            dumps += 1
        done.join()
        assert dumps > 1
        table, problems = without_ours(reader, FROZEN)
        assert problems == [] and not [d for d in table.descriptions if isinstance(d.state, Handle)]


def test_rehearsal_that_sees_two_descriptors_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number led to another kind of file when one of the reads was made: that read says so, and is made again;
    in a process that is stopped it can only be a mistake of ours."""
    with child() as source:
        source.do(os.eventfd, 0)
        reader = source.reader()
        mixed = iter([True, True, False])
        make = EventFd.dump

        def dump(file: OpenFile) -> EventFd | None:
            if next(mixed):
                raise ProcFormatError("fdinfo", "0 lines 'eventfd-count', not one")
            return make(file)

        monkeypatch.setitem(descriptor_reader.ANONYMOUS, "[eventfd]", dump)
        table, problems = without_ours(reader, DumpOptions())
        assert problems == [] and [type(d.state) for d in table.descriptions] == [EventFd]
        mixed = iter([True])
        with pytest.raises(ProcFormatError):
            source.reader().dump(FROZEN)
