"""The order of a restore: from the image of a process to the programs that make it again.

Pure: an image and what is known of the destination in, programs out. What each op does is in engine/kinds/; why it
comes where it does is here:

- Contents first (they arrive before `Compiler.programs`), protections and the vDSO after the last page.
- Nothing that needs root after the first thread has left it: threads, descriptors, signals, then credentials.
- Timers and pending signals of the process when all threads exist, for they may name any; all signals are blocked
  until the tracer sets the masks.
- The main thread parks last: its answer says that all of it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from migrate.engine import births, overseer, vdso
from migrate.engine.cpu import XTILEDATA, Carrier
from migrate.engine.kinds import address_space, locks, task
from migrate.engine.kinds.placing import Context
from migrate.engine.kinds.signals import SignalActions
from migrate.engine.overseer import Arming, Channels, Dress, Hole
from migrate.engine.process import ProcessImage, ThreadImage
from migrate.engine.program import Linked, OpKind, Program
from migrate.engine.shares import ACTIONS, FILES, FS, MEMORY

# clone3(2): what pthread_create asks for, but for TLS and the child's TID, which its registers and `identity` set
THREAD_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM
_ARCH_REQ_XCOMP_PERM = 0x1023  # arch_prctl(2); "x86/arch: Add arch_prctl for permission", Linux 5.16


@dataclass(frozen=True)
class Ground:
    """What a restore stands on: where the restorer is, and what the destination is like.

    ``numbers``: a descriptor for each memfd that is mapped; ``carrier``: of XSAVE images;
    ``stdio``: the file that takes the output of streams that led outside, or None; ``taken``: see `Context`;
    ``verdict``: what becomes of the vDSO; ``droppable``: the destination has MAP_DROPPABLE; ``lenders``: which memfds
    are another restoree's; ``member``: it is one of several that move together; ``own_terminals``: they have a /dev/pts
    of their own; ``others``: descriptors of restorers that share its table, and ``spare``: objects that these have
    made, by their numbers, as in ``numbers``; ``sockets``: of all restorers, where some share a table, if only until
    they have passed it on; ``region``: all holes, where some share their memory and cannot have the same;
    ``one_machine``: the source is another container of the destination's.
    """

    hole: Hole
    channels: Channels
    destination: task.Destination
    carrier: Carrier
    numbers: Mapping[tuple[int, int], int]
    stdio: str | None
    taken: frozenset[str] = frozenset()
    verdict: vdso.Verdict | None = None
    droppable: bool = True
    own_terminals: bool = False
    lenders: address_space.Lenders = field(default_factory=dict)
    member: bool = False
    others: frozenset[int] = frozenset()
    spare: Mapping[tuple[int, int], int] = field(default_factory=dict)
    sockets: frozenset[int] = frozenset()
    region: Hole | None = None
    one_machine: bool = False

    @property
    def whole(self) -> Hole:
        """What is the restorers' in each address space."""
        return self.region or self.hole

    @property
    def scratch(self) -> int:
        """A descriptor number that nothing uses before the descriptors are restored."""
        return min((*self.channels.all, *self.numbers.values(), *self.others, *self.sockets)) - 1

    @property
    def context(self) -> Context:
        """For the descriptors."""
        reserved, objects = self.channels.all | self.others, {**self.spare, **self.numbers}
        return Context(reserved, min(reserved) // 2, self.stdio, objects, self.taken, self.channels.streams)


def clear_program(areas: tuple[vdso.Area, ...], hole: Hole) -> tuple[Program, tuple[vdso.Area, ...]]:
    """The first one in a new restoree: only the restorer is left, and no signal is ignored. Also returns where the
    vDSO waits."""
    program = Program("an empty process")
    SignalActions.reset(program)
    return program, address_space.compile_clear(program, areas, hole)


class Compiler:
    """Compiles what is left once the last page is in place. A part whose inputs are those of the last time, mostly of
    the rehearsal, is not compiled again: between the rehearsal and the freeze little changes, and the process stands
    still meanwhile."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[object, ...], list[Linked]]] = {}
        self._arming: tuple[tuple[object, ...], Arming] | None = None

    def programs(self, image: ProcessImage, ground: Ground, filled: Collection[int] = ()) -> list[Linked]:
        """To be run one after the other; the last of them ends with the main thread parked. ``filled``: starts of the
        VMAs that `compile_fillable` made writable."""
        return [program for step in self.steps(image, ground, filled) for program in step]

    def steps(self, image: ProcessImage, ground: Ground, filled: Collection[int] = ()) -> list[list[Linked]]:
        """The same in steps, each of which is made by all the processes of a tree before the next one is begun by any
        (see `_files`)."""
        process, vmas = image.process, image.vmas
        states = [thread.state for thread in image.threads]
        tiles = [_uses_tiles(thread, ground) for thread in image.threads]
        space = (vmas, image.guards, image.mm, frozenset(filled), image.kin.shares)
        early = (process.session, process.limits, process.controls, process.actions, image.kin.shares)
        # What is written into objects that the address space uses comes before it, and all else after it.
        known = image.descriptors, image.fs, image.kin.shares, ground
        files = self._part("descriptors", known, _files, image, ground)
        *contents, descriptors = files[:-2] if ground.member else files
        taken, left = ([files[-2]], [files[-1]]) if ground.member else ([], [])
        first = [
            *contents,
            *self._part("address space", (*space, ground), _address_space, image, ground, filled),
            *self._part("process", (*early, image.ipc, ground), _process, image, ground),
            descriptors,
        ]
        last = [
            *left,
            *self._part("threads", (states, tiles, process.controls, ground), _other_threads, image, ground),
            *self._part(
                "end",
                (process, states[0], tiles[0], vmas, image.kin, image.ipc.segments, image.undos, ground),
                _main_thread,
                image,
                ground,
            ),
        ]
        return [first, taken, last]

    def arming(self, image: ProcessImage, ground: Ground) -> Linked:
        """What the overseer runs then: all threads stopped, in their registers."""
        tids = tuple(thread.tid for thread in image.threads)
        tenant = not image.kin.owns(MEMORY)
        confinement = task.confine([thread.state for thread in image.threads], ground.hole.buffer)
        known = image.process.pid, ground.whole, ground.channels.control, tids, ground.carrier.size
        segments = tuple(thread.segments for thread in image.threads)
        inputs = *known, tenant, confinement, segments
        if self._arming is None or self._arming[0] != inputs:
            self._arming = inputs, Arming(*inputs)
        return self._arming[1].dressed(dresses(image.threads, ground.carrier))

    def _part(
        self, name: str, inputs: tuple[object, ...], make: Callable[..., Iterable[Program]], *args: object
    ) -> list[Linked]:
        kept = self._kept.get(name)
        if kept is None or kept[0] != inputs:
            kept = self._kept[name] = inputs, [program.link() for program in make(*args)]
        return kept[1]


def _files(image: ProcessImage, ground: Ground) -> Iterator[Program]:
    if not image.kin.owns(FILES):
        yield from _files_of_another(image, ground)
        return
    plan = image.descriptors.plan(ground.context)
    yield from plan.early()
    program = Program(f"descriptors of pid {image.process.pid}")
    if ground.member:
        # First all make what they have, then they take from each other, then each leaves what was for others only.
        plan.make(program)
        yield program
        program = Program(f"descriptors of pid {image.process.pid} that others have made")
        plan.finish(program)
        yield program
        program = Program(f"descriptors of pid {image.process.pid} that were for others")
        plan.leave(program)
        if ground.others:  # who has passed the table on may have left some
            own = frozenset(descriptor.number for descriptor in image.descriptors.descriptors)
            keep = own | ground.channels.all | ground.others
            births.close_others(program, keep, "descriptors of others")
    else:
        plan.write(program)
    if image.kin.owns(FS):
        image.fs.restore(program)
    locks.restore(program, image.descriptors.locks)
    program.syscall("close", ground.channels.data, label="the restorer's own descriptor of page contents")
    for number in ground.channels.streams:
        program.syscall("close", number, label="the restorer's own descriptor of a standard stream")
    yield program


def _files_of_another(image: ProcessImage, ground: Ground) -> Iterator[Program]:
    """Where another one makes the table that both have: it needs what is in it until all have taken from each other."""
    pid = image.process.pid
    for what in ("", " that others have made"):
        yield Program(f"no descriptors of pid {pid}{what}")
    program = Program(f"descriptors of the restorer of pid {pid}")
    for key, number in ground.numbers.items():
        if key in ground.spare:
            program.syscall("close", number, label="a memfd that was mapped")
    if image.kin.owns(FS):
        image.fs.restore(program)
    yield program


def _address_space(image: ProcessImage, ground: Ground, filled: Collection[int]) -> Iterator[Program]:
    if not image.kin.owns(MEMORY):
        return
    program = Program(f"address space of pid {image.process.pid}")
    image.mm.restore_keys(program)
    address_space.compile_finish(
        program, image.vmas, image.guards, ground.numbers, lenders=ground.lenders, hole=ground.whole
    )
    for vma in image.vmas:
        if vma.start in filled and vma.fill_prot == vma.prot:
            program.syscall("mprotect", vma.start, vma.size, vma.prot, label=f"protection of {vma.label}")
    image.mm.restore(program, ground.scratch)
    yield program


def _process(image: ProcessImage, ground: Ground) -> Iterator[Program]:
    program = Program(f"pid {image.process.pid}")
    image.ipc.restore(program)
    task.restore_process_early(
        program, image.process, ground.destination, ground.member, image.kin.owns(ACTIONS)
    )
    yield program


def _other_threads(image: ProcessImage, ground: Ground) -> Iterator[Program]:
    """All but the main one, until they are parked."""
    main, *others = image.threads
    program = Program(f"threads of pid {image.process.pid}")
    if any(_uses_tiles(thread, ground) for thread in image.threads):
        program.syscall("arch_prctl", _ARCH_REQ_XCOMP_PERM, XTILEDATA, label="permission for AMX tiles")
    done = program.space(8)
    task.restore_inherited(program, main.state, image.process, ground.destination)
    for index, thread in enumerate(others):
        with program.branch() as branch:
            _become(program, thread, image, ground)
            program.op(OpKind.PARK, -1, done, len(others), label=f"thread {thread.tid} is restored")
        stack = ground.hole.thread_stack(index)
        args = overseer.clone_args(program, THREAD_FLAGS, stack, overseer.THREAD_STACK, thread.tid)
        program.clone(args, branch, label=f"thread {thread.tid} (clone3 with its number)")
    program.op(OpKind.WAIT, done, len(others), label="until all threads are restored")
    yield program


def _main_thread(image: ProcessImage, ground: Ground) -> Iterator[Program]:
    """What is of the whole process and needs all of its threads, and the main one itself."""
    program = Program(f"the end of pid {image.process.pid}")
    if image.kin.terminal >= 0:
        task.forget_terminal(program)
    image.ipc.finish(program)
    for undo in image.undos:
        undo.restore(program)
    task.restore_process_signals(program, image.process, ground.destination)
    _become(program, image.threads[0], image, ground)
    task.restore_process_late(program, image.process, ground.destination)
    address_space.compile_seal(program, image.vmas)
    program.op(OpKind.PARK, ground.channels.control, label=f"pid {image.process.pid} is restored")
    yield program


def _become(program: Program, thread: ThreadImage, image: ProcessImage, ground: Ground) -> None:
    if _uses_tiles(thread, ground):
        program.op(OpKind.AMX, label=f"room for the AMX tiles of thread {thread.tid}")
    task.restore_thread(program, thread.state, image.process, ground.destination, image.threads[0].state)


def _uses_tiles(thread: ThreadImage, ground: Ground) -> bool:
    return bool(ground.carrier.components(thread.xsave) >> XTILEDATA & 1)


def dresses(threads: Sequence[ThreadImage], carrier: Carrier) -> list[Dress]:
    """What the overseer sets from outside."""
    return [Dress(t.tid, t.registers, carrier.fit(t.xsave), t.state.mask) for t in threads]
