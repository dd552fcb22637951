"""The destination agent's side of the connection: frames in, one request after the other, answers and events out.

It is one loop in one thread; what it waits for is the next frame, an answer of a restorer, the death of one of them, or
somebody's question what became of the migration (agents/settling.py).

Standard library only, Python 3.9: this travels to the destination.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from agents.arguments import check
from agents.custody import ENDING, Custody, PagesFailed
from agents.journal import JournalError
from agents.overseer import LEASE, ConnectionEnded, OutOfStep, RestorerDied
from migrate.transport import frames

Reply = tuple[dict[str, Any], "bytes | bytearray"]
_MESSAGE = 4096  # characters of a sentence


class Terminated(BaseException):
    """A signal told us to end."""


class NotCommitted(Exception):
    """What should be let go is not there any more."""


class Conversation(Custody):
    """On a pair of descriptors. Verbs are the methods ``verb_…`` of who inherits from this: they take the blob and the
    arguments of the request, and return fields and blob of the reply."""

    def __init__(self, stdin: int, stdout: int) -> None:
        super().__init__()
        self._stdin, self._stdout = stdin, stdout
        self._done = False
        self._verbs: dict[str, Callable[..., Reply]] = {
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


def _os_error(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def terminate(number: int, frame: object) -> NoReturn:
    """The handler of `ENDING`."""
    _deaf()
    raise Terminated(number)


def _deaf() -> None:
    """Once is enough: a signal must not interrupt the clean-up."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
