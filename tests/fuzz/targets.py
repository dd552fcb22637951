"""What is fed with hostile bytes, by hypothesis (tests/unit/test_hostile_input.py) and by atheris (`make fuzz`): each
target takes bytes, and raises for what must not happen."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

from agents import conversation, destination
from agents.overseer import OutOfStep, Overseer
from migrate.engine.image.codec import decode
from migrate.engine.preview import Layout, Preview
from migrate.engine.wire import Reader
from migrate.errors import ImageError
from migrate.transport import frames
from migrate.transport.frames import FrameError

WORDS = 20  # characters at least in a sentence that says what is wrong


@dataclass
class Restorers:
    """Stands in for the overseer and its restorees: what they are told to do is noted when all of it is here."""

    data: int
    told: list[tuple[Any, ...]] = field(default_factory=list)
    pid: int = 1

    def __post_init__(self) -> None:
        self.pidfd = os.pidfd_open(os.getpid())

    def maps(self) -> str:
        return ""

    def check(self, slot: int) -> None:
        if not 0 <= slot <= 1:
            raise ValueError(f"there is no slot {slot}")

    def run(self, slot: int, programs: bytes | memoryview, return_image: bool) -> tuple[int, int, int, bytes]:
        self.check(slot)
        self.told.append(("run", slot, bytes(programs)))
        return 0, -1, 0, b""

    def place(self, slot: int, meta: bytes, blob_len: int) -> tuple[int, int]:
        self.check(slot)
        try:
            contents = bytes(frames.read_exactly(self.data, blob_len))
        except FrameError as error:
            raise OutOfStep(str(error)) from None
        self.told.append(("place", slot, meta, contents))
        return -1, 0

    def has_ended(self) -> bool:
        return False

    def kill(self) -> None:
        self.close()

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@dataclass(frozen=True)
class Session:
    """How the agent took it: its exit status, what it said, what it had done, and its standard error."""

    status: int
    said: list[dict[str, Any]]
    told: list[tuple[Any, ...]]
    complaints: str


def agent(data: bytes) -> Session:
    """The destination agent, with these bytes as all that it ever hears. AssertionError when it takes them badly."""
    stdin, stdout = (os.memfd_create(name) for name in ("in", "out"))
    made: list[Restorers] = []

    def start(*arguments: Any) -> Restorers:
        made.append(Restorers(stdin))
        return made[-1]

    complaints = io.StringIO()
    try:
        os.write(stdin, data)
        os.lseek(stdin, 0, os.SEEK_SET)
        with mock.patch.object(Overseer, "start", start), mock.patch.object(conversation, "_deaf"):
            with redirect_stderr(complaints):
                status = destination.Agent(stdin, stdout, ["stand-in"]).serve()
        os.lseek(stdout, 0, os.SEEK_SET)
        said = []
        while (frame := frames.read_frame(stdout)) is not None:
            said.append({"kind": frames.KINDS[frame.kind], **frames.parse_json(frame.meta)})
    finally:
        os.close(stdin)
        os.close(stdout)
    session = Session(status, said, [each for one in made for each in one.told], complaints.getvalue())
    for restorers in made:  # a committed one is left alone, all others have been ended
        assert restorers.pidfd < 0, "an overseer was left behind"
    ends = [each for each in said if each.get("event") == "fatal"]
    assert status in (0, 1) and len(ends) == (status == 1), session
    assert not ends or (said[-1] is ends[0] and len(ends[0]["message"]) > WORDS), session
    for each in said:
        if each["kind"] == "REPLY" and not each["ok"]:
            assert each["error"]["message"], session
    return session


def decoder(data: bytes) -> None:
    """The coordinator's end of a connection: frames, or a FrameError with words."""
    stream = frames.Decoder()
    try:
        for at in range(0, len(data), 7):
            for frame in stream.feed(data[at : at + 7]):
                if frame.kind in (frames.PAGES, frames.RING):
                    frames.parse_pages(frame.meta)
                else:
                    frames.parse_json(frame.meta)
        stream.eof()
    except FrameError as error:
        assert len(str(error)) > WORDS, error


def _image(read: Callable[[bytes], object], data: bytes) -> str:
    """What is wrong with an image; nothing: it is one."""
    try:
        read(data)
    except ImageError as error:
        assert str(error).startswith("image"), error
        return str(error)
    return ""


TARGETS: dict[str, Callable[[bytes], object]] = {
    "agent": agent,
    "decoder": decoder,
    "preview": partial(_image, partial(decode, Preview)),
    "layout": partial(_image, partial(decode, Layout)),
    "image": lambda data: _image(Reader().read, data),
}
