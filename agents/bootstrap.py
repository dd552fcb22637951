# The first thing that runs on the destination: finds the agent in the cache or takes it from the standard input, and
# starts it. Sent as text and run by `python3 -c`, so it must parse on Python 3.6: no annotation that needs evaluating.
#
# Cache: ${XDG_CACHE_HOME:-~/.cache}/migrate/DIGEST, directory 0700, file 0600, both ours. Where that cannot be had the
# agent runs from memory; it always runs from a memfd with the bytes whose digest was checked, never from a path.

import os
import sys

OLDEST = (3, 9)
KEEP = 4  # archives of other versions that stay in the cache


def _say(nonce: str, *words: str) -> None:
    line = " ".join((nonce,) + words) + "\n"
    os.write(1, line.encode("utf-8", "replace"))


def _newer_python() -> "str | None":
    """A Python beside this one that is new enough: some distributions keep an old one as python3."""
    for directory in os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":"):
        for minor in range(20, OLDEST[1] - 1, -1):
            path = os.path.join(directory, f"python{OLDEST[0]}.{minor}")
            if os.access(path, os.X_OK):
                return path
    return None


def _cache_directory() -> str:
    import pwd

    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        home = os.environ.get("HOME", "")
        try:
            ours = os.stat(home).st_uid == os.geteuid()
        except OSError:
            ours = False
        # Under sudo $HOME may be the caller's, and a directory of root's in there would be a nuisance to him.
        base = os.path.join(home if ours else pwd.getpwuid(os.geteuid()).pw_dir, ".cache")
    path = os.path.join(base, "migrate")
    os.makedirs(path, 0o700, exist_ok=True)
    found = os.lstat(path)
    if found.st_uid != os.geteuid() or (found.st_mode & 0o170077) != 0o040000:
        raise OSError(1, "not a directory of our own with mode 0700", path)
    above = os.path.realpath(base)
    while True:  # nobody else may be able to put another one in its place
        found = os.lstat(above)
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o1022) in (0o002, 0o020, 0o022):
            raise OSError(1, "others may write there", above)
        if above == "/":
            return path
        above = os.path.dirname(above)


def _digest(archive: bytes) -> str:
    import hashlib

    return hashlib.blake2b(archive, digest_size=16).hexdigest()


def _load(path: str, digest: str) -> "bytes | None":
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        archive = file.read()
    return archive if _digest(archive) == digest else None


def _store(directory: str, digest: str, archive: bytes) -> None:
    temporary = os.path.join(directory, f".{digest}.{os.getpid()}")
    fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(archive)
        os.rename(temporary, os.path.join(directory, digest))
    except BaseException:
        os.unlink(temporary)
        raise
    others = [os.path.join(directory, name) for name in os.listdir(directory) if name != digest]
    others.sort(key=os.path.getmtime, reverse=True)
    for path in others[KEEP:]:
        os.unlink(path)


def _receive(size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(0, min(size, 1 << 16))
        if not piece:
            sys.exit("the connection ended while the agent was being sent")
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def bootstrap(source: str, nonce: str, digest: str, size: int) -> None:
    if sys.version_info < OLDEST:
        path = _newer_python()
        version = ".".join(map(str, sys.version_info[:3]))
        if path is None:
            _say(nonce, "old", version)
            sys.exit(3)
        # The standard input stands right behind this text, so it is enough to hand the text on.
        again = f"SOURCE = {source!r}\nexec(SOURCE)\n"
        os.execv(path, [path, "-I", "-S", "-c", again])
    try:
        for name in ("ctypes", "fcntl", "hashlib", "pwd", "select", "zipimport", "zlib"):
            __import__(name)
    except ImportError as error:
        _say(nonce, "incomplete", ".".join(map(str, sys.version_info[:3])), str(error.name))
        sys.exit(3)
    directory = archive = why = None
    try:
        directory = _cache_directory()
        archive = _load(os.path.join(directory, digest), digest)
    except FileNotFoundError:
        pass
    except OSError as error:
        why = str(error)
    if archive is not None:
        _say(nonce, "have")
    else:
        _say(nonce, "need", why or "")
        archive = _receive(size)
        if _digest(archive) != digest:
            sys.exit("the agent arrived damaged")
        if directory is not None:
            try:
                _store(directory, digest, archive)
            except OSError as error:
                sys.stderr.write(f"not cached: {error}\n")
    memory = os.memfd_create("migrate-agent")
    os.write(memory, archive)
    sys.path.insert(0, f"/proc/self/fd/{memory}")
    from agents import destination

    sys.exit(destination.main())
