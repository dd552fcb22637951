"""How one gets into the hosts of tests: keys, the configuration of ssh and of sshd, and accounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

USERS = {"mover": 4201, "guest": 4202}
"""Besides root on every host: ``mover`` may use sudo without a password, ``guest`` may not use it at all."""
PASSWORD = "open sesame"
"""Of both; the key in `Host.ssh_config` opens everybody's account, root's too."""


def write_ssh(base: Path, names: Mapping[str, str]) -> Path:
    """Keys, known hosts and a user's ssh config for hosts name → address; returns the config's path."""
    user_key = base / "id_ed25519"
    _keygen(user_key)
    (base / "authorized_keys").write_text((base / "id_ed25519.pub").read_text())
    config = base / "ssh_config"
    config.write_text(
        f"Host *\n    User root\n    IdentityFile {user_key}\n    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {base}/known_hosts\n    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
    )
    for name, address in names.items():
        add_host(base, name, address)
    return config


def add_host(base: Path, name: str, address: str) -> None:
    """One more host for the ssh config of `write_ssh`, with a directory and a key of its own."""
    directory = base / name
    directory.mkdir()
    _keygen(directory / "host_key")
    kind, key = (directory / "host_key.pub").read_text().split()[:2]
    with (base / "known_hosts").open("a") as known:
        known.write(f"{name},{address} {kind} {key}\n")
    with (base / "ssh_config").open("a") as config:
        config.write(f"Host {name}\n    HostName {address}\n")


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)], check=True)


def write_sshd(
    base: Path, name: str, address: str, environment: Mapping[str, str], shadow: Path = Path("/etc/shadow")
) -> Path:
    """The configuration of an sshd with the keys of `write_ssh`; ``environment`` is what root's sessions begin with."""
    # Without PAM sshd refuses an account whose password field begins with "!" (sshd auth.c, LOCKED_PASSWD_PREFIX).
    locked = any(line.startswith("root:!") for line in shadow.read_text().splitlines())
    config = base / name / "sshd_config"
    config.write_text(
        f"ListenAddress {address}\nHostKey {base}/{name}/host_key\nAuthorizedKeysFile {base}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM {'yes' if locked else 'no'}\nUseDNS no\nPrintMotd no\nPrintLastLog no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\n"
        "MaxStartups 1000\nMaxSessions 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\n"
        f"Match User root\nSetEnv {' '.join(f'{key}={value}' for key, value in environment.items())}\n"
    )
    return config


def write_users(host: Path) -> None:
    """The host's own /etc/passwd, shadow, group and sudoers.d: this machine's, and `USERS`, who have homes here."""
    etc = host / "etc"
    (etc / "sudoers.d").mkdir(parents=True)
    (host / "home").mkdir()
    tables = {table: Path("/etc", table).read_text() for table in ("passwd", "shadow", "group")}
    crypted = subprocess.run(["openssl", "passwd", "-6", PASSWORD], check=True, text=True, capture_output=True)
    for user, number in USERS.items():
        home = host / "home" / user
        home.mkdir(mode=0o700)
        os.chown(home, number, number)
        tables["passwd"] += f"{user}:x:{number}:{number}::{home}:/bin/sh\n"
        tables["shadow"] += f"{user}:{crypted.stdout.strip()}:19000:0:99999:7:::\n"
        tables["group"] += f"{user}:x:{number}:\n"
    for table, text in tables.items():
        (etc / table).write_text(text)
        (etc / table).chmod(0o640 if table == "shadow" else 0o644)
    rule = etc / "sudoers.d" / "mover"
    rule.write_text("mover ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
