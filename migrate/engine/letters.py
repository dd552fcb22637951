"""What is in POSIX message queues, taken out and put back by a process that has them, while all stand still."""

from __future__ import annotations

from dataclasses import replace

from migrate.engine.aftercare import check
from migrate.engine.dump import Dumper
from migrate.engine.kinds.descriptors import DescriptorTable, Handle
from migrate.engine.kinds.mqueue import PosixQueue, send, taken
from migrate.engine.process import ProcessImage
from migrate.engine.program import Program


def with_letters(dumper: Dumper, image: ProcessImage) -> ProcessImage:
    """The image, with what is in the queues that this process is to make."""
    table = image.descriptors
    objects = list(table.objects)
    for index, made in enumerate(objects):
        if isinstance(made, PosixQueue) and made.count:
            objects[index] = _read(dumper, made, _number(table, index))
    if objects == list(table.objects):
        return image
    return replace(image, descriptors=replace(table, objects=tuple(objects)))


def _number(table: DescriptorTable, index: int) -> int:
    """A descriptor of the object."""
    for descriptor in table.descriptors:
        state = table.descriptions[descriptor.description].state
        if isinstance(state, Handle) and state.object == index:
            return descriptor.number
    raise AssertionError(f"object {index} without a descriptor")


def _read(dumper: Dumper, queue: PosixQueue, number: int) -> PosixQueue:
    pid = dumper.proc.pid
    program = Program(f"reading POSIX message queue {queue.name}")
    decode = taken(program, number, queue)
    results = dumper.parasite().run({pid: program})[pid]
    letters = decode(results)
    if results.failed is not None and letters:
        # Somebody else has it after all, and has just received something: what we have must not be lost.
        again = Program(f"putting back what is in POSIX message queue {queue.name}")
        send(again, number, letters, again.title)
        check(dumper.parasite().run({pid: again})[pid], again.title, pid)
    check(results, program.title, pid)
    return replace(queue, letters=letters)
