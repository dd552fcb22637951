"""A real sshd on a private port of 127.0.0.1, with keys and configuration of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Sshd:
    """A running server, and a client configuration that gets in."""

    port: int
    directory: Path
    config: Path
    key: Path
    known_hosts: Path
    log: Path

    @property
    def user(self) -> str:
        return pwd.getpwuid(os.geteuid()).pw_name


def keygen(path: Path, passphrase: str = "") -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)


@contextmanager
def sshd(directory: Path, *extra: str) -> Iterator[Sshd]:
    """Runs it until the end of the block. ``extra``: lines of its sshd_config, which count before ours."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program, "sshd is not installed: apt-get install openssh-server"
    Path("/run/sshd").mkdir(exist_ok=True)
    host_key, key = directory / "host_key", directory / "key"
    keygen(host_key)
    keygen(key)
    shutil.copy(f"{key}.pub", directory / "authorized_keys")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = directory / "sshd_config"
    server.write_text("\n".join((
        *extra, f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {host_key}", "PidFile none", "UsePAM no",
        "StrictModes no", f"AuthorizedKeysFile {directory}/authorized_keys", "PermitRootLogin yes",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no", "PermitUserEnvironment no", "",
    )))
    known_hosts = directory / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {Path(f'{host_key}.pub').read_text()}")
    config = directory / "config"
    config.write_text(
        f"Host there\n  Hostname 127.0.0.1\n  Port {port}\n  IdentityFile {key}\n"
        f"Host *\n  UserKnownHostsFile {known_hosts}\n  GlobalKnownHostsFile /dev/null\n  IdentityAgent none\n"
    )
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(server)], stderr=output)
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        yield Sshd(port, directory, config, key, known_hosts, log)
    finally:
        process.kill()
        process.wait()
