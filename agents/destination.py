"""The destination agent: starts the overseer, hands programs and page frames to restorers, and reports about its host.

It speaks frames (migrate/transport/frames.py) on its standard input and output, one request after the other, and
knows nothing about what a process is. It is one loop in one thread; what it waits for is the next frame, an answer of
a restorer, the death of one of them, or somebody's question what became of the migration (agents/settling.py).

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
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from agents import cgroup, hostfacts, libc, pages, private, settling
from agents.arguments import check
from agents.commitment import Commitment
from agents.custody import ENDING, Custody, PagesFailed
from agents.elf import elf
from agents.journal import ABORTED, Directory, JournalError
from agents.overseer import LEASE, ConnectionEnded, OutOfStep, Overseer, RestorerDied
from migrate.transport import frames

Reply = tuple[dict[str, Any], "bytes | bytearray"]
F_SETPIPE_SZ = 1031  # fcntl(2); the name is in Python since 3.10
_MESSAGE = 4096  # characters of a sentence
_MAX_RESTOREES = 2048
_PIPE_SIZE = 1 << 20  # bytes; what an unprivileged user may ask for, /proc/sys/fs/pipe-max-size


class Terminated(BaseException):
    """A signal told us to end."""


class NotCommitted(Exception):
    """What should be let go is not there any more."""


class Agent(Custody):
    """The agent on a pair of descriptors.

    :param overseer: executable and arguments in place of the restorer, for tests.
    """

    def __init__(self, stdin: int, stdout: int, overseer: Sequence[str] = ()) -> None:
        super().__init__()
        self._stdin, self._stdout = stdin, stdout
        self._command = list(overseer)
        self._done = False
        self._staged = b""
        self._release = (b"", 0)  # the program of the commit, and how many of its ops can be revoked
        self._verbs = {
            name[len("verb_") :]: getattr(self, name) for name in dir(self) if name.startswith("verb_")
        }

    def serve(self) -> int:
        """Answers until ``bye``, the end of the input, or a signal; one that has prepared a commit until that has come
        to its end. The exit status."""
        try:
            status = self._converse()
            self._keep()
            return status
        except Terminated:
            return 1
        finally:
            _deaf()
            self._clean_up()

    def _converse(self) -> int:
        try:
            while not self._done:
                self._idle()
                header = frames.read_header(self._stdin, self._listen)
                if header is None:
                    break
                self._frame(header)
                if self._commitment is not None:
                    self._commitment.heard()
            return 0
        except (OutOfStep, frames.FrameError) as error:
            self._fatal("restorer-died" if isinstance(error, OutOfStep) else "protocol", str(error))
            return 1
        except MemoryError:
            self._fatal("memory", "no memory is left for what was sent")
            return 1
        except (BrokenPipeError, ConnectionResetError, ConnectionEnded):
            return 1

    def _idle(self) -> None:
        """Until the next frame; an overseer that dies meanwhile is reported at once, not when it is next needed.

        Not for ever: a cable that was pulled ends no connection (sshd's ClientAliveInterval is 0 by default), and the
        coordinator sends a ping now and then."""
        watch = not self._released
        while True:
            ready = self._wait([self._stdin], watch, LEASE)
            if ready is None:
                raise ConnectionEnded("nothing was heard for a while")
            if self._stdin in ready:
                return
            if self._overseer is not None and self._overseer.pidfd in ready:
                self._event({"event": "restorer-died", "message": str(self._overseer.died())})
                watch = False

    def _listen(self) -> None:
        """The same in the middle of a frame: nothing is done before the whole of it is here."""
        while True:
            ready = self._wait([self._stdin], False, LEASE)
            if ready is None:
                raise ConnectionEnded("nothing was heard for a while, in the middle of a message")
            if self._stdin in ready:
                return

    def _frame(self, header: frames.Header) -> None:
        meta = bytes(frames.read_exactly(self._stdin, header.meta_len, self._listen))
        if header.kind == frames.PAGES:
            self._pages(header, meta)
        elif header.kind == frames.REQUEST:
            blob = frames.read_exactly(self._stdin, header.blob_len, self._listen)
            self._request(frames.parse_json(meta), bytes(blob) if isinstance(blob, memoryview) else blob)
        else:
            raise frames.FrameError(f"a {frames.KINDS[header.kind]} frame is not for an agent")

    def _request(self, fields: dict[str, Any], blob: bytes | bytearray) -> None:
        number, verb = fields.pop("id", None), fields.pop("verb", None)
        if type(number) is not int:
            raise frames.FrameError(f"a request without an id: {fields!r:.200}")
        begun = time.monotonic()
        error = self._answer(number, verb, fields, blob)
        if self._commitment is not None:
            about = {"error": error} if error else {}
            seconds = round(time.monotonic() - begun, 6)
            self._commitment.log("request", verb=verb, seconds=seconds, bytes=len(blob), **about)

    def _answer(self, number: int, verb: object, fields: dict[str, Any], blob: bytes | bytearray) -> str:
        """What was wrong, or nothing."""
        try:
            method = self._verbs.get(verb) if isinstance(verb, str) else None
            if method is None:
                raise ValueError(f"no such verb: {verb!r:.200}")
            check(method, fields)
            answer, answer_blob = method(blob, **fields)
        except (OutOfStep, ConnectionEnded, MemoryError, frames.FrameError):
            raise
        except NotCommitted as error:
            return self._refuse(number, "not-committed", str(error))
        except RestorerDied as error:
            return self._refuse(number, "restorer-died", str(error))
        except PagesFailed as error:
            return self._refuse(number, "pages", str(error), error.errno)
        except JournalError as error:
            return self._refuse(number, "journal", str(error))
        except OSError as error:
            return self._refuse(number, "os", _os_error(error), error.errno)
        except Exception as error:  # what nobody thought of must not end us: the roll-back is by requests, too
            traceback.print_exc()
            return self._refuse(number, "protocol", f"{verb}: {error}")
        self._write(frames.REPLY, {"id": number, "ok": True, **answer}, answer_blob)
        return ""

    def _refuse(self, number: int, kind: str, message: str, error: int | None = None) -> str:
        said = message[:_MESSAGE]
        self._write(frames.REPLY, {"id": number, "ok": False, "error": {"kind": kind, "message": said, "errno": error}})
        return said

    def _event(self, fields: dict[str, Any]) -> None:
        self._write(frames.EVENT, fields)

    def _fatal(self, kind: str, message: str) -> None:
        """The last thing that is said: no frame after this can be understood."""
        try:
            self._event({"event": "fatal", "kind": kind, "message": message[:_MESSAGE]})
        except (BrokenPipeError, ConnectionResetError):
            pass  # nobody listens any more; the exit status says it too

    def _write(self, kind: int, fields: dict[str, Any], blob: bytes | bytearray = b"") -> None:
        frames.write_all(self._stdout, frames.head(kind, frames.json_meta(fields), len(blob)), blob)

    # Pages

    def _pages(self, header: frames.Header, meta: bytes) -> None:
        frames.check_pages(header.flags, meta, header.blob_len)
        if self._page_failure is None and self._overseer is None:
            self._page_failure = PagesFailed("page frames came before there was an overseer", None)
        if self._page_failure is not None or self._overseer is None:
            frames.discard(self._stdin, header.blob_len, self._listen)
            return
        try:
            failed, result = self._overseer.place(header.slot, meta, header.blob_len)
        except ValueError as error:  # no such slot
            self._page_failure = PagesFailed(str(error), None)
            frames.discard(self._stdin, header.blob_len, self._listen)
            return
        if failed >= 0:
            runs = frames.parse_pages(meta)[1]
            where = "{:#x} ({} pages)".format(*runs[failed][:2]) if failed < len(runs) else "the end of the frame"
            self._page_failure = PagesFailed(
                f"placing pages at {where} in restoree {header.slot}: {os.strerror(-result)}", -result
            )

    def _check_pages(self) -> None:
        failure = self._called_off or self._page_failure
        if failure is not None:
            raise failure

    # Verbs. Each takes the blob and the arguments of the request, and returns fields and blob of the reply.

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


def _os_error(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def _terminate(number: int, frame: object) -> NoReturn:
    _deaf()
    raise Terminated(number)


def _deaf() -> None:
    """Once is enough: a signal must not interrupt the clean-up."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)


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
        signal.signal(number, _terminate)
    return Agent(0, stdout, overseer).serve()


if __name__ == "__main__":
    sys.exit(main())
