"""A guest's initial RAM disk: busybox and the modules that the guest needs, and what to do first, init.sh.

Modules are loaded here, once and for all: the guest's root is that of this machine, which has no modules for the
guest's kernel. The two parts are archives of their own, which the kernel unpacks one after the other, so that only the
first has to be kept with the kernel.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
from pathlib import Path

MODULES = (
    "virtio_pci", "virtio_net", "virtio_blk", "virtiofs", "virtio-rng", "veth", "tun", "sch_tbf", "inet_diag",
    "unix_diag",
)  # fmt: skip
"""What a guest boots from, here and with Vagrant, and what tests/hosts.py makes hosts of within a guest."""
INIT = Path(__file__).with_name("init.sh")
APPLETS = ("sh", "mount", "mkdir", "insmod", "switch_root", "hostname", "ip", "cat", "sleep")


def modules(tree: Path) -> bytes:
    """The compressed archive for one kernel, whose modules are in ``tree`` (…/lib/modules/RELEASE).

    FileNotFoundError names a module that the kernel neither has nor has built in.
    """
    busybox = shutil.which("busybox", path="/bin:/usr/bin")
    if busybox is None:
        raise FileNotFoundError("busybox is not installed; `make setup` does that (busybox-static)")
    archive = Archive()
    for directory in ("bin", "modules", "proc", "sys", "dev", "new"):
        archive.directory(directory)
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    wanted = _wanted(tree)
    for name, data in wanted:
        archive.file(f"modules/{name}.ko", data, 0o644)
    archive.file("modules/order", "".join(f"{name}\n" for name, _ in wanted).encode(), 0o644)
    return archive.compressed()


def init(script: Path = INIT) -> bytes:
    """The archive to come after `modules`: the first process is ``script``."""
    archive = Archive()
    archive.file("init", script.read_bytes(), 0o755)
    return archive.compressed()


def _wanted(tree: Path) -> list[tuple[str, bytes]]:
    """`MODULES` and all that they depend on, name and contents, in the order in which to load them."""
    files = {_name(path.name): path for path in tree.rglob("*.ko*")}
    builtin = {_name(Path(line).name) for line in (tree / "modules.builtin").read_text().split()}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise FileNotFoundError(f"kernel {tree.name} has no module {name}")
        data = _decompressed(files[name])
        # modinfo(8): what a module says of itself is NAME=VALUE, each ended by a zero byte
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in depends[1].decode().split(",") if depends else ():
            if needed:
                add(_name(needed))
        order[name] = data

    for wanted in MODULES:
        add(_name(wanted))
    return list(order.items())


def _name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".ko":
        return data
    if path.suffix == ".xz":
        return lzma.decompress(data)
    raise ValueError(f"{path.name}: not a compression known here")


class Archive:
    """A cpio archive in the form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format)."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.entries = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def file(self, name: str, data: bytes, mode: int) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, data)

    def compressed(self) -> bytes:
        """The whole archive."""
        self._add("TRAILER!!!", 0, b"")
        return gzip.compress(bytes(self.content), 6, mtime=0)

    def _add(self, name: str, mode: int, data: bytes) -> None:
        self.entries += 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self.entries, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        self.content += head + name.encode() + b"\0"
        self._align()
        self.content += data
        self._align()

    def _align(self) -> None:
        self.content += bytes(-len(self.content) % 4)
