"""What is the same as at the rehearsal is neither encoded, nor decoded, nor compiled again; what changed is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from migrate.engine import overseer, restore
from migrate.engine.cpu import Carrier
from migrate.engine.kinds import task
from migrate.engine.process import ProcessImage
from migrate.engine.source import Source
from migrate.engine.wire import Reader, Writer
from migrate.errors import ImageError


@pytest.fixture
def images(tmp_path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Of a process at its rehearsal and when it is frozen."""
    with (tmp_path / "out").open("wb") as out:
        victim = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    source = Source(lambda *frame: None)
    try:
        source.do_inspect(victim.pid)
        source.do_track("auto", "none", None)
        source.do_look()
        source.do_send([])
        rehearsed = source.do_rehearse()[1]
        frozen = source.do_freeze()[1]
        source.do_resume()
        yield rehearsed, frozen
    finally:
        source.close()
        victim.kill()
        victim.wait()


def ground(image: ProcessImage) -> restore.Ground:
    status = Path("/proc/self/status").read_bytes()
    limits = Path("/proc/self/limits").read_text()
    return restore.Ground(
        hole=overseer.Hole(0x10000000, overseer.hole_size(4)),
        channels=overseer.Channels(1000, 1001),
        destination=task.Destination.from_texts(limits, status, "0", "0-1", "0", False),
        carrier=Carrier(len(image.threads[0].xsave), (1 << 64) - 1),
        numbers={},
        stdio=None,
    )


def test_what_has_not_changed_is_the_same_object(images: tuple[bytes, bytes]) -> None:
    reader = Reader()
    before, after = map(reader.read, images)
    assert after.threads[0].state is before.threads[0].state
    assert after.vmas is before.vmas and after.mm is before.mm and after.descriptors is before.descriptors
    assert Reader().read(images[1]) == after
    assert Reader().read(Writer().write(after)) == after


def test_what_has_changed_is_seen(images: tuple[bytes, bytes]) -> None:
    writer, reader = Writer(), Reader()
    image = reader.read(images[0])
    assert reader.read(writer.write(image)) == image
    main = image.threads[0]
    for changed in (
        replace(image, process=replace(image.process, stopped=True)),
        replace(image, threads=(replace(main, registers=bytes(216)),)),
        replace(image, threads=(replace(main, state=replace(main.state, mask=7)),)),
        replace(image, vmas=image.vmas[1:]),
        replace(image, mm=replace(image.mm, brk=image.mm.brk + 4096)),
        replace(image, fs=replace(image.fs, umask=0o77)),
    ):
        assert reader.read(writer.write(changed)) == changed != image
        assert reader.read(writer.write(image)) == image


def test_only_what_has_changed_is_compiled(images: tuple[bytes, bytes]) -> None:
    image = Reader().read(images[0])
    stands_on, compiler = ground(image), restore.Compiler()
    first = compiler.programs(image, stands_on)
    assert all(new is old for new, old in zip(compiler.programs(image, stands_on), first, strict=True))
    moved = replace(image, mm=replace(image.mm, brk=image.mm.brk + 4096))
    second = compiler.programs(moved, stands_on)
    different = [new.title for new, old in zip(second, first, strict=True) if new is not old]
    assert different == [f"address space of pid {image.process.pid}"]
    assert [p.image for p in second] == [p.image for p in restore.Compiler().programs(moved, stands_on)]
    elsewhere = replace(stands_on, stdio="/dev/null")
    assert not any(new is old for new, old in zip(compiler.programs(moved, elsewhere), second, strict=True))


def test_registers_are_those_of_the_moment(images: tuple[bytes, bytes]) -> None:
    image = Reader().read(images[0])
    stands_on, compiler = ground(image), restore.Compiler()
    before = compiler.arming(image, stands_on)
    main = replace(image.threads[0], registers=bytes(range(216)))
    after = compiler.arming(replace(image, threads=(main,)), stands_on)
    assert after.image == restore.Compiler().arming(replace(image, threads=(main,)), stands_on).image
    assert bytes(range(216)) in after.image and bytes(range(216)) not in before.image


def test_a_broken_image_is_refused(images: tuple[bytes, bytes]) -> None:
    for cut in (0, 1, len(images[0]) // 2, len(images[0]) - 1):
        with pytest.raises(ImageError):
            Reader().read(images[0][:cut])
