"""The generated parts of docs/protocol.md, made from what the codec checks.

`python -m tests.docs.protocol_tables` rewrites them: one table per message, structure and
enumeration that can go over the wire, and one per set of the node's own limits. Text comes from
the docstrings, limits from the annotations.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from p2pllm.core.discovery import DiscoveryConfig
from p2pllm.core.gossip import GossipConfig
from p2pllm.core.membership import MembershipConfig
from p2pllm.core.scheduling import QueueLimits
from p2pllm.core.session import GenerationLimits
from p2pllm.core.stage import StageLimits
from p2pllm.core.swarm import SwarmConfig
from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId, SessionId, SwarmId
from p2pllm.net.limits import StreamLimits
from p2pllm.wire.codec import BYTES_MAX, INTEGER_MAX, ITEMS_MAX, TEXT_BYTES_MAX
from p2pllm.wire.frames import GREETING_LIMITS, PEER_LIMITS
from p2pllm.wire.tags import TAGS

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"

RANGES = (
    (1, 15, "a stream's own business"),
    (16, 31, "generation, over streams"),
    (32, 47, "joining, over streams"),
    (48, 63, "records, as signed payloads"),
    (64, 127, "gossip, in datagrams"),
)

CONFIGS = (
    (StreamLimits, "Streams"),
    (MembershipConfig, "Failure detection"),
    (GossipConfig, "Gossip"),
    (DiscoveryConfig, "First contact"),
    (SwarmConfig, "Records"),
    (StageLimits, "Stages"),
    (QueueLimits, "A stage's queue"),
    (GenerationLimits, "Gateways"),
)

_IDS = {
    NodeId: "node id, 16 bytes",
    SessionId: "session id, 16 bytes",
    SwarmId: "swarm id, 32 bytes",
    ModelId: "model id, text of at most 128 bytes",
}


def blocks() -> dict[str, str]:
    """What stands between the markers, by the markers' name."""
    return {"messages": "\n".join(_messages()), "limits": "\n".join(_limits())}


def replaced(page: str) -> str:
    """`page` with every block as it should be."""
    for name, block in blocks().items():
        start, stop = f"<!-- generated: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = page.partition(start)
        _, ended, after = rest.partition(stop)
        if not (found and ended):
            raise ValueError(f"docs/protocol.md lacks the markers of {name}")
        page = f"{before}{start}\n\n{block}\n{stop}{after}"
    return page


def structures() -> list[type]:
    """Every dataclass and enumeration a message may hold, in the order they are met."""
    found: dict[type, None] = {}
    for message in TAGS:
        _collect(message, found)
    return [item for item in found if item not in TAGS]


def _collect(cls: type, found: dict[type, None]) -> None:
    if cls in found:
        return
    found[cls] = None
    if not issubclass(cls, Enum):
        for annotation in _hints(cls).values():
            for inner in _classes(annotation):
                _collect(inner, found)


def _classes(annotation: Any) -> Iterator[type]:
    if typing.get_origin(annotation) is Signed:
        yield Signed
    if isinstance(annotation, type) and (
        issubclass(annotation, Enum) or dataclasses.is_dataclass(annotation)
    ):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _classes(argument)


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    if cls is Signed:
        names.remove("value")
    return {name: hints[name] for name in names}


# -- messages


def _messages() -> Iterator[str]:
    for low, high, what in RANGES:
        yield f"### Tags {low} to {high}: {what}\n"
        for message, tag in TAGS.items():
            if low <= tag <= high:
                yield from _class(message, f"`{message.__name__}`, tag {tag}")
    yield "### Structures\n"
    yield "Parts of messages; they have no tag.\n"
    items = structures()
    for item in items:
        if not issubclass(item, Enum):
            yield from _class(item, f"`{item.__name__}`")
    yield "### Enumerations\n"
    for item in items:
        if issubclass(item, Enum):
            yield from _enumeration(item)


def _class(cls: type, title: str) -> Iterator[str]:
    summary, meanings = _documentation(cls)
    yield f"#### {title}\n"
    yield f"{summary}\n"
    hints = _hints(cls)
    if not hints:
        return
    yield "| # | field | type | default | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    declared = {field.name: field for field in dataclasses.fields(cls)}
    for number, (name, annotation) in enumerate(hints.items()):
        place = "beside" if _is_beside(annotation) else str(number)
        cells = [
            place,
            f"`{name}`",
            _type(annotation),
            _default(declared[name]),
            meanings.get(name, ""),
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _enumeration(cls: type[Enum]) -> Iterator[str]:
    summary, _ = _documentation(cls)
    meanings = _member_docstrings(cls)
    yield f"#### `{cls.__name__}`\n"
    yield f"{summary}\n"
    yield "| value | name | meaning |"
    yield "| --- | --- | --- |"
    for member in cls:
        value = f'`"{member.value}"`' if isinstance(member.value, str) else str(member.value)
        yield f"| {value} | `{member.name}` | {meanings.get(member.name, '')} |"
    yield ""


def _type(annotation: Any) -> str:
    marks: list[Any] = []
    while typing.get_origin(annotation) is Annotated:
        annotation, *inner = typing.get_args(annotation)
        marks = [*inner, *marks]
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), None)
    length = next((mark.maximum for mark in marks if isinstance(mark, Length)), None)
    if annotation in _IDS:
        return _IDS[annotation]
    if annotation is bool:
        return "bool"
    if annotation is int:
        low, high = (bounds.minimum, bounds.maximum) if bounds else (-INTEGER_MAX, INTEGER_MAX)
        return f"int, {_number(low)} to {_number(high)}"
    if annotation is float:
        if bounds is None:
            return "float"
        return f"float, {_number(bounds.minimum)} to {_number(bounds.maximum)}"
    if annotation is str:
        return f"text, at most {_number(length or TEXT_BYTES_MAX)} bytes"
    if annotation is bytes:
        return f"bytes, at most {_number(length or BYTES_MAX)}"
    return _composed(annotation, length)


def _composed(annotation: Any, length: int | None) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return f"array, at most {_number(length or ITEMS_MAX)}, of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{'; '.join(map(_type, arguments))}]"
    if origin is Signed:
        return f"[`Signed`](#signed) {_link(arguments[0])}"
    if _is_beside(annotation):
        return "bytes, the payload of the frame"
    if origin in (typing.Union, types.UnionType):
        (inner,) = [item for item in arguments if item is not type(None)]
        return f"{_type(inner)}; or nil"
    return _link(annotation)


def _is_beside(annotation: Any) -> bool:
    return frozenset(typing.get_args(annotation)) == {bytes, bytearray, memoryview}


def _link(cls: type) -> str:
    anchor = cls.__name__.lower() + (f"-tag-{TAGS[cls]}" if cls in TAGS else "")
    return f"[`{cls.__name__}`](#{anchor})"


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return ""
    if value is None:
        return "nil"
    if value == ():
        return "[]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return f"`{value.name}`"
    if dataclasses.is_dataclass(value):
        return "all defaults"
    return str(value)


def _number(value: float) -> str:
    """`value` as people write it: powers of two where it is near a large one."""
    if isinstance(value, float):
        return f"{value:g}"
    for offset, suffix in ((0, ""), (1, " - 1")):
        power = abs(value) + offset
        if power > 100_000 and power & (power - 1) == 0:
            text = f"2^{power.bit_length() - 1}{suffix}"
            if value >= 0:
                return text
            return f"-({text})" if suffix else f"-{text}"
    return f"{value:,}"


# -- limits


def _limits() -> Iterator[str]:
    yield "### Frames\n"
    yield "| when | header, bytes | payload, bytes |"
    yield "| --- | --- | --- |"
    for when, limits in (("greeting, enrolment, answers", GREETING_LIMITS), ("peer", PEER_LIMITS)):
        yield f"| {when} | {limits.header_bytes_max:,} | {limits.payload_bytes_max:,} |"
    yield ""
    for cls, title in CONFIGS:
        _, meanings = _documentation(cls)
        yield f"### {title}\n"
        yield "| name | value | meaning |"
        yield "| --- | --- | --- |"
        for field in dataclasses.fields(cls):
            value = field.default
            if isinstance(value, int | float):
                text = f"{value:g}" if isinstance(value, float) else f"{value:,}"
                yield f"| `{field.name}` | {text} | {meanings[field.name]} |"
        yield ""


# -- docstrings


def _documentation(cls: type) -> tuple[str, dict[str, str]]:
    """The summary of `cls`, and what it says of each attribute."""
    text = inspect.getdoc(cls) or ""
    summary, _, rest = text.partition("\nAttributes:\n")
    summary = re.split(r"\n(?:Raises|Source):", summary)[0]
    meanings: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        found = re.match(r" {4}(\w+): (.*)", line)
        if found:
            name = found[1]
            meanings[name] = found[2]
        elif line.strip():
            meanings[name] += " " + line.strip()
    return _cell(summary), {key: _cell(value) for key, value in meanings.items()}


def _member_docstrings(cls: type[Enum]) -> dict[str, str]:
    """What stands in a string right after each member."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    meanings: dict[str, str] = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(before, ast.Assign)
            and isinstance(before.targets[0], ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            meanings[before.targets[0].id] = _cell(str(after.value.value))
    return meanings


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
