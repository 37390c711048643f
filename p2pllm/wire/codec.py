"""Messages to bytes and back: frozen dataclasses as positional msgpack arrays.

A message is `[tag, fields]` (`p2pllm.wire.tags`), a nested dataclass just `fields`; fields stand in
the order they are declared in. How a field looks and what it may hold follows from its annotation,
resolved once per class and compiled to a closure:

| annotation | on the wire | checked |
| --- | --- | --- |
| bool, int, float, str, bytes | the msgpack type | exact type, finite, Bounds, Length |
| NodeId, SessionId, SwarmId | bytes, half as many as hex digits | length |
| ModelId | text | `is_model_id` |
| IntEnum, StrEnum | the value | a known member |
| X or None | nil or X | |
| tuple[X, ...], tuple[A, B] | array | Length; the exact number |
| dataclass | array of its fields | its `__post_init__` |
| union of dataclasses | [tag, fields] | a tag of that union |
| Signed[T] | [payload, signature, certificate] | payload is a message of type T |
| bytes, bytearray or memoryview | left out; travels beside (`p2pllm.wire.frames`) | |

A newer version of the protocol may append fields: further elements are ignored, missing ones take
the dataclass's default. Both directions check, so what one of our nodes encodes every one of them
can decode. Blame is told apart: `RemoteProtocolError` is the sender's fault, `LocalProtocolError`
a bug of ours. Nothing is allocated beyond the limits of the annotations, whatever lengths the
bytes claim: msgpack reserves room for an array when it sees its header, so arrays are limited to
the longest one the expected messages may hold.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import types
import typing
from collections.abc import Callable
from enum import Enum, IntEnum, StrEnum
from math import isfinite
from typing import Annotated, Any, NamedTuple, TypeVar, cast

import msgpack

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId, SessionId, SwarmId, is_model_id
from p2pllm.wire.tags import TAGS

INTEGER_MAX = 2**63 - 1
"""An integer without `Bounds` lies in -INTEGER_MAX..INTEGER_MAX."""

TEXT_BYTES_MAX = 256
"""A text without `Length`."""

BYTES_MAX = 1_024
"""Bytes without `Length`."""

ITEMS_MAX = 256
"""A tuple without `Length`."""

FIELDS_MAX = 128
"""Most fields of a message, those of future versions included."""

_HEX_BYTES: dict[Any, int] = {NodeId: 16, SessionId: 16, SwarmId: 32}
_BESIDE = frozenset((bytes, bytearray, memoryview))

Closure = Callable[[Any], Any]


class LocalProtocolError(ValueError):
    """We tried to send what the protocol does not allow: a bug of ours."""


class _InvalidError(Exception):
    """A value does not fit; the public functions say whose fault it is."""


class _Limits(NamedTuple):
    """The most that valid bytes need, so that the parser need not allow more."""

    items: int = FIELDS_MAX
    text_bytes: int = TEXT_BYTES_MAX
    raw_bytes: int = BYTES_MAX

    def join(self, other: _Limits) -> _Limits:
        return _Limits(*map(max, self, other))


class _Kind(NamedTuple):
    """One annotation, compiled. Both closures raise `_InvalidError` only."""

    encode: Closure
    decode: Closure
    limits: _Limits = _Limits()


def encode(message: Any) -> bytes:
    """The bytes of a message whose class has a tag, or of a signed record.

    Raises:
        LocalProtocolError: a field is of the wrong type or out of its bounds.
    """
    kind = _TAGGED.get(type(message)) or _tagged(type(message))
    try:
        return cast(bytes, _PACKER.pack(kind.encode(message)))
    except _InvalidError as error:
        raise LocalProtocolError(str(error)) from None


def decode(data: bytes | bytearray | memoryview, expected: Any) -> Any:
    """The message in `data`, of one of the classes in the union `expected`, or a `Signed[T]`.

    Raises:
        RemoteProtocolError: whatever is wrong with `data`.
    """
    return decoder(expected)(data)


@functools.cache
def decoder(expected: Any) -> Callable[[bytes | bytearray | memoryview], Any]:
    """`decode` for one union, compiled; for callers that decode many."""
    if typing.get_origin(expected) is Signed:
        kind = _signed(typing.get_args(expected)[0], "record")
    else:
        kind = _union(_members(expected), "message")
    limits, decode_value = kind.limits, kind.decode

    def decode_data(data: bytes | bytearray | memoryview) -> Any:
        try:
            value = msgpack.unpackb(
                data,
                use_list=False,
                raw=False,
                max_array_len=limits.items,
                max_str_len=limits.text_bytes,
                max_bin_len=limits.raw_bytes,
                max_map_len=0,
                max_ext_len=0,
            )
        except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"not msgpack within limits: {str(error)[:80]}") from None
        try:
            return decode_value(value)
        except _InvalidError as error:
            raise RemoteProtocolError(str(error)) from None

    return decode_data


_PACKER = msgpack.Packer(use_bin_type=True)
# One for the process: with plain types only, a call of `pack` never lets another thread run.

_TAGGED: dict[type, _Kind] = {}


def _tagged(cls: type) -> _Kind:
    """The `[tag, fields]` form of a message class; a signed record stands without a tag."""
    if cls is Signed:
        kind = _signed(_join(tuple(TAGS)), "record")
    elif cls in TAGS:
        kind = _union((cls,), cls.__name__)
    else:
        raise LocalProtocolError(f"{cls.__name__} has no tag")
    _TAGGED[cls] = kind
    return kind


def _members(annotation: Any) -> tuple[Any, ...]:
    if _is_union(annotation):
        return tuple(typing.get_args(annotation))
    return (annotation,)


def _join(members: tuple[Any, ...]) -> Any:
    """The union of one or more annotations."""
    return functools.reduce(operator.or_, members)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_dataclass(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def _kind(annotation: Any, where: str) -> _Kind:
    """Compile one annotation; `where` names it in errors."""
    marks: list[Any] = []
    while typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        marks = [*inner, *marks]
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), None)
    length = next((mark.maximum for mark in marks if isinstance(mark, Length)), None)
    if annotation in _HEX_BYTES:
        return _hex(_HEX_BYTES[annotation], where)
    if annotation is ModelId:
        return _model_id(where)
    if isinstance(annotation, typing.NewType):
        return _kind(Annotated[annotation.__supertype__, *marks, None], where)
    if annotation is bool:
        return _boolean(where)
    if annotation is int:
        return _integer(bounds or Bounds(-INTEGER_MAX, INTEGER_MAX), where)
    if annotation is float:
        return _number(bounds, where)
    if annotation is str:
        return _text(TEXT_BYTES_MAX if length is None else length, where)
    if annotation is bytes:
        return _raw(BYTES_MAX if length is None else length, where)
    if isinstance(annotation, type) and issubclass(annotation, (IntEnum, StrEnum)):
        return _enumeration(annotation, where)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return _sequence(arguments[0], ITEMS_MAX if length is None else length, where)
    if origin is tuple:
        return _pair(arguments, where)
    if origin is Signed:
        return _signed(arguments[0], where)
    if _is_union(annotation):
        if type(None) in arguments:
            rest = tuple(item for item in arguments if item is not type(None))
            return _optional(_kind(Annotated[_join(rest), *marks, None], where))
        if all(typing.get_origin(item) is Signed for item in arguments):
            return _signed(_join(tuple(typing.get_args(item)[0] for item in arguments)), where)
        return _union(arguments, where)
    if _is_dataclass(annotation):
        return _fields(annotation)
    raise TypeError(f"{where}: {annotation} cannot be put on the wire")


def _same(check: Closure, limits: _Limits) -> _Kind:
    """A kind whose values look the same on both sides."""
    return _Kind(check, check, limits)


def _hex(size_bytes: int, where: str) -> _Kind:
    def encode_hex(value: Any) -> Any:
        try:
            raw = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise _InvalidError(f"{where}: not hexadecimal") from None
        if len(raw) != size_bytes or raw.hex() != value:
            raise _InvalidError(f"{where}: not {2 * size_bytes} lowercase hexadecimal digits")
        return raw

    def decode_hex(value: Any) -> Any:
        if type(value) is not bytes or len(value) != size_bytes:
            raise _InvalidError(f"{where}: not {size_bytes} bytes")
        return value.hex()

    return _Kind(encode_hex, decode_hex)


def _model_id(where: str) -> _Kind:
    def check(value: Any) -> Any:
        if type(value) is not str or not is_model_id(value):
            raise _InvalidError(f"{where}: not a model id")
        return value

    return _same(check, _Limits())


def _boolean(where: str) -> _Kind:
    def check(value: Any) -> Any:
        if value is not True and value is not False:
            raise _InvalidError(f"{where}: not a boolean")
        return value

    return _same(check, _Limits())


def _integer(bounds: Bounds, where: str) -> _Kind:
    low, high = int(bounds.minimum), int(bounds.maximum)

    def check(value: Any) -> Any:
        if type(value) is not int or not low <= value <= high:
            raise _InvalidError(f"{where}: not an integer in {low}..{high}")
        return value

    return _same(check, _Limits())


def _number(bounds: Bounds | None, where: str) -> _Kind:
    low = bounds.minimum if bounds else -float("inf")
    high = bounds.maximum if bounds else float("inf")

    def check(value: Any) -> Any:
        if type(value) is not float or not isfinite(value) or not low <= value <= high:
            raise _InvalidError(f"{where}: not a finite number in {low}..{high}")
        return value

    def encode_number(value: Any) -> Any:
        return check(float(value) if type(value) is int else value)

    return _Kind(encode_number, check)


def _text(length: int, where: str) -> _Kind:
    def check(value: Any) -> Any:
        if (
            type(value) is not str
            or len(value) > length
            or not (value.isascii() or _utf8_length(value, where) <= length)
        ):
            raise _InvalidError(f"{where}: not text of at most {length} bytes")
        return value

    return _same(check, _Limits(text_bytes=length))


def _utf8_length(value: str, where: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise _InvalidError(f"{where}: not text that has a UTF-8 form") from None


def _raw(length: int, where: str) -> _Kind:
    def check(value: Any) -> Any:
        if type(value) is not bytes or len(value) > length:
            raise _InvalidError(f"{where}: not bytes, at most {length}")
        return value

    return _same(check, _Limits(raw_bytes=length))


def _enumeration(cls: type[IntEnum] | type[StrEnum], where: str) -> _Kind:
    plain = int if issubclass(cls, IntEnum) else str
    by_value: dict[Any, Enum] = {plain(member.value): member for member in cls}

    def encode_member(value: Any) -> Any:
        if type(value) is not cls:
            raise _InvalidError(f"{where}: not a {cls.__name__}")
        return value.value

    def decode_member(value: Any) -> Any:
        if type(value) is not plain or value not in by_value:
            raise _InvalidError(f"{where}: no such {cls.__name__}")
        return by_value[value]

    return _Kind(encode_member, decode_member)


def _optional(kind: _Kind) -> _Kind:
    inner_encode, inner_decode = kind.encode, kind.decode

    def encode_optional(value: Any) -> Any:
        return None if value is None else inner_encode(value)

    def decode_optional(value: Any) -> Any:
        return None if value is None else inner_decode(value)

    return _Kind(encode_optional, decode_optional, kind.limits)


def _integer_bounds(annotation: Any) -> Bounds | None:
    """The bounds of a plain integer annotation; None for any other."""
    if annotation is int:
        return Bounds(-INTEGER_MAX, INTEGER_MAX)
    if typing.get_origin(annotation) is Annotated:
        base, *marks = typing.get_args(annotation)
        if base is int:
            found = next((mark for mark in marks if isinstance(mark, Bounds)), None)
            return found or _integer_bounds(int)
    return None


def _sequence(item: Any, length: int, where: str) -> _Kind:
    kind = _kind(item, where)
    limits = kind.limits.join(_Limits(items=length))
    bounds = _integer_bounds(item)
    if bounds is not None:
        return _integers(int(bounds.minimum), int(bounds.maximum), length, limits, where)
    item_encode, item_decode = kind.encode, kind.decode

    def check(value: Any) -> None:
        if type(value) is not tuple or len(value) > length:
            raise _InvalidError(f"{where}: not an array of at most {length}")

    def encode_items(value: Any) -> Any:
        check(value)
        return [item_encode(element) for element in value]

    def decode_items(value: Any) -> Any:
        check(value)
        return tuple([item_decode(element) for element in value])

    return _Kind(encode_items, decode_items, limits)


def _integers(low: int, high: int, length: int, limits: _Limits, where: str) -> _Kind:
    """A tuple of integers, checked without a Python call per item: prompts are long."""
    integers_only = frozenset((int,))

    def check(value: Any) -> Any:
        if (
            type(value) is not tuple
            or len(value) > length
            or (value and not integers_only.issuperset(map(type, value)))
            or (value and not (low <= min(value) and max(value) <= high))
        ):
            raise _InvalidError(f"{where}: not at most {length} integers in {low}..{high}")
        return value

    return _same(check, limits)


def _pair(items: tuple[Any, ...], where: str) -> _Kind:
    kinds = [_kind(item, where) for item in items]
    encoders, decoders = [kind.encode for kind in kinds], [kind.decode for kind in kinds]
    limits = _Limits()
    for kind in kinds:
        limits = limits.join(kind.limits)

    def check(value: Any) -> None:
        if type(value) is not tuple or len(value) != len(kinds):
            raise _InvalidError(f"{where}: not an array of {len(kinds)}")

    def encode_pair(value: Any) -> Any:
        check(value)
        return [one(element) for one, element in zip(encoders, value, strict=True)]

    def decode_pair(value: Any) -> Any:
        check(value)
        return tuple([one(element) for one, element in zip(decoders, value, strict=True)])

    return _Kind(encode_pair, decode_pair, limits)


@functools.cache
def _fields(cls: type) -> _Kind:
    """A dataclass as the array of its fields."""
    hints = typing.get_type_hints(cls, include_extras=True)
    declared = dataclasses.fields(cls)
    on_wire = [item for item in declared if not _is_beside(hints[item.name])]
    beside = declared[len(on_wire) :]
    if [*on_wire, *beside] != list(declared) or any(
        item.kw_only or not item.init for item in declared
    ):
        raise TypeError(f"{cls.__name__}: only positional fields, what travels beside comes last")
    name = cls.__name__
    names = [item.name for item in on_wire]
    kinds = [_kind(hints[item.name], f"{name}.{item.name}") for item in on_wire]
    required = sum(
        item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        for item in on_wire
    )
    limits = _Limits()
    for kind in kinds:
        limits = limits.join(kind.limits)
    encoders = [(field_name, kind.encode) for field_name, kind in zip(names, kinds, strict=True)]
    decoders = [kind.decode for kind in kinds]
    empty: list[Any] = [b""] * len(beside)

    def encode_fields(value: Any) -> Any:
        if type(value) is not cls:
            raise _InvalidError(f"not a {name}")
        return [one(getattr(value, field_name)) for field_name, one in encoders]

    def decode_fields(value: Any) -> Any:
        if type(value) is not tuple or len(value) < required:
            raise _InvalidError(f"{name}: not an array of {required} fields or more")
        # Shorter than either: missing fields take defaults, those of a newer version are ignored.
        arguments = [one(element) for one, element in zip(decoders, value, strict=False)]
        try:
            return cls(*arguments, *empty)
        except ValueError as error:
            raise _InvalidError(f"{name}: {error}") from None

    return _Kind(encode_fields, decode_fields, limits)


def _is_beside(annotation: Any) -> bool:
    return _is_union(annotation) and frozenset(typing.get_args(annotation)) == _BESIDE


def _union(members: tuple[Any, ...], where: str) -> _Kind:
    """A union of message classes as `[tag, fields]`."""
    encoders: dict[type, tuple[int, Closure]] = {}
    decoders: dict[int, Closure] = {}
    limits = _Limits()
    for cls in members:
        if not _is_dataclass(cls) or cls not in TAGS:
            raise TypeError(f"{where}: {cls} has no tag in p2pllm.wire.tags")
        kind = _fields(cls)
        encoders[cls] = (TAGS[cls], kind.encode)
        decoders[TAGS[cls]] = kind.decode
        limits = limits.join(kind.limits)

    def encode_union(value: Any) -> Any:
        found = encoders.get(type(value))
        if found is None:
            raise _InvalidError(f"{where}: {type(value).__name__} does not belong here")
        return (found[0], found[1](value))

    def decode_union(value: Any) -> Any:
        if type(value) is not tuple or len(value) != 2 or type(value[0]) is not int:
            raise _InvalidError(f"{where}: not [tag, fields]")
        found = decoders.get(value[0])
        if found is None:
            raise _InvalidError(f"{where}: tag {value[0]} does not belong here")
        return found(value[1])

    return _Kind(encode_union, decode_union, limits)


def _signed(inner: Any, where: str) -> _Kind:
    """`Signed[T]`: the payload is a message of its own, so its tag is signed with it."""
    if isinstance(inner, TypeVar):
        raise TypeError(f"{where}: Signed needs to say what is signed")
    hints = typing.get_type_hints(Signed, include_extras=True)
    names = ("payload", "signature", "certificate")
    kinds = [_kind(hints[name], f"{where}.{name}") for name in names]
    payload, signature, certificate = kinds
    limits = _Limits()
    for kind in kinds:
        limits = limits.join(kind.limits)
    decode_payload = decoder(inner)

    def encode_signed(value: Any) -> Any:
        if type(value) is not Signed:
            raise _InvalidError(f"{where}: not signed")
        return [
            payload.encode(value.payload),
            signature.encode(value.signature),
            certificate.encode(value.certificate),
        ]

    def decode_signed(value: Any) -> Any:
        if type(value) is not tuple or len(value) < len(names):
            raise _InvalidError(f"{where}: not [payload, signature, certificate]")
        body = payload.decode(value[0])
        try:
            inner_value = decode_payload(body)
        except RemoteProtocolError as error:
            raise _InvalidError(f"{where}: {error}") from None
        return Signed(inner_value, body, signature.decode(value[1]), certificate.decode(value[2]))

    return _Kind(encode_signed, decode_signed, limits)
