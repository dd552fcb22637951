"""tests/leaks.py sees each kind of leak, and the time limit and the rule about skips bite."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import leaks
from tests.hosts import Pair

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settled() -> Iterator[Callable[[], list[str]]]:
    before = leaks.take()
    yield lambda: leaks.settle(before, seconds=0.2)


def test_nothing(settled: Callable[[], list[str]]) -> None:
    assert settled() == []


def test_child_and_zombie(settled: Callable[[], list[str]]) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        [line] = settled()
        assert line.startswith("process ") and line.endswith(": sleep 1000")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert "zombie" in settled()[0]
    assert settled() == []


def test_orphan(settled: Callable[[], list[str]]) -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout
        orphan = int(shell.stdout.readline())
    assert [line.rpartition(": ")[2] for line in settled()] == ["sleep 1000"]
    os.kill(orphan, 9)
    os.waitpid(orphan, 0)
    assert settled() == []


def test_process_in_a_host(two_hosts: Pair, settled: Callable[[], list[str]]) -> None:
    task = two_hosts.b.spawn(["sleep", "1000"])
    assert any("sleep 1000" in line for line in settled())
    task.kill()
    two_hosts.finish()
    assert settled() == []


def test_mount_in_a_host(two_hosts: Pair) -> None:
    inits = [two_hosts.a.init, two_hosts.b.init]
    before = leaks.take(lambda: inits)
    two_hosts.b.run(["mount", "-t", "tmpfs", "leak", "/mnt"])
    assert ["leak" in line for line in leaks.settle(before, lambda: inits, 0.1)] == [True]
    two_hosts.b.run(["umount", "/mnt"])
    assert leaks.settle(before, lambda: inits, 0.1) == []


def test_descriptor_thread_and_file(settled: Callable[[], list[str]]) -> None:
    reader, writer = os.pipe()
    assert [line.partition(":")[0] for line in settled()] == ["descriptor", "descriptor"]
    os.close(reader)
    os.close(writer)
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    assert [line.partition(":")[0] for line in settled()] == ["thread"]
    ending.set()
    thread.join()
    with tempfile.NamedTemporaryFile(prefix="migrate-leak", dir="/tmp") as file:
        found = settled()
        assert f"temporary file: {file.name}" in found
    assert settled() == []


def run_test(directory: Path, body: str, **environment: str) -> tuple[int, str]:
    """Run one test file with our conftest, and give pytest's status and output."""
    (directory / "conftest.py").write_text("from tests.conftest import *\n")
    (directory / "test_it.py").write_text(f"import os, pytest, subprocess, time\n{body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"),
        "--rootdir", str(directory), str(directory)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60,
        env={**os.environ, "CI": "", **environment})
    return done.returncode, done.stdout + done.stderr


def test_a_leaking_test_fails(tmp_path: Path) -> None:
    body = f"import tests.conftest as c, pathlib\nc.CHECKED = (pathlib.Path({str(tmp_path)!r}),)\n" \
        "kept = []\ndef test_leak():\n    kept.append(os.open('/dev/null', os.O_RDONLY))"
    status, output = run_test(tmp_path, body)
    assert status == 1 and "left behind:" in output and "/dev/null" in output


def test_too_long_fails(tmp_path: Path) -> None:
    status, output = run_test(tmp_path, "@pytest.mark.timeout(0.2)\ndef test_slow():\n    time.sleep(60)")
    assert status == 1 and "was not done after 0.2 s" in output


@pytest.mark.parametrize("body", ["def test_it():\n    pytest.skip('no reason')",
    "pytest.skip('no reason', allow_module_level=True)", "@pytest.mark.skip(reason='no reason')\ndef test_it(): pass"])
def test_a_skip_fails_in_ci(tmp_path: Path, body: str) -> None:
    status, output = run_test(tmp_path, body, CI="true")
    assert status in (1, 2) and "CI=true does not allow that" in output and "no reason" in output
    status, output = run_test(tmp_path, body)
    assert status in (0, 5) and "1 skipped" in output
