"""The source agent: the one process that touches the task.

Synchronous, because all ptrace requests must come from the thread that attached (ptrace(2)). Requests come as frames on
standard input and are answered in order on standard output; page frames go out before the answer to the request that
asked for them. At the end of the input, or on a signal, the task is let go as it was.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

from agents import hostfacts, pages
from migrate.engine.source import Source
from migrate.errors import KinChanged, MigrateError, Refused
from migrate.transport import frames
from migrate.transport.ring import Ring

Answer = tuple[dict[str, Any], bytes]
_SLOT = struct.Struct("<II")  # slot, length: before the meta of a RING frame

# Questions about files and pages, which both agents answer in the same words
_FACTS: dict[str, Callable[..., Answer]] = {
    "stat": lambda paths, nofollow=False: ({"stats": hostfacts.stat(paths, nofollow)}, b""),
    "digest": lambda paths: ({"digests": hostfacts.digest(paths)}, b""),
    "pages": pages.digests,
}


class Agent:
    """Frames in, calls on a `Source`, frames out."""

    def __init__(self, receive: int, send: int, ring: Ring | None) -> None:
        self._receive, self._send, self._ring = receive, send, ring
        self._source = Source(self._pages)

    def serve(self) -> None:
        """Until the input ends."""
        try:
            while (frame := frames.read_frame(self._receive)) is not None:
                if frame.kind == frames.REQUEST:
                    self._answer(frames.parse_json(frame.meta), bytes(frame.blob))
        finally:
            self._source.close()

    def _answer(self, fields: dict[str, Any], blob: bytes) -> None:
        number, verb = fields.pop("id"), fields.pop("verb")
        try:
            if verb == "inspect":  # all begins anew
                self._source.close()
                self._source = Source(self._pages)
            method: Callable[..., Answer] = _FACTS.get(verb) or getattr(self._source, "do_" + verb)
            answer, out = method(**fields, **({"blob": blob} if blob else {}))
            meta = {"id": number, "ok": True, **answer}
        except Refused as refusal:
            problems = [[p.where, p.what, p.advice] for p in refusal.problems]
            meta, out = _error(number, "refused", str(refusal), problems=problems), b""
        except KinChanged as error:
            meta, out = _error(number, "kin", str(error)), b""
        except MigrateError as error:
            meta, out = _error(number, "failed", str(error)), b""
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            meta, out = _error(number, "os", f"{verb}: {error.strerror}{where}", errno=error.errno), b""
        except Exception as error:
            # The coordinator rolls back, which needs this agent alive; with -vv the user sees where it was.
            import traceback

            meta, out = _error(number, "internal", f"{verb}: {error!r}", trace=traceback.format_exc()), b""
        frames.write_all(self._send, frames.head(frames.REPLY, frames.json_meta(meta), len(out)), out)

    def _pages(self, member: int, flags: int, meta: bytes, contents: frames.Buffer) -> None:
        restoree = member + 1  # slot 0 is the overseer's
        if self._ring is None:
            frames.write_all(self._send, frames.head(frames.PAGES, meta, len(contents), flags, restoree), contents)
            return
        slot = self._ring.put(contents)
        if slot is None:
            raise _Ended
        where = _SLOT.pack(slot, len(contents))
        frames.write_all(self._send, frames.head(frames.RING, where + meta, 0, flags, restoree))


def _error(number: int, kind: str, message: str, errno: int | None = None, **more: Any) -> dict[str, Any]:
    return {"id": number, "ok": False, "error": {"kind": kind, "message": message, "errno": errno, **more}}


class _Ended(BaseException):
    """A signal asked us to end."""


def _end(number: int, frame: object) -> None:
    raise _Ended(number)


def main() -> int:
    """Entry point of ``python -m agents.source [RING [MIGRATION]]``; the latter for who looks who holds the process."""
    # Ctrl-C in the terminal is the coordinator's affair: it decides whether to roll back or to finish a commit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    receive, send = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # nothing that prints may end up between two frames
    try:
        Agent(receive, send, Ring.attach(sys.argv[1]) if sys.argv[1:] else None).serve()
    except (_Ended, BrokenPipeError, frames.FrameError):
        return 1  # the coordinator is gone; `serve` has let the task go
    return 0


if __name__ == "__main__":
    sys.exit(main())
