"""SSH by asyncssh, for trio. The only file that knows of asyncio.

    async with connect(Destination("root@node2"), prompt) as link:
        process = await link.run("uname -a")
        print(await process.receive_some())

Only connecting and starting a command cross between asyncio and trio; data does not (see `session`).

Host keys are always checked. Of ssh_config(5), asyncssh reads what it knows; StrictHostKeyChecking is not among it.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import asyncssh
import trio
import trio_asyncio
from asyncssh.config import SSHClientConfig, SSHConfig
from asyncssh.encryption import get_default_encryption_algs

from migrate.errors import Unreachable, UsageError
from migrate.transport.agent import sole
from migrate.transport.session import Process, Session
from migrate.transport.target import Destination

Prompt = Callable[[str], Awaitable[str | None]]
"""Asks the user for a secret; None when he would rather not."""

# 655 MB/s where chacha20-poly1305 does 330 (asyncssh's own first choice): AES is in the CPU.
_FAST_CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"]
_REKEY_BYTES = 1 << 35  # half of what ssh(1) allows with AES; asyncssh's 1 GiB would put a key exchange into a freeze
_KEEPALIVE = 5  # seconds; three unanswered ones end the connection
_CONNECT_TIMEOUT = 20  # seconds until we are in, besides what the user needs to type
_RETRIES, _BACKOFF = 5, 0.1  # times, and seconds at first, doubled each time: 3 s in all
_WINDOW = 4 << 20  # bytes that may come unasked for
_ATTEMPTS = 3  # passphrases or passwords
_MAX_JUMPS = 8
_KEY_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
_GLOBAL_KNOWN_HOSTS = ["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"]


class Connection:
    """An SSH connection. Use `connect`."""

    def __init__(self, connection: asyncssh.SSHClientConnection, destination: str) -> None:
        self._connection = connection
        self.destination = destination
        """For sentences: ``root@node2``."""

    @property
    def cipher(self) -> str:
        """What encrypts our direction."""
        return str(self._connection.get_extra_info("send_cipher"))

    async def run(self, command: str) -> Process:
        """Starts a command by the login shell. Raises Unreachable when the destination does not run commands."""
        session = Session()

        def factory() -> asyncssh.SSHClientSession[bytes]:
            return cast("asyncssh.SSHClientSession[bytes]", session)  # it has the same methods

        create = functools.partial(
            self._connection.create_session, factory, command, encoding=None, window=_WINDOW, request_pty=False
        )
        try:
            await trio_asyncio.aio_as_trio(create)()
        except asyncssh.ChannelOpenError as error:
            raise Unreachable(f"{self.destination} lets us in but does not run commands: {error.reason}") from error
        except (asyncssh.Error, OSError) as error:
            raise Unreachable(f"{self.destination}: the SSH connection broke: {error}") from error
        return Process(session, command)


@asynccontextmanager
async def connect(destination: Destination, prompt: Prompt | None = None) -> AsyncIterator[Connection]:
    """Connects and logs in; disconnects at the end of the block.

    :param prompt: asks for passphrases and passwords; None where there is no terminal.
    :raises Unreachable: what failed, where and why, and what to do. UsageError: the destination makes no sense.
    """
    try:
        async with trio_asyncio.open_loop(), AsyncExitStack() as stack:
            connection = await _open(destination, prompt, stack, _MAX_JUMPS)
            user = connection.get_extra_info("username")
            yield Connection(connection, f"{user}@{destination.address.host}")
    except BaseExceptionGroup as group:
        raise sole(group) from None


async def _open(
    destination: Destination, prompt: Prompt | None, stack: AsyncExitStack, jumps: int
) -> asyncssh.SSHClientConnection:
    user, host, port = destination.address
    paths = _config_paths(destination)
    try:
        local_user = os.environ.get("USER") or str(os.getuid())
        config = SSHClientConfig.load(None, paths, False, False, False, local_user, user or (), host, port or ())
    except (asyncssh.ConfigParseError, OSError, ValueError) as error:
        raise UsageError(f"cannot read the ssh configuration: {error}") from error
    options = _options(destination, config)
    seconds = float(str(config.get("ConnectTimeout") or _CONNECT_TIMEOUT))
    who = f"{options['username'] or _user(config)}@{host}"
    jump = destination.jump if destination.jump is not None else config.get("ProxyJump")
    if isinstance(jump, str) and jump.lower() != "none":
        if not jumps:
            raise UsageError(f"{host}: more than {_MAX_JUMPS} jumps (ProxyJump); do they go round in a circle?")
        *before, last = jump.split(",")
        hop = Destination(last.strip(), config=destination.config, jump=",".join(before) or None)
        options["tunnel"] = await _open(hop, prompt, stack, jumps - 1)
    else:
        command = config.get("ProxyCommand")
        if isinstance(command, str) and command.lower() != "none":
            options["sock"] = await _proxy(command, stack)
    name = str(config.get("Hostname", host))
    where = f"{host} ({name})" if name != host else host
    place = f"{where} port {port or config.get('Port', 22)}"
    if not options["username"]:
        del options["username"]
    for attempt in itertools.count():
        client = _Client(who, prompt, options["client_keys"], seconds)
        try:
            connection = await _log_in(client, host, port or (), config=paths, **options)
            break
        except (asyncssh.Error, OSError, ValueError) as error:
            if attempt == _RETRIES or "sock" in options or not client.turned_away(error):
                raise Unreachable(_why(error, place, host, port, client, config)) from error
        await trio.sleep(_BACKOFF * 2**attempt * random.uniform(0.5, 1))
    stack.push_async_callback(_close, connection)
    return connection


async def _log_in(
    client: _Client, host: str, port: int | tuple[()], **options: Any
) -> asyncssh.SSHClientConnection:
    open_connection = functools.partial(asyncssh.connect, host, port, client_factory=lambda: client, **options)
    with client.patience:
        connection: asyncssh.SSHClientConnection = await trio_asyncio.aio_as_trio(open_connection)()
    if client.patience.cancelled_caught:
        raise TimeoutError(f"no answer within {client.seconds:g} s")
    return connection


async def _proxy(command: str, stack: AsyncExitStack) -> socket.socket:
    """Starts a ProxyCommand as ssh(1) does: by a shell, with a socket as its standard input and output."""
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    with theirs:
        process = await trio.lowlevel.open_process(
            ["/bin/sh", "-c", f"exec {command}"], stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
        )
    stack.push_async_callback(_end, process)
    return ours


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(2):
            await process.wait()
        if process.poll() is None:
            process.kill()
            await process.wait()


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(2):
        connection.close()
        await trio_asyncio.aio_as_trio(connection.wait_closed)()


# What ssh_config(5) says


def _config_paths(destination: Destination) -> list[str]:
    """-F stands alone; else the user's and then the system's: the first value of an option counts."""
    if destination.config is not None:
        if destination.config.lower() == "none":
            return []
        return [os.path.expanduser(destination.config)]
    return [path for path in (os.path.expanduser("~/.ssh/config"), "/etc/ssh/ssh_config") if os.access(path, os.R_OK)]


def _user(config: SSHConfig) -> str:
    return str(config.get("User") or os.environ.get("USER") or os.getuid())


def _options(destination: Destination, config: SSHConfig) -> dict[str, Any]:
    """Arguments of asyncssh.connect, where its defaults, or its reading of the configuration, are not what we want."""
    known = _known_hosts(config)
    options: dict[str, Any] = {
        "username": destination.address.user,
        # By name only, as ssh(1): asyncssh would also take a key that is known for the address.
        "known_hosts": lambda host, _, port: known.match(host, "", port),
        "compression_algs": ["none"],  # pages are compressed before, or not worth it
        "client_keys": _identities(destination, config),
        "ignore_encrypted": True,  # their passphrase is asked for when nothing else has let us in
        "agent_forwarding": False,
        "x11_forwarding": False,
        "tunnel": None,  # ours to make: asyncssh would not ask us for the secrets of jump hosts
        "proxy_command": None,
        "connect_timeout": None,  # it would include the time that somebody needs to type a password: see `_Client`
        "login_timeout": 0,
    }
    if config.get("Ciphers") is None:
        slower = [name.decode() for name in get_default_encryption_algs()]
        options["encryption_algs"] = _FAST_CIPHERS + [name for name in slower if name not in _FAST_CIPHERS]
    if config.get("RekeyLimit") is None:
        options["rekey_bytes"], options["rekey_seconds"] = _REKEY_BYTES, 0
    if config.get("ServerAliveInterval") is None:
        options["keepalive_interval"] = _KEEPALIVE
    return options


def _identities(destination: Destination, config: SSHConfig) -> list[str]:
    """Key files that exist, those of -i first as ssh(1) has it; none when the user named none. What the configuration
    names and does not exist is passed over."""
    given = [os.path.expanduser(path) for path in destination.identities]
    for path in given:
        if not os.access(path, os.R_OK):
            raise UsageError(f"-i {path}: there is no such file, or it cannot be read")
    named = config.get("IdentityFile") or []
    assert isinstance(named, list)
    return given + [path for path in map(os.path.expanduser, named) if os.access(path, os.R_OK)]


def _known_hosts_files(config: SSHConfig) -> list[str]:
    user = config.get("UserKnownHostsFile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])
    everyone = config.get("GlobalKnownHostsFile", _GLOBAL_KNOWN_HOSTS)
    assert isinstance(user, list) and isinstance(everyone, list)
    return [os.path.expanduser(path) for path in (*user, *everyone)]


def _known_hosts(config: SSHConfig) -> asyncssh.SSHKnownHosts:
    """Every key we trust. A line that makes no sense is passed over, as ssh(1) does; a file, where there is none."""
    known = asyncssh.SSHKnownHosts()
    for path in _known_hosts_files(config):
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            continue
        for line in lines:
            try:
                known.load(line)
            except ValueError:
                continue
    return known


# Logging in


class _Client(asyncssh.SSHClient):
    """Answers what the server asks for: secrets, from the user. Remembers what was tried, for `_why`."""

    def __init__(self, who: str, prompt: Prompt | None, identities: list[str], seconds: float) -> None:
        self._who, self._prompt, self.seconds = who, prompt, seconds
        self._connection: asyncssh.SSHClientConnection | None = None
        self.patience = trio.CancelScope(deadline=trio.current_time() + seconds)
        """Ends the attempt when nothing is heard for too long. It does not run while the user types."""
        defaults = [os.path.expanduser(f"~/.ssh/{name}") for name in _KEY_NAMES]
        self._locked = [path for path in identities or defaults if _is_locked(path)]
        self.locked = list(self._locked)
        self.tried: list[str] = []
        self._passwords = self._challenges = _ATTEMPTS

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn

    def turned_away(self, error: Exception) -> bool:
        """Whether the connection ended before the server had said who it is. So does an sshd that has as many others
        at its door as it lets wait there (MaxStartups, sshd_config(5)), and takes the next one a moment later."""
        met = self._connection is not None and self._connection.get_extra_info("server_version")
        return isinstance(error, (asyncssh.ConnectionLost, ConnectionResetError)) and not met

    async def _ask(self, question: str) -> str | None:
        if self._prompt is None:
            return None
        self.patience.deadline = math.inf
        answer: str | None = await trio_asyncio.trio_as_aio(self._prompt)(question)
        self.patience.deadline = trio.current_time() + self.seconds
        return answer

    def _note(self, method: str) -> None:
        if method not in self.tried:
            self.tried.append(method)

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        """Called when agent and unencrypted keys have been tried: now those with a passphrase."""
        self._note("public key")
        while self._locked and self._prompt is not None:
            path = self._locked.pop(0)
            for _ in range(_ATTEMPTS):
                passphrase = await self._ask(f"Passphrase for {path}: ")
                if not passphrase:
                    break
                try:
                    return asyncssh.load_keypairs(path, passphrase)[0]
                except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
                    continue
        return None

    async def password_auth_requested(self) -> str | None:
        self._note("password")
        self._passwords -= 1
        return await self._ask(f"Password for {self._who}: ") if self._passwords >= 0 else None

    async def kbdint_auth_requested(self) -> str | None:
        self._note("keyboard-interactive")
        self._challenges -= 1
        return "" if self._prompt is not None and self._challenges >= 0 else None

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Any
    ) -> list[str] | None:
        answers = []
        for question, _ in prompts:
            answer = await self._ask(f"{self._who}: {question}")
            if answer is None:
                return None
            answers.append(answer)
        return answers


def _is_locked(path: str) -> bool:
    """Whether this is a private key that needs a passphrase."""
    try:
        asyncssh.read_private_key(path)
    except asyncssh.KeyEncryptionError:
        return True
    except asyncssh.KeyImportError as error:
        return "assphrase" in str(error)
    except OSError:
        pass
    return False


# What went wrong


def _why(
    error: Exception, place: str, host: str, port: int | None, client: _Client, config: SSHConfig
) -> str:
    """In one sentence: what, where, why, and what to do."""
    number = port or config.get("Port", 22)
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return _untrusted(str(error.reason), place, host, int(str(number)), _known_hosts(config), config)
    if isinstance(error, asyncssh.PermissionDenied):
        tried = ", ".join(client.tried) or "nothing that the server accepts"
        advice = "check the user name and that one of your keys is in its authorized_keys"
        if client.locked and client._prompt is None:
            advice = f"{client.locked[0]} has a passphrase and there is no terminal to ask for it: add it to ssh-agent"
        return f"{place} does not let {client._who} in (tried: {tried}); {advice}"
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return f"{place}: no common algorithm: {error.reason}; see Ciphers, KexAlgorithms, HostKeyAlgorithms"
    if isinstance(error, asyncssh.ConnectionLost):
        return f"{place}: the connection broke while logging in: {error.reason}; is an sshd listening there?"
    if isinstance(error, asyncssh.Error):
        return f"{place}: {getattr(error, 'reason', error)}"
    if isinstance(error, socket.gaierror):
        return f"{place}: no such host ({error.strerror}); is the name right?"
    if isinstance(error, ConnectionRefusedError):
        return f"{place}: connection refused; is sshd running there, and on that port?"
    if isinstance(error, TimeoutError):
        return f"{place}: {error.strerror or error}; is the host up, and no firewall between?"
    return f"{place}: {error}"


def _untrusted(
    reason: str, place: str, host: str, port: int, known: asyncssh.SSHKnownHosts, config: SSHConfig
) -> str:
    alias = str(config.get("HostKeyAlias") or config.get("Hostname") or host)
    entry = f"[{alias}]:{port}" if port != 22 else alias
    file = _known_hosts_files(config)[0] if _known_hosts_files(config) else "known_hosts"
    if "revoked" in reason:
        return f"{place}: its host key is marked as revoked; do not connect"
    keys = known.match(alias, "", None if port == 22 else port)
    if any(keys[:2]):
        return (
            f"{place}: its host key is not the one we know: either the host was set up anew, or somebody is in between;"
            f" if you know why, remove the old key: ssh-keygen -R '{entry}' -f {file}"
        )
    flag = f"-p {port} " if port != 22 else ""
    return (
        f"{place}: its host key is not known; connect once with ssh {flag}{host} and check the fingerprint,"
        f" or ssh-keyscan {flag}{alias} >> {file}"
    )
