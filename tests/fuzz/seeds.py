"""What hostile input begins with: what is meant to be said."""

from __future__ import annotations

import itertools
import os
import subprocess
from functools import cache
from typing import Any

from migrate.engine.source import Source
from migrate.transport import frames
from migrate.transport.frames import CONTENTS, PAGE, Frame, Run

_numbers = itertools.count(1)


def request(verb: str, blob: bytes = b"", /, **arguments: Any) -> bytes:
    """A whole request."""
    meta = frames.json_meta({"id": next(_numbers), "verb": verb, **arguments})
    return frames.encode(Frame(frames.REQUEST, meta, blob))


def pages(content: bytes, slot: int = 1, address: int = 0x10000) -> bytes:
    """A whole page frame."""
    meta = frames.pages_meta([Run(address, len(content) // PAGE, CONTENTS)])
    return frames.encode(Frame(frames.PAGES, meta, content, 0, slot))


def session() -> list[bytes]:
    """All that is said to a destination agent in a migration, message by message, and every other verb."""
    return [
        request("hello"),
        request("read", paths=["/proc/self/status", "/nowhere"]),
        request("stat", paths=["/", "/nowhere"], nofollow=True),
        request("digest", paths=["/etc/passwd"], lengths=[10]),
        request("statvfs", path="/"),
        request("overseer", restorees=1, new_pid_namespace=False),
        request("run", b"first program", parts=[[0, 5], [1, 8]], return_image=True),
        pages(os.urandom(16) * (PAGE // 16)),
        request("sync"),
        request("stage", b"staged"),
        request("run", parts=[[0, 6]]),
        request("pages", pid=os.getpid(), areas=[[0x10000, 0x20000, 0, 0]], masks=[[0x10000, 16]]),
        request("ping"),
        request("abort"),
        request("bye"),
    ]


@cache
def images() -> dict[str, bytes]:
    """Of a real process: what the source agent says of it."""
    victim = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    source = Source(lambda *frame: None)
    try:
        preview = source.do_inspect(victim.pid)[1]
        source.do_track("auto", "none", None)
        layout = source.do_look()[1]
        source.do_send([])
        image = source.do_rehearse()[1]
    finally:
        source.close()
        victim.kill()
        victim.wait()
    return {"preview": preview, "layout": layout, "image": image}


def seeds(target: str) -> list[bytes]:
    """For a target of `tests.fuzz.targets`."""
    if target in ("agent", "decoder"):
        return [b"".join(session()), *session()]
    return [images()[target]]
