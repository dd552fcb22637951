"""The destination agent: starts the overseer, hands programs and page frames to restorers, and reports about its host.

It speaks frames (migrate/transport/frames.py) on its standard input and output (agents/conversation.py), and knows
nothing about what a process is.

Until ``prepare`` everything that it started ends with it: on the end of its input, on SIGHUP, SIGTERM and SIGINT, and
when it is killed (PR_SET_PDEATHSIG of the overseer). From then on it waits for its lease before it ends anything, but
for SIGTERM, SIGINT and its own death.

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import fcntl
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

from agents import cgroup, hostfacts, ia32, libc, pages, private, settling
from agents.commitment import Commitment
from agents.conversation import Conversation, NotCommitted, Reply, terminate
from agents.custody import ENDING
from agents.elf import elf
from agents.journal import ABORTED, Directory
from agents.overseer import Overseer
from migrate.transport import frames

F_SETPIPE_SZ = 1031  # fcntl(2); the name is in Python since 3.10
_MAX_RESTOREES = 2048
_PIPE_SIZE = 1 << 20  # bytes; what an unprivileged user may ask for, /proc/sys/fs/pipe-max-size


class Agent(Conversation):
    """The agent on a pair of descriptors.

    :param overseer: executable and arguments in place of the restorer, for tests.
    """

    def __init__(self, stdin: int, stdout: int, overseer: Sequence[str] = ()) -> None:
        super().__init__(stdin, stdout)
        self._command = list(overseer)
        self._staged = b""
        self._release = (b"", 0)  # the program of the commit, and how many of its ops can be revoked

    # What is asked

    def verb_hello(self, blob: bytes) -> Reply:
        return hostfacts.hello(), b""

    def verb_read(self, blob: bytes, paths: list[str]) -> Reply:
        lengths, contents = hostfacts.read(paths)
        return {"lengths": lengths}, contents

    def verb_stat(self, blob: bytes, paths: list[str], nofollow: bool = False) -> Reply:
        return {"stats": hostfacts.stat(paths, nofollow)}, b""

    def verb_digest(self, blob: bytes, paths: list[str], lengths: list[int] | None = None) -> Reply:
        return {"digests": hostfacts.digest(paths, lengths)}, b""

    def verb_statvfs(self, blob: bytes, path: str) -> Reply:
        return hostfacts.statvfs(path), b""

    def verb_ping(self, blob: bytes) -> Reply:
        """A sign of life."""
        return {}, b""

    def verb_tids(self, blob: bytes) -> Reply:
        return {"tids": hostfacts.numbers_in_use()}, b""

    def verb_typing(self, blob: bytes) -> Reply:
        return {"errno": hostfacts.cannot_type()}, b""

    def verb_ia32(self, blob: bytes) -> Reply:
        """Of processes of 32 bits, if there are such: the lines of maps about their vDSO, and what is in it."""
        found = ia32.look()
        return {"runs": int(found is not None), "maps": found[0] if found else ""}, found[1] if found else b""

    def verb_begin(
        self, blob: bytes, migration: str, lease: float, about: dict[str, Any], faults: str = "", log: bool = False
    ) -> Reply:
        """A migration begins: its journal. ``lease``: seconds; ``about`` is noted in it; ``log``: say in a file what
        is done for it (agents/log.py)."""
        if self._commitment is not None:
            if self._commitment.state != ABORTED:
                raise ValueError("a migration is under way already")
            self._commitment.close()
        self._called_off, self._release = None, (b"", 0)
        self._commitment = Commitment.begin(migration, lease, faults, about, log)
        return {"log": self._commitment.log_path}, b""

    def verb_settle(self, blob: bytes, migration: str, how: str) -> Reply:
        """What became of a migration whose agent has lost its coordinator; see `settling.settle`."""
        with Directory.opened() as directory:
            return settling.settle(directory, migration, how), b""

    def verb_journals(self, blob: bytes) -> Reply:
        """All that this host knows of migrations; see `settling.survey`."""
        with Directory.opened() as directory:
            return {"journals": settling.survey(directory)}, b""

    def verb_overseer(
        self, blob: bytes, restorees: int, new_pid_namespace: bool = False, streams_of: int = 0
    ) -> Reply:
        """``streams_of``: a process on this host whose standard streams it gets; 0: none."""
        if self._overseer is not None:
            raise ValueError("there is an overseer already")
        if not 0 <= restorees <= _MAX_RESTOREES:
            raise ValueError(f"{restorees} restorees")
        record = self._commitment.record.reopened() if self._commitment is not None else None
        streams: list[int] = []
        try:
            for number in range(3 if streams_of else 0):
                streams.append(libc.pidfd_getfd(streams_of, number))
            self._overseer = self._started(restorees, new_pid_namespace, record, streams)
        finally:
            for fd in streams if record is None else [record, *streams]:
                os.close(fd)
        return {"pid": self._overseer.pid, "maps": self._overseer.maps()}, b""

    def verb_cgroup(self, blob: bytes, path: str) -> Reply:
        """The overseer, and so all that it will make, in that control group; see `agents.cgroup`."""
        if self._overseer is None:
            raise ValueError("there is no overseer")
        self._groups += cgroup.join(self._overseer.pid, path)
        return {}, b""

    def _started(
        self, restorees: int, new_pid_namespace: bool, record: int | None, streams: Sequence[int]
    ) -> Overseer:
        rest = restorees, new_pid_namespace, self._stdin, record, streams
        if self._command:
            return Overseer.start(self._command[0], self._command, *rest)
        code = pkgutil.get_data("migrate.pie", "blob.bin")
        if code is None:
            raise ValueError("the archive of the agent holds no migrate/pie/blob.bin")
        program = libc.executable_memfd("migrate-restorer")
        try:
            frames.write_all(program, elf(code))
            return Overseer.start(program, ["migrate-overseer"], *rest)
        finally:
            os.close(program)

    def verb_stage(
        self, blob: bytes, release: int = 0, revocable: int = 0, restoree: int = 0,
        others: list[int] = [], halted: list[int] = [], rooms: list[str] = [],  # noqa: B006 - never changed
    ) -> Reply:
        """Programs for the next ``run`` that brings none: they travel while something else has to be waited for. The
        last ``release`` bytes are the program of the commit, which travels ahead too, so that COMMIT is one small
        message, and one that a new connection can bring. ``restoree``: its number, as we see it; ``others``: those of
        its descendants that move with it, and ``halted``: which of all these are to be let go as stopped. ``rooms``:
        directories that the programs make, to be removed when all is called off."""
        if not 0 <= release <= len(blob):
            raise ValueError(f"{release} of {len(blob)} bytes")
        self._staged = blob[: len(blob) - release]
        self._release = bytes(blob[len(blob) - release :]), revocable
        self._rooms += [path for path in rooms if path not in self._rooms]
        if self._commitment is not None and self._overseer is not None and release:
            self._commitment.get_ready(self._overseer.pid, restoree, others, halted)
        return {}, b""

    def verb_rooms(self, blob: bytes, rooms: list[str]) -> Reply:
        """Directories that programs are about to make, to be removed when all is called off."""
        self._rooms += [path for path in rooms if path not in self._rooms]
        return {}, b""

    def verb_run(self, blob: bytes, parts: list[list[int]], return_image: bool = False) -> Reply:
        """Programs, one after the other until one fails. A part is of so many bytes and for a slot, and may be several
        programs. ``part`` and ``program``: which was the last that was run; ``return_image``: of the last part."""
        self._check_pages()
        if self._overseer is None:
            raise ValueError("there is no overseer")
        if not blob:
            blob, self._staged = self._staged, b""
        # All of it before any of it is run
        if not parts or sum(size for _, size in parts) != len(blob) or min(size for _, size in parts) <= 0:
            raise ValueError(f"{len(blob)} bytes of programs for the parts {parts!r:.200}")
        for slot, _ in parts:
            self._overseer.check(slot)
        rest, answer, image = memoryview(blob), {"failed": -1}, b""
        for part, (slot, size) in enumerate(parts):
            program, failed, result, image = self._overseer.run(slot, rest[:size], return_image)
            answer = {"part": part, "program": program, "failed": failed, "result": result}
            if failed >= 0:
                break
            rest = rest[size:]
        return answer, image

    def verb_prepare(self, blob: bytes, parts: list[list[int]]) -> Reply:
        """`run` of what is staged, the last one: when nothing fails the migration is prepared."""
        program, revocable = self._release
        if self._commitment is None or self._overseer is None or not program:
            raise ValueError("no migration has begun, or the program of its commit is not here")
        answer, image = self.verb_run(blob, parts)
        if answer["failed"] < 0:
            self._commitment.prepare(program, revocable)
        return answer, image

    def verb_sync(self, blob: bytes) -> Reply:
        """Every page frame before it has been placed, as they are placed one after the other."""
        self._check_pages()
        return {}, b""

    def verb_pages(self, blob: bytes, pid: int, areas: list[list[int]], masks: list[list[int]]) -> Reply:
        """Digests of the pages of a process; see `agents.pages`."""
        return pages.digests(pid, areas, masks)

    def verb_stdio_log(self, blob: bytes, name: str) -> Reply:
        """A new, empty file for the standard streams of the moved process."""
        if not re.fullmatch(r"[\w.-]{1,200}", name) or name.startswith("."):
            raise ValueError(f"not a file name: {name!r}")
        directory, path = private.state_directory("migrate")
        try:
            for attempt in range(1000):
                file = f"{name}.{attempt}" if attempt else name
                try:
                    os.close(private.create(directory, file))
                except FileExistsError:
                    continue
                self._logs.append(os.path.join(path, file))
                return {"path": self._logs[-1]}, b""
        finally:
            os.close(directory)
        raise FileExistsError(17, "there are a thousand logs of that name", path)

    def verb_abort(self, blob: bytes, why: str = "") -> Reply:
        if self._released:
            raise ValueError("too late: the migration is committed")
        self._abort(why)
        return {}, b""

    def verb_commit(self, blob: bytes) -> Reply:
        """The process lives on from now on, whoever ends. When one of the first ops of its program fails, which can be
        revoked, nothing of it has run and nothing will."""
        self._check_pages()
        commitment = self._commitment
        if commitment is None or not (self._prepared or self._released):
            raise NotCommitted(commitment.why if commitment is not None else "nothing is prepared")
        commitment.reach("there-commit")
        failed, result = self._let_go() if self._prepared else (-1, 0)
        commitment.reach("there-released")
        return {"failed": failed, "result": result, "revocable": commitment.revocable, **commitment.told()}, b""

    def verb_bye(self, blob: bytes) -> Reply:
        self._clean_up()
        self._done = True
        return {}, b""


def main(overseer: Sequence[str] = ()) -> int:
    """The agent on standard input and output. What is printed by mistake goes to the standard error."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    os.set_blocking(0, True)
    os.set_blocking(stdout, True)
    try:
        # A frame should fit: else the pipe between sshd and us makes for sixteen switches a frame.
        fcntl.fcntl(0, F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        pass  # a socket, or the user has used up what he may have (pipe(7)): it works without
    for number in ENDING:
        signal.signal(number, terminate)
    return Agent(0, stdout, overseer).serve()


if __name__ == "__main__":
    sys.exit(main())
