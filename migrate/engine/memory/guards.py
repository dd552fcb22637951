"""Guard regions: pages that fault without being a VMA of their own (madvise(2), MADV_GUARD_INSTALL; Linux 6.13)."""

from __future__ import annotations

from migrate.engine.kernel.pagemap import Category, Pagemap
from migrate.engine.kernel.probes import has_guard_regions, has_page_is_guard

Range = tuple[int, int]


def guard_pages(pagemap: Pagemap, start: int, end: int) -> tuple[Range, ...]:
    """(start, end) of every run of guard pages in the range. None where the kernel cannot tell (PAGE_IS_GUARD, Linux
    6.15): on 6.13 and 6.14 they look like swapped pages."""
    if not (has_guard_regions() and has_page_is_guard()):
        return ()
    found: list[Range] = []
    for low, high, _ in pagemap.scan(start, end, mask=int(Category.GUARD), returns=int(Category.GUARD)):
        if found and found[-1][1] == low:
            found[-1] = found[-1][0], high
        else:
            found.append((low, high))
    return tuple(found)
