from __future__ import annotations

import dataclasses
import tracemalloc
import typing
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain import gossip
from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.messages import CloseSession, Forward, Goodbye, StreamProbe
from p2pllm.domain.records import LoadRecord, ModelFact, NodeRecord
from p2pllm.wire import codec, tags
from p2pllm.wire.codec import LocalProtocolError, decode, encode
from p2pllm.wire.tags import TAGS
from tests.wire.strategies import instances, values

NODE = NodeId("0123456789abcdef" * 2)
MESSAGES = sorted(TAGS, key=lambda cls: TAGS[cls])
ANY = typing.Union[tuple(MESSAGES)]  # noqa: UP007


class Colour(IntEnum):
    RED = 1


class Shape(StrEnum):
    ROUND = "round"


@dataclass(frozen=True, slots=True)
class Inner:
    number: Annotated[int, Bounds(0, 9)] = 3

    def __post_init__(self) -> None:
        if self.number == 7:
            raise ValueError("not seven")


@dataclass(frozen=True, slots=True)
class Sample:
    flag: bool
    number: int
    real: Annotated[float, Bounds(-1, 1)]
    text: Annotated[str, Length(4)]
    raw: Annotated[bytes, Length(4)]
    node: NodeId
    model: ModelId
    colour: Colour
    shape: Shape
    inner: Inner
    items: Annotated[tuple[Inner, ...], Length(2)]
    numbers: Annotated[tuple[Annotated[int, Bounds(0, 255)], ...], Length(3)]
    pair: tuple[int, str]
    maybe: Annotated[str, Length(2)] | None = None
    later: int = 5


@dataclass(frozen=True, slots=True)
class Envelope:
    one: Signed[NodeRecord] | None
    many: tuple[Signed[LoadRecord] | Signed[ModelFact], ...] = ()


@dataclass(frozen=True, slots=True)
class Wrapper:
    message: CloseSession | StreamProbe


SAMPLE = Sample(
    True,
    -1,
    0.5,
    "üb",
    b"\0\1",
    NODE,
    ModelId("owner/name"),
    Colour.RED,
    Shape.ROUND,
    Inner(1),
    (Inner(), Inner(2)),
    (1, 2, 255),
    (4, "x"),
)


@pytest.fixture(autouse=True)
def sample_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    for offset, cls in enumerate((Sample, Envelope, Wrapper)):
        monkeypatch.setitem(tags.TAGS, cls, 1_000 + offset)


def test_every_message_has_a_tag_of_its_own() -> None:
    assert len(set(TAGS.values())) == len(TAGS)
    for cls in typing.get_args(gossip.GossipMessage) or (gossip.GossipMessage,):
        assert 64 <= TAGS[cls] <= 127


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_went(cls: type) -> None:
    @settings(max_examples=25, deadline=None)
    @given(instances(cls))
    def check(message: Any) -> None:
        decoded = decode(encode(message), ANY)
        if cls is Forward and message.activation is not None:
            assert decoded.activation.data == b""
            assert decoded.activation.rows == message.activation.rows
            assert decoded.tokens == message.tokens
        else:
            assert decoded == message

    check()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_remote_protocol_error_or_nothing(data: bytes) -> None:
    _decode_or_refuse(data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(TAGS.values())), PLAIN)
def test_well_formed_nonsense_raises_remote_protocol_error_or_nothing(tag: int, body: Any) -> None:
    _decode_or_refuse(msgpack.packb([tag, body]))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutations_raise_remote_protocol_error_or_nothing(data: st.DataObject) -> None:
    message = data.draw(instances(data.draw(st.sampled_from(MESSAGES))))
    mutated = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated)))
        action = data.draw(st.sampled_from(("change", "cut", "insert")))
        if action == "insert":
            mutated[position:position] = data.draw(st.binary(min_size=1, max_size=3))
        elif action == "cut":
            del mutated[position : position + data.draw(st.integers(1, 5))]
        elif position < len(mutated):
            mutated[position] = data.draw(st.integers(0, 255))
    _decode_or_refuse(bytes(mutated))


def _decode_or_refuse(data: bytes) -> None:
    try:
        message = decode(data, ANY)
    except RemoteProtocolError as error:
        assert len(str(error)) < 300  # noqa: PT017
    else:
        encode(message)  # What was let in keeps to the bounds.


def test_a_sample_of_every_annotation_comes_back() -> None:
    assert decode(encode(SAMPLE), Sample) == SAMPLE


@settings(max_examples=50, deadline=None)
@given(values(Sample))
def test_any_sample_comes_back(sample: Sample) -> None:
    assert decode(encode(sample), Sample) == sample


def _fields(**changes: Any) -> bytes:
    """The sample's bytes with some fields replaced by plain values."""
    tag, fields = msgpack.unpackb(encode(SAMPLE))
    names = list(Sample.__dataclass_fields__)
    for name, value in changes.items():
        fields[names.index(name)] = value
    return msgpack.packb([tag, fields])


@pytest.mark.parametrize(
    "changes",
    [
        {"flag": 1},
        {"flag": None},
        {"number": True},
        {"number": 1.0},
        {"number": 2**63},
        {"number": "1"},
        {"real": 1},
        {"real": 1.5},
        {"real": float("nan")},
        {"real": float("inf")},
        {"text": "üben!"},
        {"text": "üüü"},
        {"text": b"raw"},
        {"raw": b"12345"},
        {"raw": "text"},
        {"node": b"short"},
        {"node": NODE},
        {"model": "../up"},
        {"model": 5},
        {"colour": 2},
        {"colour": True},
        {"colour": "red"},
        {"shape": "square"},
        {"shape": []},
        {"inner": None},
        {"inner": [10]},
        {"inner": [7]},
        {"items": [[1], [2], [3]]},
        {"items": [1]},
        {"items": 5},
        {"numbers": [256]},
        {"numbers": [-1]},
        {"numbers": [True]},
        {"numbers": [1, 2, 3, 4]},
        {"numbers": [1.0]},
        {"numbers": "abc"},
        {"pair": [1]},
        {"pair": [1, "a", 2]},
        {"pair": ["a", 1]},
        {"maybe": "abc"},
        {"maybe": 1},
        {"later": None},
    ],
    ids=str,
)
def test_a_field_out_of_its_bounds_is_refused(changes: dict[str, Any]) -> None:
    decode(_fields(), Sample)
    with pytest.raises(RemoteProtocolError, match=r"Sample\.|Inner"):
        decode(_fields(**changes), Sample)


@pytest.mark.parametrize(
    "changes",
    [
        {"flag": 0},
        {"number": 2**63},
        {"real": float("inf")},
        {"text": "12345"},
        {"text": "\ud800"},
        {"raw": b"12345"},
        {"raw": bytearray(b"1")},
        {"node": NODE.upper()},
        {"node": " " + NODE[1:]},
        {"node": None},
        {"model": "a/b/c"},
        {"colour": 1},
        {"shape": "round"},
        {"inner": None},
        {"inner": 5},
        {"items": (Inner(),) * 3},
        {"items": [Inner()]},
        {"numbers": (256,)},
        {"pair": (1,)},
    ],
    ids=repr,
)
def test_a_value_no_peer_would_take_is_not_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        encode(dataclasses.replace(SAMPLE, **changes))


def test_an_integer_may_stand_for_a_float_in_our_own_code() -> None:
    assert decode(encode(dataclasses.replace(SAMPLE, real=1)), Sample).real == 1.0


def test_fields_a_newer_version_appended_are_ignored() -> None:
    tag, fields = msgpack.unpackb(encode(SAMPLE))
    assert decode(msgpack.packb([tag, [*fields, {}, [1, 2], "new"]]), Sample) == SAMPLE


def test_fields_an_older_version_does_not_know_take_their_defaults() -> None:
    tag, fields = msgpack.unpackb(encode(SAMPLE))
    assert decode(msgpack.packb([tag, fields[:-1]]), Sample).later == 5


def test_a_message_without_its_required_fields_is_refused() -> None:
    tag, fields = msgpack.unpackb(encode(SAMPLE))
    with pytest.raises(RemoteProtocolError, match="13 fields or more"):
        decode(msgpack.packb([tag, fields[:-3]]), Sample)


def test_a_message_of_another_union_is_refused() -> None:
    data = encode(Goodbye("bye"))
    assert decode(data, Goodbye | StreamProbe) == Goodbye("bye")
    with pytest.raises(RemoteProtocolError, match="tag 2 does not belong here"):
        decode(data, CloseSession | StreamProbe)


def test_a_union_inside_a_message_carries_its_tag() -> None:
    for inner in (StreamProbe(5), CloseSession(NODE, 1)):  # type: ignore[arg-type]
        assert decode(encode(Wrapper(inner)), Wrapper) == Wrapper(inner)
    with pytest.raises(LocalProtocolError, match="Goodbye does not belong here"):
        encode(Wrapper(Goodbye("no")))  # type: ignore[arg-type]


def test_what_has_no_tag_is_not_a_message() -> None:
    with pytest.raises(LocalProtocolError, match="Inner has no tag"):
        encode(Inner())
    with pytest.raises(TypeError, match="has no tag"):
        codec.decoder(Inner)


@settings(max_examples=40, deadline=None)
@given(values(Envelope))
def test_any_signed_values_come_back(envelope: Envelope) -> None:
    assert decode(encode(envelope), Envelope) == envelope


def test_a_signed_value_is_decoded_from_its_payload_and_kept_as_it_came() -> None:
    load = LoadRecord(NODE, 1, 2, 3, 4, 5, 6.0)
    payload = msgpack.packb(
        [*msgpack.unpackb(encode(load))[:1], [bytes(16), 1, 2, 3, 4, 5, 6.0, 9]]
    )
    signed = Signed(load, payload, b"s", b"c")
    decoded = _signed_kind(LoadRecord, signed)
    assert decoded.payload == payload
    assert decoded.value == LoadRecord(NodeId("00" * 16), 1, 2, 3, 4, 5, 6.0)
    assert (decoded.signature, decoded.certificate) == (b"s", b"c")


def _signed_kind(inner: type, signed: Signed[Any]) -> Signed[Any]:
    kind = codec._kind(Signed[inner], "test")  # type: ignore[valid-type]
    return kind.decode(tuple(kind.encode(signed)))


def test_a_signed_payload_of_another_type_is_refused() -> None:
    load = LoadRecord(NODE, 1, 2, 3, 4, 5, 6.0)
    with pytest.raises(codec._InvalidError, match="tag 49 does not belong here"):
        _signed_kind(NodeRecord, Signed(load, encode(load), b"", b""))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdc\x10\x00" * 500,
        b"\x91" * 5_000,
        b"\x92\x10" * 5_000,
        b"\x81\x90\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\xc1",
        b"",
    ],
    ids=lambda bomb: bomb[:5].hex(),
)
def test_a_bomb_is_refused_without_making_room_for_it(bomb: bytes) -> None:
    decode_any = codec.decoder(ANY)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            decode_any(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_field_the_codec_cannot_carry_is_found_when_the_class_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True)
    class Odd:
        table: dict[str, int]

    monkeypatch.setitem(tags.TAGS, Odd, 2_000)
    with pytest.raises(TypeError, match="cannot be put on the wire"):
        codec._fields(Odd)


def test_a_signed_record_comes_back_by_itself() -> None:
    load = LoadRecord(NODE, 1, 2, 3, 4, 5, 6.0)
    signed = Signed(load, encode(load), b"s", b"c")
    assert decode(encode(signed), Signed[LoadRecord]) == signed
    with pytest.raises(RemoteProtocolError, match="tag 49 does not belong here"):
        decode(encode(signed), Signed[NodeRecord])
