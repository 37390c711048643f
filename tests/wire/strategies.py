"""Hypothesis strategies for every message, built from the annotations the codec checks."""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Annotated, Any

from hypothesis import reject
from hypothesis import strategies as st

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId, SessionId, SwarmId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation, ActivationType
from p2pllm.wire.codec import BYTES_MAX, INTEGER_MAX, TEXT_BYTES_MAX, encode

ITEMS_DRAWN_MAX = 6

_HEX = {NodeId: 16, SessionId: 16, SwarmId: 32}


def instances(cls: type) -> st.SearchStrategy[Any]:
    """Valid instances of a message class."""
    if cls is LayerRange:
        return st.tuples(st.integers(0, 1_000), st.integers(1, 1_000)).map(
            lambda pair: LayerRange(pair[0], pair[0] + pair[1])
        )
    if cls is Activation:
        return _activations()
    hints = typing.get_type_hints(cls, include_extras=True)

    def build(*fields: Any) -> Any:
        try:
            return cls(*fields)
        except ValueError:
            reject()

    return st.builds(build, *(values(hints[field.name]) for field in dataclasses.fields(cls)))


@st.composite
def _activations(draw: st.DrawFn) -> Activation:
    kind = draw(st.sampled_from(ActivationType))
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 64))
    size = rows * columns * kind.itemsize_bytes
    return Activation(kind, rows, columns, draw(st.binary(min_size=size, max_size=size)))


def _signed(inner: Any) -> st.SearchStrategy[Signed[Any]]:
    return st.builds(
        lambda value, signature, certificate: Signed(value, encode(value), signature, certificate),
        values(inner).filter(lambda value: len(encode(value)) <= 1_024),
        st.binary(max_size=64),
        st.binary(max_size=512),
    )


def _text(length: int) -> st.SearchStrategy[str]:
    characters = st.characters(exclude_categories=["Cs"])
    return st.text(characters, max_size=length).filter(lambda text: len(text.encode()) <= length)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Valid values of a field."""
    marks: list[Any] = []
    while typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        marks = [*inner, *marks]
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), None)
    length = next((mark.maximum for mark in marks if isinstance(mark, Length)), None)
    if annotation in _HEX:
        size = _HEX[annotation]
        return st.binary(min_size=size, max_size=size).map(bytes.hex)
    if annotation is ModelId:
        return st.from_regex(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}(/[A-Za-z0-9]{1,20})?", fullmatch=True
        )
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = (bounds.minimum, bounds.maximum) if bounds else (-INTEGER_MAX, INTEGER_MAX)
        return st.integers(int(low), int(high))
    if annotation is float:
        return st.floats(
            bounds and bounds.minimum,
            bounds and bounds.maximum,
            allow_nan=False,
            allow_infinity=False,
        )
    if annotation is str:
        return _text(min(TEXT_BYTES_MAX if length is None else length, 64))
    if annotation is bytes:
        return st.binary(max_size=BYTES_MAX if length is None else length)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return st.sampled_from(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        most = ITEMS_DRAWN_MAX if length is None else min(length, ITEMS_DRAWN_MAX)
        return st.lists(values(arguments[0]), max_size=most).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(item) for item in arguments))
    if origin is Signed:
        return _signed(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if item is type(None) else values(item) for item in arguments))
    if dataclasses.is_dataclass(annotation):
        return instances(typing.cast(type, annotation))
    raise TypeError(annotation)
