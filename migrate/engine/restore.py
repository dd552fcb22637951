"""The order of a restore: from the image of a process to the programs that make it again.

Pure: an image and what is known of the destination in, programs out. What each op does is in engine/kinds/; why it
comes where it does is here:

- Contents first (they arrive between `map_program` and `final_program`), protections and the vDSO after the last page.
- Nothing that needs root after the first thread has left it: threads, descriptors, signals, then credentials.
- Timers and pending signals when all threads exist, for they may name any; all signals are blocked until the tracer
  sets the masks.
- The main thread parks last: its answer says that all of it is done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from migrate.engine import overseer, vdso
from migrate.engine.cpu import XTILEDATA, fit
from migrate.engine.kinds import address_space, locks, task
from migrate.engine.kinds.placing import Context
from migrate.engine.kinds.signals import SignalActions
from migrate.engine.overseer import Channels, Dress, Hole
from migrate.engine.process import ProcessImage, ThreadImage
from migrate.engine.program import Buffer, OpKind, Program

# clone3(2): what pthread_create asks for, but for TLS and the child's TID, which its registers and `identity` set
THREAD_FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM
_ARCH_REQ_XCOMP_PERM = 0x1023  # arch_prctl(2); "x86/arch: Add arch_prctl for permission", Linux 5.16
_XSTATE_BV = 512  # offset in an XSAVE image of the components that it holds


@dataclass(frozen=True)
class Ground:
    """What a restore stands on: where the restorer is, and what the destination is like.

    ``parked``: where the vDSO waits; ``numbers``: a descriptor for each memfd that is mapped; ``xsave_size``: bytes;
    ``stdio``: the file that takes the output of streams that led outside, or None; ``taken``: see `Context`.
    """

    hole: Hole
    channels: Channels
    parked: tuple[vdso.Area, ...]
    destination: task.Destination
    xsave_size: int
    numbers: Mapping[tuple[int, int], int]
    stdio: str | None
    taken: frozenset[str] = frozenset()

    @property
    def scratch(self) -> int:
        """A descriptor number that nothing uses before the descriptors are restored."""
        return min((self.channels.control, self.channels.data, *self.numbers.values())) - 1

    @property
    def context(self) -> Context:
        """For the descriptors."""
        reserved = frozenset((self.channels.control, self.channels.data))
        return Context(reserved, min(reserved) // 2, self.stdio, self.numbers, self.taken)


def clear_program(areas: tuple[vdso.Area, ...], hole: Hole) -> tuple[Program, tuple[vdso.Area, ...]]:
    """The first one in a new restoree: only the restorer is left, and no signal is ignored. Also returns where the
    vDSO waits."""
    program = Program("an empty process")
    SignalActions.reset(program)
    return program, address_space.compile_clear(program, areas, hole)


def final_programs(image: ProcessImage, ground: Ground, filled: Collection[int] = ()) -> list[Program]:
    """All that is left once the last page is in place; the last of them ends with the main thread parked. ``filled``:
    starts of the VMAs that `compile_fillable` made writable."""
    pid = image.process.pid
    plan = image.descriptors.plan(ground.context)
    programs = list(plan.early())
    program = Program(f"pid {pid}")
    image.mm.restore_keys(program)
    address_space.compile_finish(program, image.vmas, ground.parked, image.guards, ground.numbers)
    for vma in image.vmas:
        if vma.start in filled and vma.fill_prot == vma.prot:
            program.syscall("mprotect", vma.start, vma.size, vma.prot, label=f"protection of {vma.label}")
    image.mm.restore(program, ground.scratch)
    task.restore_process_early(program, image.process, ground.destination)
    plan.write(program)
    image.fs.restore(program)
    locks.restore(program, image.descriptors.locks)
    program.syscall("close", ground.channels.data, label="the restorer's own descriptor of page contents")
    _threads(program, image, ground)
    program.op(OpKind.PARK, ground.channels.control, label=f"pid {pid} is restored")
    return [*programs, program]


def _threads(program: Program, image: ProcessImage, ground: Ground) -> None:
    main, *others = image.threads
    if any(_uses_tiles(thread) for thread in image.threads):
        program.syscall("arch_prctl", _ARCH_REQ_XCOMP_PERM, XTILEDATA, label="permission for AMX tiles")
    gate, done = program.space(8), program.space(8)
    task.restore_inherited(program, main.state, image.process, ground.destination)
    for index, thread in enumerate(others):
        with program.branch() as branch:
            program.op(OpKind.WAIT, gate, 1, label="until all threads exist")
            _become(program, thread, image, ground)
            program.op(OpKind.COUNT, done, label=f"thread {thread.tid} is restored")
            program.op(OpKind.PARK, -1, label=f"thread {thread.tid} is restored")
        stack = ground.hole.thread_stack(index)
        args = overseer.clone_args(program, THREAD_FLAGS, stack, overseer.THREAD_STACK, thread.tid)
        program.clone(args, branch, label=f"thread {thread.tid} (clone3 with its number)")
    task.restore_process_signals(program, image.process, ground.destination)
    _open(program, gate)
    _become(program, main, image, ground)
    program.op(OpKind.WAIT, done, len(others), label="until all threads are restored")
    task.restore_process_late(program, image.process, ground.destination)
    address_space.compile_seal(program, image.vmas)


def _open(program: Program, gate: Buffer) -> None:
    program.op(OpKind.COUNT, gate, label="all threads exist")


def _become(program: Program, thread: ThreadImage, image: ProcessImage, ground: Ground) -> None:
    if _uses_tiles(thread):
        program.op(OpKind.AMX, label=f"room for the AMX tiles of thread {thread.tid}")
    task.restore_thread(program, thread.state, image.process, ground.destination, image.threads[0].state)


def _uses_tiles(thread: ThreadImage) -> bool:
    return bool(int.from_bytes(thread.xsave[_XSTATE_BV : _XSTATE_BV + 8], "little") >> XTILEDATA & 1)


def dresses(threads: Sequence[ThreadImage], xsave_size: int) -> list[Dress]:
    """What the overseer sets from outside."""
    return [Dress(t.tid, t.registers, fit(t.xsave, xsave_size), t.state.mask) for t in threads]
