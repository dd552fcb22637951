"""An sshd that the tests of a file share, and ways to it; and what a restorer that only pretends is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrate.transport.target import Destination
from tests.unit.sshd import Sshd, sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    directory = tmp_path_factory.mktemp("sshd")
    (directory / "bin").mkdir()
    # HOME: what root has in ~/.bashrc is none of our business
    environment = f"SetEnv HOME={directory} XDG_CACHE_HOME={directory}/cache XDG_STATE_HOME={directory}/state"
    path = f"{directory}/bin:{os.environ['PATH']}"
    with sshd(directory, f"{environment} PATH={path}", "LogLevel ERROR") as running:
        yield running


@pytest.fixture
def there(server: Sshd) -> Destination:
    return Destination("there", config=str(server.config))


@pytest.fixture
def keyless(server: Sshd, tmp_path: Path) -> Destination:
    """The same, but the configuration names no key."""
    lines = server.config.read_text().splitlines(keepends=True)
    config = tmp_path / "keyless"
    config.write_text("".join(line for line in lines if "IdentityFile" not in line))
    return Destination("there", config=str(config))


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Where the stand-in for a restorer writes what it was sent."""
    path = tmp_path / "pages"
    path.touch()
    return path
