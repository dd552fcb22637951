"""Programs of several processes, moved together in the middle of their work and judged by their own results."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from tests.migration.journey import Journeys
from tests.tasks import children, wait_until

TAR = "tar --sort=name --mtime=@0 --owner=0 --group=0 -cf - -C {} ."
# However long it takes to move it, there is something left to be done.
PIPELINE = f"{{{{ {TAR}; until [ -e $VICTIM_GO ]; do sleep 0.1; done; {TAR}; }}}} | xz -T1 -6 | sha256sum"
AT_WORK = ("--no-converge", "continue", "--max-rounds", "4")  # they write more than a slow machine sends
SOURCES = 16


def _tree(directory: Path, count: int) -> Path:
    """A directory with so many files of a MiB of this machine's libraries."""
    directory.mkdir()
    made = 0
    for source in sorted(Path("/usr/lib/x86_64-linux-gnu").glob("*.so.*")):
        if made < count and source.is_file() and source.stat().st_size >= 1 << 20:
            with source.open("rb") as file:
                (directory / f"file{made}").write_bytes(file.read(1 << 20))
            made += 1
    assert made == count
    return directory


def test_a_pipeline(journeys: Journeys, tmp_path: Path) -> None:
    """tar | xz | sha256sum under one shell: not a byte is lost or there twice."""
    data = _tree(tmp_path / "data", 8)
    line = PIPELINE.format(data, data)
    told = {**os.environ, "VICTIM_GO": "/"}
    expected = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True, env=told).stdout
    journey = journeys.run("pipeline", ["bash", "-c", f"{line}; exit 3"])
    wait_until("all of it at work", lambda: len(children(journey.task.outer)) == 3)
    journey.move(*AT_WORK, look=False)
    assert len(children(journey.task.outer)) == 3 and not journey.out
    journey.tell()
    journey.task.wait_gone(120)
    assert journey.out == expected and not journey.err


def _project(directory: Path) -> int:
    """A program of many files, and what it prints when it has been built."""
    directory.mkdir()
    total = 0
    for number in range(SOURCES):
        lines = ["#include <stdio.h>", "#include <stdlib.h>", "#include <string.h>", "#include <math.h>"]
        for function in range(120):
            value = int.from_bytes(hashlib.sha256(b"%d %d" % (number, function)).digest()[:3], "big")
            total += value
            lines.append(
                f"static long f{function}(long x) {{ char b[64]; snprintf(b, 64, \"%ld\", x); long n = 0;"
                f" for (int i = 0; b[i]; i++) n = n * 10 + b[i] - 48; return n + {value} - x; }}"
            )
        calls = " + ".join(f"f{function}({function})" for function in range(120))
        lines.append(f"long part{number}(void) {{ return {calls}; }}")
        (directory / f"part{number}.c").write_text("\n".join(lines))
    parts = " ".join(f"long part{number}(void);" for number in range(SOURCES))
    calls = " + ".join(f"part{number}()" for number in range(SOURCES))
    main = f'#include <stdio.h>\n{parts}\nint main(void) {{ printf("%ld\\n", {calls}); return 0; }}\n'
    (directory / "main.c").write_text(main)
    objects = " ".join(f"part{number}.o" for number in range(SOURCES))
    (directory / "Makefile").write_text(f"CFLAGS = -O2\nprogram: main.o {objects}\n\t$(CC) -o $@ $^\n")
    return total


def test_make(journeys: Journeys, tmp_path: Path) -> None:
    """make -j4 in mid-build: compilers come and go while it is copied."""
    project = tmp_path / "project"
    expected = _project(project)
    journey = journeys.run("make", ["make", "-j4", "-C", str(project)])
    wait_until("mid-build", lambda: len(list(project.glob("*.o"))) >= 2, 60)
    journey.move(*AT_WORK, look=False)
    assert not (project / "program").exists()  # it had not been done by then
    journey.task.wait_gone(180)
    assert not journey.err, journey.complaint
    built = subprocess.run([project / "program"], check=True, capture_output=True, text=True).stdout
    assert int(built) == expected


JOBS = """
exec 2> /dev/null # where bash tells of its jobs
set -m
job() { until [ -e "$VICTIM_GO" ]; do sleep 0.05; done; echo "job $1"; exit $((10 + $1)); }
job 1 & first=$!
job 2 & second=$!
(sleep 1000; echo never) & third=$!
job 4 & fourth=$!
kill -STOP %2
echo ready
until [ -e "$VICTIM_GO" ]; do sleep 0.05; done
jobs -s | grep -c Stopped
kill -CONT %2
kill -TERM %3
for pid in $first $second $third $fourth; do wait $pid; echo "ended with $?"; done
echo pass
"""


def test_background_jobs(journeys: Journeys) -> None:
    """Each in a process group of its own, one of them stopped, of a shell that waits for them afterwards."""
    journey = journeys.run("jobs", ["bash", "-c", JOBS])
    wait_until("its jobs", lambda: "ready\n" in journey.out)
    journey.move(*AT_WORK, look=False)
    journey.tell()
    journey.task.wait_gone(30)
    said = journey.out.splitlines()
    assert not journey.err and said[-1] == "pass", journey.complaint
    assert "1" in said  # that was stopped
    assert [line for line in said if "ended" in line] == [f"ended with {code}" for code in (11, 12, 143, 14)]
    assert {"job 1", "job 2", "job 4"} < set(said)
