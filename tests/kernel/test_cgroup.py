"""Control groups: a restored process in the one that it had, or another; what is left when nothing comes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import cgroup
from tests.kernel.checkpoints import Job, Keep, dump, keeping, migrate, restore
from tests.tasks import status_field, wait_until


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def group() -> Iterator[Path]:
    """A group of this test's own."""
    top = Path(cgroup.hierarchy(Path("/proc/self/mountinfo").read_text())) / f"migrate-test-{os.getpid()}"
    top.mkdir()
    yield top
    left = [path for path in sorted(top.rglob("*"), reverse=True) if path.is_dir()]
    made = [str(top), *map(str, reversed(left))]
    cgroup.remove(made)
    assert not made, "a group still has processes"


@pytest.fixture
def keep(group: Path) -> Iterator[Keep]:
    """Ends what it is given, and then the group can go."""
    with keeping() as add:
        yield add


def of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def sleeping(keep: Keep, group: Path | None = None) -> Job:
    job = keep(Job.start("sleep", "1000"))
    wait_until("asleep", lambda: status_field(job.pid, "State")[:1] == ["S"])
    if group is not None:
        (group / "cgroup.procs").write_text(str(job.pid))
    return job


def test_kept_and_made_again(group: Path, tmp_path: Path, keep: Keep) -> None:
    """Also when it has gone meanwhile; without the option it is the command's."""
    inner = group / "inner"
    inner.mkdir()
    job = sleeping(keep, inner)
    assert of(job.pid) == f"/{group.name}/inner"
    dump(job, tmp_path / "checkpoint")
    inner.rmdir()
    again, _ = restore(tmp_path / "checkpoint", "--cgroup", "keep")
    keep(again)
    assert of(again.pid) == f"/{group.name}/inner"
    again.close()
    plain, _ = restore(tmp_path / "checkpoint")
    keep(plain)
    assert of(plain.pid) == of(os.getpid())


def test_another_one(group: Path, tmp_path: Path, keep: Keep) -> None:
    """With the children."""
    job = keep(Job.start("sh", "-c", "sleep 1000 & sleep 1000; wait"))
    wait_until("asleep", lambda: len(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()) == 2)
    dump(job, tmp_path / "checkpoint")
    again, _ = restore(tmp_path / "checkpoint", "--cgroup", f"/{group.name}/a/b")
    keep(again)
    below = [int(pid) for pid in Path(f"/proc/{again.pid}/task/{again.pid}/children").read_text().split()]
    assert [of(pid) for pid in (again.pid, *below)] == [f"/{group.name}/a/b"] * 3
    for pid in below:
        os.kill(pid, 9)
    again.close()


@pytest.mark.parametrize("point", ["created", "restored"])
def test_taken_away_by_a_rollback(
    group: Path, point: str, tmp_path: Path, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before stays."""
    (group / "there").mkdir()
    dump(sleeping(keep), tmp_path / "checkpoint")
    monkeypatch.setenv("MIGRATE_FAULT", f"{point}:fail")
    migrate("restore", "--cgroup", f"/{group.name}/there/not/yet", tmp_path / "checkpoint", code=5)
    assert [path.name for path in group.rglob("*") if path.is_dir()] == ["there"]


def test_one_that_can_have_no_processes(group: Path, tmp_path: Path, keep: Keep) -> None:
    """Refused, with the reason, and nothing is left. A threaded group may have no whole process."""
    inner = group / "threads" / "more"
    inner.mkdir(parents=True)
    (group / "threads" / "cgroup.type").write_text("threaded")
    dump(sleeping(keep), tmp_path / "checkpoint")
    _, err = migrate("restore", "--cgroup", f"/{group.name}/threads/more/new", tmp_path / "checkpoint", code=3)
    assert f"no control group /{group.name}/threads/more/new (--cgroup): " in err and "threaded" in err
    assert not (inner / "new").exists()


def test_what_cannot_be_kept(group: Path, tmp_path: Path, keep: Keep) -> None:
    """Processes of one tree in several groups."""
    (group / "other").mkdir()
    job = keep(Job.start("sh", "-c", "sleep 1000; exit 0"))
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children")
    wait_until("asleep", lambda: bool(children.read_text()))
    (child,) = children.read_text().split()
    (group / "other" / "cgroup.procs").write_text(child)
    dump(job, tmp_path / "checkpoint")
    _, err = migrate("restore", "--cgroup", "keep", tmp_path / "checkpoint", code=3)
    assert f"pid {child}: is in the control group /{group.name}/other" in err


def test_paths() -> None:
    for path in ("/", "/a", "/a.slice/b c"):
        assert cgroup.check_path(path) == path
    for path in ("", "a", "/a/", "//a", "/a/../b", "/./a", "/a\0b"):
        with pytest.raises(ValueError, match="is not the path of a control group"):
            cgroup.check_path(path)
    _, err = migrate("restore", "--cgroup", "../x", "nowhere", code=2)
    assert "'../x' is not the path of a control group" in err


def test_where_it_is_mounted() -> None:
    v1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    part = "31 25 0:27 /part /part rw - cgroup2 cgroup2 rw\n"
    assert cgroup.hierarchy(v1 + part + "32 25 0:27 / /sys/fs/my\\040group rw shared:4 - cgroup2 none rw\n") == (
        "/sys/fs/my group"
    )
    with pytest.raises(FileNotFoundError, match="no hierarchy"):
        cgroup.hierarchy(v1 + part)
