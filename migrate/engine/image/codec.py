"""Dataclasses to bytes and back, driven by their type hints.

    image = encode(process)
    process = decode(Process, image)

The bytes are one msgpack array: the header ``{"format": "migrate-image", "version": 1, "layout": …}`` and the value. A
dataclass is the array of its fields in order; a member of a union of dataclasses is that array behind its class name;
a dict is the array of its keys and values in turn (msgpack's own maps cannot have tuples for keys). What type stands
where is not written down, so ``layout``, a digest of all the type hints, tells whether writer and reader mean the same.

A type's encoder and decoder are made once, as closures (`migrate.engine.image.compile`). What is read is checked in
full, value by value, and the error names the place: ``image.threads[3].mask: expected int, found str``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgpack

from migrate.engine.image.compile import Mismatch, codec_of, layout_of
from migrate.errors import ImageError

FORMAT = "migrate-image"
VERSION = 1
MAX_SIZE = 256 << 20  # bytes of one image: state without page contents, of which a thread needs about 12 KiB

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """The image of a dataclass. ImageError names the field that does not hold what its type hint says."""
    cls = type(value)
    codec = codec_of(cls)
    header = {"format": FORMAT, "version": VERSION, "layout": layout_of(cls)}
    try:
        with _no_garbage_collection():
            image: bytes = msgpack.packb([header, codec.encode(value)], unicode_errors="surrogateescape")
    except Mismatch as fault:
        raise ImageError(f"image{fault.path}: {fault.what}") from None
    except RecursionError:
        raise ImageError("image: nested too deeply") from None
    except OverflowError:  # rare, so that it is searched for only now
        raise ImageError(f"image{_too_large(value)}: does not fit 64 bits") from None
    except (UnicodeError, ValueError) as error:
        raise ImageError(f"image: {error}") from None
    if len(image) > MAX_SIZE:
        raise ImageError(f"image: {len(image)} bytes, at most {MAX_SIZE} are allowed")
    return image


def decode(cls: type[T], image: bytes) -> T:
    """The dataclass in an image. ImageError says what is wrong with the bytes, and where."""
    if len(image) > MAX_SIZE:
        raise ImageError(f"image: {len(image)} bytes, at most {MAX_SIZE} are allowed")
    with _no_garbage_collection():
        header, body = _envelope(image)
        _check_header(header, cls)
        try:
            value: T = codec_of(cls).decode(body)
        except Mismatch as fault:
            raise ImageError(f"image{fault.path}: {fault.what}") from None
        except RecursionError:
            raise ImageError("image: nested too deeply") from None
    return value


def _too_large(value: Any) -> str | None:
    """Where in ``value`` the number is that msgpack could not hold, if it is there."""
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, int):
        return None if -(1 << 63) <= value < 1 << 64 else ""
    if is_dataclass(value):
        parts = ((f".{field.name}", getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, Mapping):
        parts = ((f"[{key!r}]", part) for pair in value.items() for key, part in ((pair[0], pair[0]), pair))
    elif isinstance(value, (tuple, list)):
        parts = ((f"[{i}]", part) for i, part in enumerate(value))
    for path, part in parts:
        within = _too_large(part)
        if within is not None:
            return path + within
    return None


def _envelope(image: bytes) -> tuple[Any, Any]:
    try:
        # The limits of msgpack follow from the length: no part can claim to be longer than the whole.
        document = msgpack.unpackb(image, unicode_errors="surrogateescape", strict_map_key=False)
    except MemoryError:
        raise ImageError("image: claims more than fits into memory") from None
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # what msgpack raises for garbage, UnpackException included
        raise ImageError(f"image: not msgpack: {error or type(error).__name__}") from None
    if type(document) is not list or len(document) != 2 or type(document[0]) is not dict:
        raise ImageError("image: no header")
    return document[0], document[1]


def _check_header(header: dict[Any, Any], cls: type) -> None:
    if header.get("format") != FORMAT:
        raise ImageError(f"image: the format is {header.get('format')!r}, not {FORMAT!r}")
    if type(header.get("version")) is not int or header["version"] != VERSION:
        raise ImageError(f"image: version {header.get('version')!r}, this program reads version {VERSION}")
    if header.get("layout") != layout_of(cls):
        raise ImageError(f"image: another layout of {cls.__name__} than this program has: written by another version?")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A thousand threads make a hundred thousand objects, none of them garbage: collections in between cost as much as
    the work itself."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
