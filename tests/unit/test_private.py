"""Where the destination agent keeps files (agents/private.py): nobody else reads them, and nobody could plant them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agents import private

SOMEBODY = 4242


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$XDG_STATE_HOME, which does not exist yet."""
    path = tmp_path / "a" / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(path))
    return path


def opened() -> Path:
    fd, path = private.state_directory("ours")
    os.close(fd)
    return Path(path)


def test_made_for_us_alone(base: Path) -> None:
    before = os.umask(0)
    try:
        fd, path = private.state_directory("ours")
        os.close(private.create(fd, "file"))
        with pytest.raises(FileExistsError):
            private.create(fd, "file")
        Path(path, "link").symlink_to("elsewhere")
        with pytest.raises(FileExistsError):
            private.create(fd, "link")
        os.close(fd)
    finally:
        os.umask(before)
    assert Path(path) == base / "ours" == opened()
    modes = [stat.S_IMODE(os.stat(each).st_mode) for each in (base, path, Path(path, "file"))]
    assert modes == [0o700, 0o700, 0o600]
    assert not Path(path, "elsewhere").exists()


def test_what_is_not_ours_alone_is_refused(base: Path) -> None:
    path = opened()
    for mode in (0o750, 0o707, 0o701):
        path.chmod(mode)
        with pytest.raises(PermissionError, match="not a directory of our own with mode 0700"):
            opened()
    path.chmod(0o700)
    os.chown(path, SOMEBODY, -1)
    with pytest.raises(PermissionError, match="not a directory of our own"):
        opened()
    path.rmdir()
    for target in (base.parent, None):
        if target is None:
            path.touch()
        else:
            path.symlink_to(target)
        with pytest.raises(PermissionError, match="not a directory of our own"):
            opened()
        path.unlink()
    opened()


def test_what_somebody_could_exchange_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened()
    above = base.parent
    for mode in (0o777, 0o770, 0o702):
        above.chmod(mode)
        with pytest.raises(PermissionError, match="others may write there"):
            opened()
    above.chmod(0o1777)  # as /tmp: what is in it belongs to who made it
    opened()
    os.chown(above, SOMEBODY, -1)
    with pytest.raises(PermissionError, match=f"belongs to user {SOMEBODY}"):
        opened()
    os.chown(above, os.geteuid(), -1)
    above.chmod(0o755)
    # by whatever way one comes there
    link = above.parent / "link"
    link.symlink_to(above)
    monkeypatch.setenv("XDG_STATE_HOME", str(link / "state"))
    opened()
    above.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write there"):
        opened()
    above.chmod(0o755)
