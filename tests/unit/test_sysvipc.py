"""The tables of System V objects, as kernels print them (ipc/shm.c, ipc/sem.c, ipc/msg.c)."""

from __future__ import annotations

import pytest

from migrate.engine.kernel.procformat import ProcFormatError
from migrate.engine.kernel.sysvipc import parse

SHM = (
    "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime"
    "      ctime                   rss                  swap\n"
    "   1482065          0   600                    56   812  1044      8   100   107   100   107 1795267995 1795268002"
    " 1795267995                  4096                     0\n"
    "-559038737      32769  3644               1048576   812   812      1     0     0   100   107 1795267995          0"
    " 1795267995                     0                     0\n"
)
SEM = """\
       key      semid perms      nsems   uid   gid  cuid  cgid      otime      ctime
         0         65   606          4  4242     0     0     0          0 1795267995
"""


def test_segments() -> None:
    one, other = parse("shm", SHM)
    assert (one.key, one.id, one.mode, one.uid, one.gid, one.cuid, one.cgid) == (1482065, 0, 0o600, 100, 107, 100, 107)
    assert one.fields["size"] == 56 and one.fields["nattch"] == 8 and one.fields["cpid"] == 812
    assert other.key == 0xDEADBEEF and other.mode == 0o3644


def test_semaphores() -> None:
    (found,) = parse("sem", SEM)
    assert (found.id, found.mode, found.uid, found.fields["nsems"]) == (65, 0o606, 4242, 4)


@pytest.mark.parametrize("text", ["", "key shmid\n", SEM, SHM + "1 2 3\n", SHM.replace(" 56 ", " many ")])
def test_what_is_no_table(text: str) -> None:
    with pytest.raises(ProcFormatError, match="sysvipc/shm"):
        list(parse("shm", text))
