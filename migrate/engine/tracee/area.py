"""How the areas that an `Injection` maps are told from the task's own memory, by whoever finds one later."""

from __future__ import annotations

from pathlib import Path

from migrate.engine.kernel.maps import PAGE, maps
from migrate.engine.tracee.memory import Memory, RemoteAddress

HEADER_SIZE = 64  # bytes; keeps what follows aligned
_MAGIC = b"migrate parasite"


def header(size: int) -> bytes:
    """What an area of ``size`` bytes begins with."""
    return (_MAGIC + size.to_bytes(8, "little")).ljust(HEADER_SIZE, b"\0")


def size_of_area(start: bytes) -> int:
    """The size that the first bytes of an area tell; 0: it is no area of ours."""
    size = int.from_bytes(start[16:24], "little")
    return size if start == header(size) else 0


def areas(memory: Memory) -> list[tuple[RemoteAddress, int]]:
    """Address and size of each that is in the process. Several, side by side, look like one mapping. One whose maker
    was killed before the header was written is not found. OSError when the process is gone."""
    found = []
    for mapping in maps(Path(f"/proc/{memory.pid}/maps").read_text(errors="surrogateescape")):
        if mapping.perms != "rwxp" or mapping.path:
            continue
        pages = [RemoteAddress(address) for address in range(mapping.start, mapping.end, PAGE)]
        for address, start in zip(pages, memory.read_many([(page, HEADER_SIZE) for page in pages]), strict=True):
            size = size_of_area(start)
            if size and address + size <= mapping.end:
                found.append((address, size))
    return found
