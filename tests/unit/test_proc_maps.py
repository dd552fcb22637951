"""maps and smaps: what the kernel prints is read back, and what it would never print is an error that shows it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrate.engine.kernel.maps import Mapping, maps, smaps
from migrate.engine.kernel.procformat import ProcFormatError

# Anything but NUL can stand in a path; the backslash before three digits is ambiguous (see maps.py), " (deleted)" too.
name = st.text(st.characters(exclude_characters="\0\\", codec="utf-8"), min_size=1, max_size=40)
path = st.one_of(
    st.just(""),
    st.sampled_from(["[heap]", "[stack]", "[vdso]", "[anon:glibc: malloc]", "[anon_shmem:x y]"]),
    name.filter(lambda text: not text.endswith(" (deleted)")).map(lambda text: "/" + text),
)


@st.composite
def mappings(draw: st.DrawFn) -> list[Mapping]:
    borders = sorted(draw(st.lists(st.integers(0, 1 << 35), min_size=0, max_size=12, unique=True)))
    found = []
    for start, end in zip(borders[::2], borders[1::2], strict=False):
        where = draw(path)
        found.append(
            Mapping(
                start << 12,
                end << 12,
                "".join(draw(st.sampled_from(pair)) for pair in ("r-", "w-", "x-", "sp")),
                draw(st.integers(0, 1 << 50)),
                draw(st.integers(0, 4095)),
                draw(st.integers(0, 1 << 20)),
                draw(st.integers(0, (1 << 64) - 1)),
                where,
                where.startswith("/") and draw(st.booleans()),
            )
        )
    return found


def shown(mapping: Mapping) -> str:
    """As show_map_vma() prints it."""
    head = (
        f"{mapping.start:08x}-{mapping.end:08x} {mapping.perms} {mapping.offset:08x} "
        f"{mapping.major:02x}:{mapping.minor:02x} {mapping.inode} "
    )
    if not mapping.path:
        return head + "\n"
    return head.ljust(73) + mapping.path.replace("\n", "\\012") + (" (deleted)" if mapping.deleted else "") + "\n"


@given(mappings())
def test_maps_reads_what_the_kernel_prints(expected: list[Mapping]) -> None:
    assert maps("".join(map(shown, expected))) == expected


@given(mappings())
def test_smaps_reads_what_the_kernel_prints(expected: list[Mapping]) -> None:
    body = "Size:                  4 kB\nTHPeligible:           1\nProtectionKey:         0\nVmFlags: rd wr mr \n"
    found = smaps("".join(shown(mapping) + body for mapping in expected))
    assert [entry.mapping for entry in found] == expected
    for entry in found:
        assert entry.vm_flags == {"rd", "wr", "mr"}
        assert entry.fields == {"Size": 4, "THPeligible": 1, "ProtectionKey": 0}


@given(st.text(max_size=200))
def test_anything_else_is_an_error_of_its_own_kind(text: str) -> None:
    for parse in (maps, smaps):
        try:
            parse(text)
        except ProcFormatError:
            pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1000-2000 rw-p 0 00:00 0\nrubbish\n", "/proc/PID/maps: not a mapping: 'rubbish'"),
        ("1000-2000 rw-q 0 00:00 0\n", "/proc/PID/maps: not a mapping: '1000-2000 rw-q 0 00:00 0'"),
        ("1000-2000 rw-p 0 00:00 0", "/proc/PID/maps: not a mapping: '1000-2000 rw-p 0 00:00 0'"),
    ],
)
def test_the_line_that_is_wrong_is_shown(text: str, message: str) -> None:
    with pytest.raises(ProcFormatError) as caught:
        maps(text)
    assert str(caught.value) == message


def test_smaps_errors() -> None:
    with pytest.raises(ProcFormatError, match="'1000-2000 rw-p 0 00:00 0' has no VmFlags"):
        smaps("1000-2000 rw-p 0 00:00 0\nSize: 4 kB\n")
    with pytest.raises(ProcFormatError, match="fields of '1000-2000 rw-p 0 00:00 0' that are not numbers"):
        smaps("1000-2000 rw-p 0 00:00 0\nSize: x kB\nVmFlags: rd\n")


def test_a_newline_in_a_name_and_a_deleted_file() -> None:
    (found,) = maps("1000-2000 r--p 00000000 fe:00 5                          /tmp/a\\012b (deleted)\n")
    assert (found.path, found.deleted) == ("/tmp/a\nb", True)


def test_our_own() -> None:
    with open("/proc/self/maps") as file:
        found = maps(file.read())
    assert [m.path for m in found].count("[stack]") == 1
    assert any(m.path == os.path.realpath("/proc/self/exe") for m in found)
    with open("/proc/self/smaps") as file:
        entries = smaps(file.read())
    stack = next(entry for entry in entries if entry.mapping.path == "[stack]")
    assert "gd" in stack.vm_flags
    assert stack.fields["Size"] * 1024 == stack.mapping.size


def test_ten_thousand_lines() -> None:
    text = "".join(f"{n << 13:012x}-{(n << 13) + 4096:012x} rw-p 00000000 00:00 0 \n" for n in range(1, 10001))
    assert [m.start for m in maps(text)] == [n << 13 for n in range(1, 10001)]
