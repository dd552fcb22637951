"""Which numbers descriptors get: the books against a table that works as the kernel's does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kinds.descriptors import Description, Descriptor, DescriptorTable, Handle
from migrate.engine.kinds.device import Device
from migrate.engine.kinds.eventfd import EventFd
from migrate.engine.kinds.pipe import Pipe
from migrate.engine.kinds.placing import Context, Numbers
from migrate.engine.program import Check, OpKind, Program

LOW = 40
OPENING = {"openat", "eventfd2"}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12))), st.sets(st.integers(0, 12)))
def test_lowest_is_what_the_kernel_gives(steps: list[tuple[bool, int]], used: set[int]) -> None:
    numbers = Numbers(used)
    for take, start in steps:
        expected = min(n for n in range(100) if n not in numbers.used and n >= start)
        assert numbers.lowest(start) == expected
        assert numbers.lowest() == min(n for n in range(100) if n not in numbers.used)
        if take:
            numbers.take(expected)
        elif numbers.used:
            numbers.give(max(numbers.used))


@st.composite
def tables(draw: st.DrawFn) -> DescriptorTable:
    numbers = draw(st.lists(st.integers(0, 50), unique=True, max_size=12))
    descriptors: list[Descriptor] = []
    descriptions: list[Description] = []
    objects: list[Pipe] = []
    for number in sorted(numbers):
        again = draw(st.booleans())
        if descriptions and again:
            of = draw(st.integers(0, len(descriptions) - 1))
        else:
            of = len(descriptions)
            kind = draw(st.sampled_from(("device", "eventfd", "pipe")))
            if kind == "device":
                descriptions.append(Description("/dev/null", 0, None, Device("/dev/null", 259)))
            elif kind == "eventfd":
                descriptions.append(Description("anon_inode:[eventfd]", 2, None, EventFd(0, False)))
            else:
                another = draw(st.booleans())
                if another or not objects:
                    objects.append(Pipe((1, len(objects)), None, 65536, False, ()))
                which = draw(st.integers(0, len(objects) - 1))
                descriptions.append(Description("pipe:[1]", draw(st.integers(0, 1)), None, Handle(which, 0)))
        descriptors.append(Descriptor(number, of, draw(st.booleans())))
    return DescriptorTable(tuple(descriptors), tuple(descriptions), tuple(objects), ())


@given(tables(), st.sets(st.integers(51, 60), max_size=4))
def test_every_op_gives_what_it_expects(table: DescriptorTable, reserved: set[int]) -> None:
    """Run the program on a model of a descriptor table: number -> (description, close-on-exec)."""
    program = Program("test")
    table.restore(program, Context(frozenset(reserved), LOW))
    files: dict[int, tuple[object, bool]] = dict.fromkeys(reserved, ("restorer", False))

    def lowest(start: int = 0) -> int:
        return min(n for n in range(start, 1000) if n not in files)

    for index, op in enumerate(program.branches[0]):
        args = op.args
        if op.kind != OpKind.SYSCALL:
            continue
        if op.name in OPENING:
            assert (op.check, op.expect) == (Check.EXACT, lowest())
            files[op.expect] = (op.name, index), True
        elif op.name == "pipe2":
            for end in (0, 1):
                files[lowest()] = ("pipe", index, end), True
        elif op.name == "fcntl" and args[1] == 1030:
            assert isinstance(args[0], int) and isinstance(args[2], int)
            assert op.expect == lowest(args[2])
            files[op.expect] = files[args[0]][0], True
        elif op.name == "fcntl" and args[1] == 2:
            assert isinstance(args[0], int)
            files[args[0]] = files[args[0]][0], False
        elif op.name == "dup3":
            assert isinstance(args[0], int) and isinstance(args[1], int)
            assert args[0] != args[1] and args[1] not in files
            files[args[1]] = files[args[0]][0], bool(args[2])
        elif op.name == "close":
            assert isinstance(args[0], int) and args[0] not in reserved
            del files[args[0]]
    assert set(files) == reserved | {d.number for d in table.descriptors}
    for descriptor in table.descriptors:
        what, cloexec = files[descriptor.number]
        assert cloexec == descriptor.cloexec
        for other in table.descriptors:
            assert (files[other.number][0] == what) == (other.description == descriptor.description)
