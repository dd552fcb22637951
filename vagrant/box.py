"""Builds a Vagrant box from Debian packages, for machines that cannot download one.

    python -m vagrant.box DIRECTORY

leaves in DIRECTORY the box (``migrate-local.box``), the key to get in (``id_ed25519``), and for each of the two
machines a kernel and an initrd, which differ; the Vagrantfile takes DIRECTORY as the name of a box. What is there
already and up to date is not built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.crosskernel import initrd, kernels
from vagrant import bundle, contained

HERE = Path(__file__).parent
NAME = "migrate-local"
RELEASE = "bookworm"
PACKAGES = "python3,openssh-server,sudo,iproute2,procps,kmod,busybox-static"
MACHINES = {"source": "5.10", "destination": "7.2"}
SIZE = "1200M"
NEEDS = "opt/migrate-needs"
"""Where the packages are that migrate needs."""


def build(target: Path) -> None:
    """All of it. CalledProcessError or OSError says what could not be done; what was whole before stays so.

    To be run as `main` does it: debootstrap mounts, and leaves that behind when it is killed.
    """
    target.mkdir(parents=True, exist_ok=True)
    ready = kernels.fetch()
    for machine, kernel in MACHINES.items():
        place = target / machine
        place.mkdir(exist_ok=True)
        shutil.copyfile(ready[kernel].image, place / "vmlinuz")
        (place / "initrd").write_bytes(ready[kernel].modules.read_bytes() + initrd.init(HERE / "guest" / "first"))
    key = target / "id_ed25519"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", NAME, "-f", str(key)], check=True)
    box, stamp = target / f"{NAME}.box", target / f"{NAME}.recipe"
    needs = bundle.needs(target)
    recipe = _recipe(key.with_suffix(".pub"), needs)
    if box.exists() and stamp.exists() and stamp.read_text() == recipe:
        return
    with tempfile.TemporaryDirectory(prefix="box-", dir=target) as scratch:
        image = _image(Path(scratch), key.with_suffix(".pub").read_text(), needs)
        made = _box(Path(scratch), image)
        stamp.unlink(missing_ok=True)
        made.rename(box)
        stamp.write_text(recipe)


def _recipe(key: Path, needs: Path) -> str:
    digest = hashlib.blake2b(needs.name.encode(), digest_size=16)
    for path in (Path(__file__), HERE / "guest" / "init", key):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _image(scratch: Path, key: str, needs: Path) -> Path:
    """A root file system with what a machine needs, and what migrate needs, as a disk image."""
    root = scratch / "root"
    mirror = kernels.debian_mirror()
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(root), mirror],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    for unused in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / unused)
    # In the place of systemd, which takes half a minute to start on an emulated machine.
    shutil.copy2(HERE / "guest" / "init", root / "sbin/init")
    (root / "sbin/init").chmod(0o755)
    for command in ("shutdown", "halt", "poweroff"):
        (root / "sbin" / command).write_text("#!/bin/sh\nsync\nexec busybox poweroff -f\n")
        (root / "sbin" / command).chmod(0o755)
    subprocess.run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "vagrant"], check=True)
    (root / "etc/sudoers.d/vagrant").write_text("vagrant ALL=(ALL) NOPASSWD: ALL\n")
    # "*": no password, and not locked, as sshd without PAM wants it
    subprocess.run(["chroot", str(root), "usermod", "--password", "*", "vagrant"], check=True)
    ssh = root / "home/vagrant/.ssh"
    ssh.mkdir(mode=0o700)
    (ssh / "authorized_keys").write_text(key)
    subprocess.run(["chroot", str(root), "chown", "-R", "vagrant:vagrant", "/home/vagrant/.ssh"], check=True)
    (root / "etc/ssh/sshd_config.d/vagrant.conf").write_text("UsePAM no\nUseDNS no\n")
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()  # each machine makes its own
    shutil.copytree(needs, root / NEEDS)
    (root / "etc/fstab").write_text("")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    disk = scratch / "disk"
    made = ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), SIZE]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    image = scratch / "box.img"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(image)], check=True)
    return image


def _box(scratch: Path, image: Path) -> Path:
    """The image and what Vagrant wants to know of it (vagrant-libvirt's box format)."""
    size = json.loads(subprocess.run(
        ["qemu-img", "info", "--output=json", str(image)], check=True, text=True, capture_output=True
    ).stdout)["virtual-size"]  # fmt: skip
    metadata = {"provider": "libvirt", "format": "qcow2", "virtual_size": -(-size // (1 << 30))}
    (scratch / "metadata.json").write_text(json.dumps(metadata))
    (scratch / "Vagrantfile").write_text('Vagrant.configure("2") { |config| config.vm.guest = :linux }\n')
    made = scratch / f"{NAME}.box"
    with tarfile.open(made, "w:gz", compresslevel=1) as box:
        for name in ("metadata.json", "Vagrantfile", "box.img"):
            box.add(scratch / name, name)
    return made


def main(target: Path, *inside: str) -> None:
    """Build in namespaces of its own."""
    if inside:
        build(target)
    else:
        contained.run([sys.executable, "-m", "vagrant.box", str(target), "inside"])


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("debootstrap needs root")
    main(Path(sys.argv[1]).absolute(), *sys.argv[2:])
