"""Type hints compiled into closures that encode and check, once for each type.

Speed comes from leaving work to C: the fields of a dataclass are fetched by one `attrgetter`, its plain fields are
checked by comparing one tuple of types, and values that msgpack takes as they are (numbers, text, bytes, tuples of
these) are not touched at all. Only when a comparison fails does slow code look for the place.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Union

PLAIN: tuple[type, ...] = (int, str, bytes, bool, float, type(None))
MAX_DEPTH = 64  # of types that contain themselves

Step = Callable[[Any], Any]


class Mismatch(Exception):
    """A value that is not what the type hint says. ``path`` grows at the front on its way up."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def within(self, outer: str) -> Mismatch:
        """The same, seen from one level up."""
        return Mismatch(outer + self.path, self.what)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How values of one type are written and read. Both check, and raise Mismatch."""

    encode: Step  # a value to what msgpack packs
    decode: Step  # what msgpack unpacked to a value
    plain: type | None = None  # both are the identity, after checking for exactly this type


_codecs: dict[Any, Codec] = {}
_layouts: dict[type, str] = {}


def codec_of(hint: Any) -> Codec:
    """The codec of a type hint, from the cache or made now. TypeError: such types are not written to images."""
    if hint not in _codecs:
        _codecs[hint] = _make(hint, ())
    return _codecs[hint]


def _make(hint: Any, within: tuple[type, ...]) -> Codec:
    if hint in _codecs:
        return _codecs[hint]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _again(hint) if hint in within else _codecs.setdefault(hint, _dataclass(hint, (*within, hint)))
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if hint is None:
        hint = type(None)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return _plain(hint)
    if origin in (Union, types.UnionType):
        return _union(args, within)
    if origin is tuple:
        return _sequence(args[0], tuple, within) if len(args) == 2 and args[1] is ... else _record(args, within)
    if origin in (list, Sequence):
        return _sequence(args[0], list if origin is list else tuple, within)
    if origin in (dict, Mapping):
        return _dict(args[0], args[1], within)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint)
    raise TypeError(f"{hint!r} cannot be written to an image")


def _plain(cls: type) -> Codec:
    def check(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(cls, value)
        return value

    return Codec(check, check, cls)


def _enum(cls: type[enum.Enum]) -> Codec:
    def encode(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(cls, value)
        return value.value

    def decode(value: Any) -> Any:
        try:
            return cls(value)
        except (ValueError, TypeError):
            raise Mismatch("", f"expected {cls.__name__}, found {value!r:.80}") from None

    return Codec(encode, decode)


def _sequence(item: Any, made: type, within: tuple[type, ...]) -> Codec:
    codec = _make(item, within)
    plain, name, only_plain = codec.plain, made.__name__, {codec.plain}

    def each(step: Step, values: Any) -> list[Any]:
        if plain is not None and only_plain.issuperset(map(type, values)):
            return values if type(values) is list else list(values)
        result: list[Any] = []
        try:
            for value in values:
                result.append(step(value))
        except Mismatch as fault:
            raise fault.within(f"[{len(result)}]") from None
        return result

    def encode(values: Any) -> Any:
        if not isinstance(values, (list, tuple)):
            raise expected(made, values)
        return each(codec.encode, values)

    def decode(values: Any) -> Any:
        if type(values) is not list:
            raise Mismatch("", f"expected {name}, found {found(values)}")
        result = each(codec.decode, values)
        return result if made is list else tuple(result)

    return Codec(encode, decode)


def _record(items: tuple[Any, ...], within: tuple[type, ...]) -> Codec:
    """A tuple whose members have types of their own."""
    if items == ((),):  # tuple[()] before Python 3.11
        items = ()
    codecs = [_make(item, within) for item in items]

    def walk(values: Any, steps: list[Step]) -> list[Any]:
        if len(values) != len(steps):
            raise Mismatch("", f"expected {len(steps)} values, found {len(values)}")
        result: list[Any] = []
        try:
            for step, value in zip(steps, values, strict=True):
                result.append(step(value))
        except Mismatch as fault:
            raise fault.within(f"[{len(result)}]") from None
        return result

    encoders, decoders = [c.encode for c in codecs], [c.decode for c in codecs]

    def encode(values: Any) -> Any:
        if not isinstance(values, tuple):
            raise expected(tuple, values)
        return walk(values, encoders)

    def decode(values: Any) -> Any:
        if type(values) is not list:
            raise expected(tuple, values)
        return tuple(walk(values, decoders))

    return Codec(encode, decode)


def _dict(key: Any, item: Any, within: tuple[type, ...]) -> Codec:
    keys, items = _make(key, within), _make(item, within)

    def encode(mapping: Any) -> Any:
        if not isinstance(mapping, Mapping):
            raise expected(dict, mapping)
        flat: list[Any] = []
        for k, v in mapping.items():
            try:
                flat.append(keys.encode(k))
                flat.append(items.encode(v))
            except Mismatch as fault:
                raise fault.within(f"[{k!r:.80}]") from None
        return flat

    def decode(flat: Any) -> Any:
        if type(flat) is not list or len(flat) % 2:
            raise expected(dict, flat)
        result: dict[Any, Any] = {}
        for k, v in zip(flat[::2], flat[1::2], strict=True):
            try:
                made = keys.decode(k)
                if made in result:
                    raise Mismatch("", "the same key twice")
                result[made] = items.decode(v)
            except Mismatch as fault:
                raise fault.within(f"[{k!r:.80}]") from None
        return result

    return Codec(encode, decode)


def _union(members: tuple[Any, ...], within: tuple[type, ...]) -> Codec:
    """None and plain types are told apart by their type, dataclasses by a tag in front: their class name."""
    plain = {member for member in members if member in PLAIN}
    rest = [member for member in members if member not in PLAIN]
    if len(rest) == 1 and plain == {type(None)}:
        return _optional(_make(rest[0], within))
    for member in rest:
        if not dataclasses.is_dataclass(member):
            raise TypeError(f"{member!r} in a union: only None, plain types and dataclasses can be told apart")
    tags: dict[Any, type] = {cls.__name__: cls for cls in rest}
    if len(tags) != len(rest):
        raise TypeError(f"two classes of the same name in a union: {rest}")
    made = {cls: _make(cls, within) for cls in rest}
    plains = {cls: _plain(cls) for cls in plain}
    names = " | ".join(sorted(_name(member) for member in members))

    def encode(value: Any) -> Any:
        cls = type(value)
        if cls in plains:
            return plains[cls].encode(value)
        if cls not in made:
            raise Mismatch("", f"expected {names}, found {found(value)}")
        return [cls.__name__, made[cls].encode(value)]

    def decode(value: Any) -> Any:
        if type(value) in plains:
            return plains[type(value)].decode(value)
        if type(value) is not list or len(value) != 2 or type(value[0]) is not str or value[0] not in tags:
            tag = f"tag {value[0]!r:.80}" if type(value) is list and value else found(value)
            raise Mismatch("", f"expected {names}, found {tag}")
        try:
            return made[tags[value[0]]].decode(value[1])
        except Mismatch as fault:
            raise fault.within(f"<{value[0]}>") from None

    return Codec(encode, decode)


def _optional(inner: Codec) -> Codec:
    to_wire, from_wire = inner.encode, inner.decode
    return Codec(
        lambda value: None if value is None else to_wire(value),
        lambda value: None if value is None else from_wire(value),
    )


def _dataclass(cls: type, within: tuple[type, ...]) -> Codec:
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    if any(f.kw_only for f in fields):
        raise TypeError(f"{cls!r} has keyword-only fields: an image holds them by position")
    names = [f.name for f in fields]
    codecs = [_make(hints[name], within) for name in names]
    plain = [i for i, codec in enumerate(codecs) if codec.plain is not None]
    others = [i for i, codec in enumerate(codecs) if codec.plain is None]
    plain_types = tuple(codecs[i].plain for i in plain)
    encoders = [(i, codecs[i].encode) for i in others]
    decoders = [(i, codecs[i].decode) for i in others]
    fetch: Step = attrgetter(*names) if len(names) > 1 else lambda value: tuple(getattr(value, name) for name in names)
    pick: Step = _picker(plain, len(names))
    build, length = _builder(cls, names), len(names)

    def find(row: Sequence[Any]) -> None:
        for i in plain:
            try:
                codecs[i].encode(row[i])
            except Mismatch as fault:
                raise fault.within(f".{names[i]}") from None

    def encode(value: Any) -> Any:
        if type(value) is not cls:
            raise expected(cls, value)
        row: Any = fetch(value)
        if tuple(map(type, pick(row))) != plain_types:
            find(row)
        if encoders:
            row, i = list(row), 0
            try:
                for i, step in encoders:
                    row[i] = step(row[i])
            except Mismatch as fault:
                raise fault.within(f".{names[i]}") from None
        return row

    def decode(row: Any) -> Any:
        if type(row) is not list:
            raise expected(cls, row)
        if len(row) != length:
            raise Mismatch("", f"expected the {length} fields of {cls.__name__}, found {len(row)}")
        if tuple(map(type, pick(row))) != plain_types:
            find(row)
        i = 0
        try:
            for i, step in decoders:
                row[i] = step(row[i])
        except Mismatch as fault:
            raise fault.within(f".{names[i]}") from None
        try:
            return build(row)
        except ValueError as error:  # a class may check itself
            raise Mismatch("", str(error)) from None

    return Codec(encode, decode)


def _again(cls: type) -> Codec:
    """A class inside itself: its codec is there when it is first used. Depth is bounded here, for only such types have
    any that the reader does not know beforehand."""
    depth = 0

    def bounded(name: str) -> Step:
        def step(value: Any) -> Any:
            nonlocal depth
            if depth >= MAX_DEPTH:
                raise Mismatch("", f"{cls.__name__} nested more than {MAX_DEPTH} deep")
            depth += 1
            try:
                return getattr(codec_of(cls), name)(value)
            finally:
                depth -= 1

        return step

    return Codec(bounded("encode"), bounded("decode"))


def _picker(indexes: list[int], length: int) -> Step:
    """Those items of a row, as a tuple or as the row itself."""
    if len(indexes) == length:
        return lambda row: row
    if len(indexes) < 2:
        return lambda row: tuple(row[i] for i in indexes)
    return itemgetter(*indexes)


def _builder(cls: type, names: list[str]) -> Step:
    """A row to an instance. The __init__ of a frozen dataclass calls object.__setattr__ for each field, which takes
    three times as long as filling the __dict__; so where __init__ does nothing else, it is left out."""
    parameters = vars(cls).get("__dataclass_params__")
    generated = parameters is not None and parameters.init and not hasattr(cls, "__post_init__")
    if not generated or len(names) != len(dataclasses.fields(cls)) or any("__slots__" in vars(c) for c in cls.__mro__):
        return lambda row: cls(*row)
    new: Any = object.__new__

    def build(row: list[Any]) -> Any:
        instance = new(cls)
        instance.__dict__.update(zip(names, row, strict=True))
        return instance

    return build


def expected(cls: type, value: Any) -> Mismatch:
    """``expected int, found str``."""
    return Mismatch("", f"expected {_name(cls)}, found {found(value)}")


def found(value: Any) -> str:
    """What to call a value that should not be there."""
    return _name(type(value))


def _name(hint: Any) -> str:
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def layout_of(cls: type) -> str:
    """A digest of the type hints of ``cls`` and of all that it contains."""
    if cls not in _layouts:
        lines: list[str] = []
        _describe(cls, lines, set())
        _layouts[cls] = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
    return _layouts[cls]


def _describe(hint: Any, lines: list[str], seen: set[Any]) -> None:
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        lines.append(hint.__name__)
        if hint in seen:
            return
        seen.add(hint)
        hints = typing.get_type_hints(hint)
        for field in dataclasses.fields(hint):
            if field.init:
                lines.append(f".{field.name}")
                _describe(hints[field.name], lines, seen)
        return
    origin = typing.get_origin(hint)
    lines.append(_name(origin if origin is not None else hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        lines += [repr(member.value) for member in hint]
    for arg in typing.get_args(hint):
        _describe(arg, lines, seen)
