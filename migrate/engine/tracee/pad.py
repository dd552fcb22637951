"""Single system calls in a task into which nothing has been put yet.

The first mapping has to be made by the task itself, by code that is already there; and yet a thread that runs it must
get home if we are killed in the middle. So its stub is written, as a debugger writes a breakpoint, into zero bytes that
nobody uses: those between the end of the vDSO, or of another mapping of code, and the end of its last page. The page
becomes a private copy, with zeros there again afterwards; that copy (4 KiB) is all that is left in the task.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from migrate.engine.kernel.maps import PAGE, Mapping, maps
from migrate.engine.kernel.pagemap import ENTRY, anonymous
from migrate.engine.tracee.area import areas
from migrate.engine.tracee.detour import Dispositions, ProcessEnded, Trip, look, travellers
from migrate.engine.tracee.instep import Leg, Steps
from migrate.engine.tracee.memory import Memory, RemoteAddress
from migrate.engine.tracee.rseq import Registrations
from migrate.engine.tracee.stub import ALIGN, single_call
from migrate.errors import Failed, Problem, Refused

_AT_SYSINFO_EHDR = 33  # auxv: where the kernel put the vDSO
_MARGIN = 64  # bytes of zeros that may belong to what lies before
_TIMEOUT = 5.0  # seconds
_CODES = single_call().code, single_call(compat=True).code  # that a tracer may have left
_SIZE = max(single_call().size, single_call(compat=True).size)


class Pad:
    """The unused bytes of one process. ``call`` needs all its threads stopped.

    A tracer that was killed leaves its stub there. Other bytes are used then; when there are none, those of a stub that
    no thread can be in any more.
    """

    def __init__(
        self, pid: int, memory: Memory, registrations: Registrations, instruction_pointers: Callable[[], list[int]]
    ) -> None:
        """``instruction_pointers``: gives those of all threads."""
        self.pid = pid
        self.memory = memory
        self._registrations = registrations
        self._instruction_pointers = instruction_pointers
        self._place: RemoteAddress | None = None
        self._seen: set[int] = set()  # pages that were looked at before they were written to
        self._copied: dict[int, bytes] = {}  # pages that are private only because of us, and what was in them

    def call(self, tid: int, dispositions: Dispositions, number: int, *args: int) -> Steps[int]:
        """What the system call returned, -errno included. Raises ProcessEnded, ParasiteFailed, Refused."""
        (traveller,) = travellers(look([tid], self._registrations), self.memory, dispositions)
        template = single_call(traveller.registers.compat)
        place = self._find(template.size)
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        values = dict.fromkeys(names, 0) | dict(zip(names, (arg & (1 << 64) - 1 for arg in args), strict=False))
        self.memory.force_write(place, template.fill(traveller.literals() | values | {"number": number}))
        try:
            result = (yield Leg([Trip(traveller, place, template)], _TIMEOUT))[tid]
        except ProcessEnded:
            raise
        except BaseException:
            self._clean(place, template.size)
            raise
        self._clean(place, template.size)
        return result - (1 << 64) if result >> 63 else result

    def take(self) -> tuple[RemoteAddress, int]:
        """Where they are and how many, for other code that gets home by itself; until `give_back`. Raises Refused."""
        size = single_call().size
        return self._find(size), size

    def give_back(self, place: RemoteAddress, size: int) -> None:
        """No thread is in that code, nor will come to it."""
        self._clean(place, size)

    def copies(self) -> list[int]:
        """Pages that are copies of the file's only because of us: nothing else has changed in them."""
        return [page for page, content in self._copied.items() if self._read(RemoteAddress(page), PAGE) == content]

    def on_the_way_home(self) -> bool:
        """Whether a thread is in code that an earlier tracer put in. From there it may come to any other such code: it
        may have been stopped on its way home, sent on a second detour, and lost its tracer again."""
        ours = [(place, _SIZE) for place in self._stubs()] + areas(self.memory)
        pointers = self._instruction_pointers()
        return any(0 <= pointer - start < length for pointer in pointers for start, length in ours)

    def _stubs(self) -> Iterator[RemoteAddress]:
        for start in self._candidates():
            rest = self._read(start, PAGE - start % PAGE)
            yield from (RemoteAddress(start + at) for at in range(0, len(rest), ALIGN) if rest.startswith(_CODES, at))

    def _clean(self, place: RemoteAddress, size: int) -> None:
        try:
            self.memory.force_write(place, bytes(size))
        except OSError as error:
            raise ProcessEnded(f"process {self.pid} was killed while it was being looked at ({error})") from error

    def _find(self, size: int) -> RemoteAddress:
        if self._place is not None and not any(self._read(self._place, size) or b"\1"):
            return self._place
        used: list[RemoteAddress] = []
        for start in self._candidates():
            end = start // PAGE * PAGE + PAGE
            rest = self._read(start, end - start)
            for at in range(0, len(rest) - size + 1, ALIGN):
                if not any(rest[at : at + size]):
                    self._place = RemoteAddress(start + at)
                    self._note(end - PAGE)
                    return self._place
                if rest.startswith(_CODES, at):
                    used.append(RemoteAddress(start + at))
        if used and self.on_the_way_home():
            raise Failed(f"a thread of process {self.pid} is still on its way home from the last try: try again")
        if used:
            self._place = used[0]
            return used[0]
        raise Refused(
            [
                Problem(
                    f"process {self.pid}",
                    f"no {size} unused bytes of executable memory, neither in the vDSO nor behind any mapped code",
                )
            ]
        )

    def _note(self, page: int) -> None:
        """That a page is going to be written to. It has been read, so it is there: as the file's, or as a copy that the
        task, or a debugger, has made."""
        if page not in self._seen:
            self._seen.add(page)
            with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as entries:
                if not any(anonymous(os.pread(entries.fileno(), ENTRY, page // PAGE * ENTRY))):
                    self._copied[page] = self._read(RemoteAddress(page), PAGE)

    def _read(self, address: RemoteAddress, size: int) -> bytes:
        """Empty when it is not there."""
        try:
            return self.memory.read(address, size)
        except ProcessLookupError:
            raise ProcessEnded(f"process {self.pid} has ended") from None
        except OSError:
            return b""

    def _candidates(self) -> Iterator[RemoteAddress]:
        """The vDSO by the auxiliary vector first: maps is long in a large process."""
        vdso = self._vdso()
        if vdso is not None:
            yield vdso
        try:
            found = maps(Path(f"/proc/{self.pid}/maps").read_text(errors="surrogateescape"))
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessEnded(f"process {self.pid} has ended") from None
        for mapping in sorted(found, key=lambda mapping: mapping.path != "[vdso]"):
            place = self._behind(mapping)
            if place is not None:
                yield place

    def _vdso(self) -> RemoteAddress | None:
        with open(f"/proc/{self.pid}/auxv", "rb") as file:
            raw = file.read()
        start = dict(struct.iter_unpack("<QQ", raw[: len(raw) // 16 * 16])).get(_AT_SYSINFO_EHDR, 0)
        head = self._read(RemoteAddress(start), 64) if start else b""
        if head[:5] != b"\x7fELF\x02":
            return None
        (sections_at,) = struct.unpack_from("<Q", head, 40)
        entry_size, entries = struct.unpack_from("<HH", head, 58)
        end = start + sections_at + entry_size * entries
        return _aligned(end, -(-end // PAGE) * PAGE)

    def _behind(self, mapping: Mapping) -> RemoteAddress | None:
        """The start of the zeros at the end of a mapping of code, or of a stub of ours that stands there."""
        if mapping.perms not in ("r-xp", "rwxp") or mapping.path == "[vsyscall]" or not mapping.path:
            return None
        last = self._read(RemoteAddress(mapping.end - PAGE), PAGE)
        ours = [at for at in map(last.find, _CODES) if at >= 0]
        if ours:
            return RemoteAddress(mapping.end - PAGE + min(ours))
        return _aligned(mapping.end - PAGE + len(last.rstrip(b"\0")), mapping.end) if last else None


def _aligned(end: int, limit: int) -> RemoteAddress | None:
    """Behind ``end``, and below ``limit``: what begins there need not be code."""
    place = (end + _MARGIN + ALIGN - 1) // ALIGN * ALIGN
    return RemoteAddress(place) if place < limit else None


