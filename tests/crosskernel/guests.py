"""One topology of several kernels: a host of this machine (tests/hosts.py) and emulated guests on the host's bridge.

Guests have this machine's filesystem as their root, read-only, over virtiofs: the same programs and libraries under the
same names, this checkout included. The test bed's directory is shared and writable; /tmp, /run and /dev are each
guest's own. Nothing is installed, nothing is copied, and of a guest nothing remains.

There is no KVM: a guest is ready in about ten seconds, and runs some ten to twenty times slower than this machine.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests import hosts
from tests.crosskernel import initrd, kernels
from tests.crosskernel.nodes import Node
from tests.hosts import Host
from tests.logins import add_host, write_ssh, write_sshd
from tests.tasks import wait_until
from tests.victims import HERE as VICTIM_SOURCES
from tests.victims import Victims, default_cache

CHECKOUT = Path(__file__).parents[2]
HOST = "host"
"""The name of the endpoint that runs this machine's own kernel."""
MEMORY = "768M"
CPU = "Haswell-noTSX,-cx16"
"""What guests show where nothing else is asked for: no more than machines have that run the tests, AVX2 included, so
that a process may come back. Without cx16, which no guest has: qemu 7.2 leaves operands of cmpxchg16b in the flags, and
when an interrupt comes next, they are saved and restored as flags; the kernel's allocator uses the instruction, and
half the boots of 6.12 ended in a panic or hung."""
BOOT_SECONDS = 300.0
CHECKOUT = Path(__file__).resolve().parents[2]
XDG = {"XDG_STATE_HOME": "/var/tmp/state", "XDG_CACHE_HOME": "/var/tmp/cache"}
LIMITS = (  # as prlimit(1) and the module resource name them
    *("as", "core", "cpu", "data", "fsize", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
DAEMONS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")  # of qemu-system-common, and since Debian 13 its own
VICTIMS = "victims"
"""Below the test bed's directory: the cache of compiled victims, to which guests may add."""
ORDERS = "orders"
"""A script in a guest's directory, which its first process runs at a SIGUSR1: whoever logs in is confined."""
START = """\
mkdir -p {made}
# as udev does it; without /dev/fd TOMOYO, which Debian's 5.10 has on, lets nobody execute what has but a descriptor
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
# copies, because the names of files in a FUSE file system that is not cached are soon forgotten: nothing can be mounted
# on them then, or made in them
cp -pr {directory}/passwd {directory}/shadow {victims} /run/
mount --bind /run/passwd /etc/passwd
mount --bind /run/shadow /etc/shadow
mount --bind /run/{name} {cache}
# sshd goes to the background; this shell goes on as pid 1, reaps what is orphaned, and does what it alone may do
{sshd}
trap 'sh {directory}/{orders}' USR1
sleep 2147483647 &
while :; do wait; done
"""


@dataclass
class HostNode(Node):
    """This machine's kernel: a host of namespaces, whose eth0 is the bridge that the guests are on."""

    host: Host

    def enter(self, argv: Sequence[str]) -> list[str]:
        """See `Node`."""
        return self.host.enter(["setpriv", "--pdeathsig", "KILL", *argv])


@dataclass
class Guest(Node):
    """A virtual machine with a kernel of its own."""

    bridge: Host
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def console(self) -> str:
        """What its kernel has said."""
        return (self.directory / "console.log").read_text(errors="replace")

    @property
    def control(self) -> Path:
        """The socket of the SSH connection that all commands go over. Its name must be short, for unix(7)."""
        return self.directory / "ssh"

    def enter(self, argv: Sequence[str]) -> list[str]:
        """See `Node`."""
        return ["ssh", "-F", str(self.ssh_config), "-S", str(self.control), self.name, shlex.join(argv)]

    def start(self, command: Sequence[str], log: str) -> None:
        """Start one of the processes that make up the guest, in the bridge's network; it ends with us, or at `off`."""
        # with the lowest claim to this machine's cores
        wrapped = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10"]
        wrapped += ["nsenter", f"--target={self.bridge.init}", "--net", *command]
        with (self.directory / log).open("wb") as output:
            self.processes.append(subprocess.Popen(
                wrapped, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            ))

    def is_up(self) -> bool:
        """Whether its sshd takes connections. AssertionError, with what was said, when the guest has ended."""
        if any(process.poll() is not None for process in self.processes):  # a panic ends it
            logs = [self.directory / name for name in ("qemu.log", "root.log", "bed.log", "ssh.log")]
            said = "".join(path.read_text(errors="replace") for path in logs if path.exists())
            raise AssertionError(f"{self.name} does not run\n{said}{self.console[-3000:]}")
        log = self.directory / "sshd.log"
        return log.exists() and "Server listening" in log.read_text()

    def connect(self) -> None:
        """Open the SSH connection."""
        options = ["-o", "ControlMaster=yes", "-o", "ConnectTimeout=120"]
        self.start(["ssh", "-F", str(self.ssh_config), "-S", str(self.control), *options, "-N", self.name], "ssh.log")
        wait_until(f"a connection to {self.name}", lambda: self.is_up() and self.control.exists(), BOOT_SECONDS)

    def off(self) -> None:
        """Pull the plug."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()
        if self.resident is not None:
            self.resident.close()


class Topology:
    """A host, its bridge, and the guests that were asked for so far. A guest is named as `kernels.SUITES` names its
    kernel; a name with a slash has qemu's name of a CPU after it (``6.1/qemu64``), and is another guest."""

    def __init__(self, directory: Path, config: Path, net: str, bridge: Host, stack: ExitStack) -> None:
        self.directory, self._net, self._config, self._bridge, self._stack = directory, net, config, bridge, stack
        self.host = HostNode(HOST, bridge.address, bridge.directory, config, bridge.xdg, bridge)
        self.guests: dict[str, Guest] = {}

    def __getitem__(self, name: str) -> Node:
        return self.host if name == HOST else self.guests[name]

    def need(self, *names: str) -> None:
        """Boot those of these guests that do not run yet, all at once."""
        missing = [name for name in dict.fromkeys(names) if name not in self.guests and name != HOST]
        ready = kernels.fetch() if missing else {}
        for name in missing:
            kernel, _, cpu = name.partition("/")
            own, number = f"linux{name.replace('.', '-').replace('/', '-')}", len(self.guests) + 11
            guest = Guest(own, f"{self._net}.{number}", self.directory / own, self._config, XDG, self._bridge)
            add_host(self.directory, own, guest.address)
            self.guests[name] = guest
            self._stack.callback(guest.off)
            _boot(guest, ready[kernel], number, f"{cpu},-cx16" if cpu else CPU)
        for name in missing:
            wait_until(f"{name} to boot", self.guests[name].is_up, BOOT_SECONDS)
            self.guests[name].connect()
            self.guests[name].take_commands()
        for name in missing:
            self.guests[name].migrate("--version")  # when it answers, it has settled in
            self.guests[name].clean = self.guests[name].look()

    def finish(self) -> list[str]:
        """End of a test: what it started is killed, on every endpoint. Returns what is left behind all the same."""
        nodes: list[Node] = [self.host, *self.guests.values()]
        for node in nodes:
            node.finish()
        self._bridge.finish()
        return [line for node in nodes for line in node.left()]


@contextmanager
def topology() -> Iterator[Topology]:
    """The host, and guests as they are asked for; all of it is gone afterwards."""
    # guests cannot keep what they compile, and would do it again for every command
    subprocess.run([sys.executable, "-m", "compileall", "-q", "agents", "migrate", "tests"], cwd=CHECKOUT, check=True)
    net = f"10.{200 + os.getpid() % 50}.255"
    with hosts.directory() as base, ExitStack() as stack:
        for source in VICTIM_SOURCES.glob("*.c"):  # now, because compilers are slow in a guest
            Victims()(source.stem)
        shutil.copytree(default_cache(), base / VICTIMS)  # with its times, as the files of a moved process must be
        config = write_ssh(base, {HOST: f"{net}.1"})
        host = Host(HOST, f"{net}.1", base / HOST, config, 0)
        process = stack.enter_context(hosts.booted(host))
        host.run(["ip", "link", "add", "eth0", "type", "bridge"])
        hosts.connected(host, process)
        made = Topology(base, config, net, host, stack)
        wait_until("sshd on the host", lambda: hosts.listens(host))
        stack.callback(made.host.take_commands().close)
        made.host.migrate("--version")
        made.host.clean = made.host.look()
        yield made


def confined() -> str:
    """A command that gives a guest's root no more capabilities than this machine's has, a process that has one more
    cannot come here; and this machine's limits, which cannot be raised there without CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd:")).split()[1], 16)
    highest = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    lacking = ",".join(f"-cap_{number}" for number in range(highest + 1) if not bounding >> number & 1)
    bounds = f"setpriv --inh-caps={lacking} --bounding-set={lacking}" if lacking else ""
    limits = [f"--{name}={_limit(getattr(resource, f'RLIMIT_{name.upper()}'))}" for name in LIMITS]
    return f"prlimit {' '.join(limits)} {bounds}"


def _limit(number: int) -> str:
    """As prlimit(1) wants it."""
    both = resource.getrlimit(number)
    return ":".join("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in both)


def write_accounts(directory: Path) -> None:
    """This machine's accounts, but for root's, who has no password and the quickest shell: bash, which sshd starts,
    would read root's .bashrc, and there may be anything in that."""
    for table, column in (("passwd", 6), ("shadow", 1)):
        lines = [line.split(":") for line in Path("/etc", table).read_text().splitlines()]
        for words in lines:
            if words[0] == "root":
                words[column] = "/bin/sh" if table == "passwd" else "*"
        (directory / table).write_text("".join(":".join(words) + "\n" for words in lines))


def _boot(guest: Guest, kernel: kernels.Kernel, number: int, cpu: str) -> None:
    """Start what makes up a guest, and return at once."""
    base = guest.directory.parent
    sshd = shutil.which("sshd", path=hosts.SEARCH)
    daemon = next((path for path in DAEMONS if Path(path).exists()), None)
    if sshd is None or daemon is None:
        raise FileNotFoundError("sshd or virtiofsd is not installed; `make setup` does that")
    write_accounts(guest.directory)
    config = write_sshd(base, guest.name, guest.address, XDG, guest.directory / "shadow")
    (guest.directory / "start").write_text(START.format(
        directory=guest.directory, orders=ORDERS, made=" ".join(XDG.values()), victims=base / VICTIMS, name=VICTIMS,
        cache=default_cache(),
        sshd=f"{confined()} {sshd} -f {config} -E {guest.directory}/sshd.log",
    ))
    image = guest.directory / "initrd"
    image.write_bytes(kernel.modules.read_bytes() + initrd.init())
    tap = f"tap{number}"
    guest.bridge.run(["ip", "tuntap", "add", tap, "mode", "tap"])
    guest.bridge.run(["ip", "link", "set", tap, "master", "eth0", "up"])
    devices: list[str] = []
    # the root is looked up once and believed in; of the test bed nothing is believed, as two guests write there
    for tag, source, cache in (("root", "/", "always"), ("bed", str(base), "none")):
        socket = guest.directory / f"{tag}.socket"
        guest.start([daemon, f"--socket-path={socket}", "-o", f"source={source}", "-o", f"cache={cache}",
            "-o", "sandbox=chroot", "-o", "log_level=warn", "--rlimit-nofile=0"], f"{tag}.log")
        wait_until(f"virtiofsd for {guest.name}", socket.exists)
        devices += ["-chardev", f"socket,id={tag},path={socket}"]
        devices += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    # no_timer_check: the kernel panics when it sees no tick for a while, which is but a busy machine. mitigations=off:
    # above all without two page tables for each process, as an emulated CPU forgets all it knows of memory when they
    # are changed: a system call takes an eighth of the time. noautogroup: a victim's niceness counts, see `Node.spawn`.
    append = (
        f"console=ttyS0 quiet panic=-1 net.ifnames=0 random.trust_cpu=on tsc=reliable no_timer_check "
        f"mitigations=off init_on_alloc=0 nowatchdog noautogroup name={guest.name} address={guest.address}/24 "
        f"bed={base} checkout={CHECKOUT}"
    )
    guest.start([
        "qemu-system-x86_64", "-nodefaults", "-no-reboot",
        "-display", "none", "-machine", "q35,memory-backend=ram", "-m", MEMORY,
        "-object", f"memory-backend-memfd,id=ram,size={MEMORY},share=on",  # which virtiofsd reads and writes
        "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "1",
        "-kernel", str(kernel.image), "-initrd", str(image), "-append", append,
        "-serial", f"file:{guest.directory}/console.log",
        "-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:{number:02x}",
        "-device", "virtio-rng-pci", *devices,
    ], "qemu.log")
