"""docs/protocol.md says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from p2pllm.domain.gossip import DATAGRAM_BYTES_MAX
from p2pllm.domain.messages import FailureReason
from p2pllm.security.datagrams import OVERHEAD_BYTES
from p2pllm.wire.datagrams import BODY_BYTES_MAX
from p2pllm.wire.tags import TAGS
from tests.docs.protocol_tables import PAGE, RANGES, replaced, structures

ROOT = Path(__file__).parents[2]
TEXT = PAGE.read_text(encoding="utf-8")
PROSE = re.sub(r"<!-- generated: (\w+) -->.*?<!-- end: \1 -->", "", TEXT, flags=re.DOTALL)


def test_the_tables_are_those_the_code_makes_now() -> None:
    remedy = "run `python -m tests.docs.protocol_tables` and look at the difference"
    assert replaced(TEXT) == TEXT, remedy


@pytest.mark.parametrize("message", TAGS, ids=lambda message: message.__name__)
def test_every_message_has_a_heading_with_its_tag_and_all_its_fields(message: type) -> None:
    heading = f"#### `{message.__name__}`, tag {TAGS[message]}\n"
    assert TEXT.count(heading) == 1
    section = TEXT.partition(heading)[2].partition("\n#")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    names = [field.name for field in dataclasses.fields(message)]
    assert rows == [(str(number), name) for number, name in enumerate(names)]


def test_every_tag_lies_in_one_of_the_ranges() -> None:
    outside = [
        tag for tag in TAGS.values() if not any(low <= tag <= high for low, high, _ in RANGES)
    ]
    assert outside == []


@pytest.mark.parametrize("item", structures(), ids=lambda item: item.__name__)
def test_every_part_of_a_message_has_a_heading(item: type) -> None:
    assert TEXT.count(f"#### `{item.__name__}`\n") == 1


def test_every_field_of_the_tables_that_are_not_plain_is_explained() -> None:
    # A meaning may be missing only where name and type say all; here they do.
    plain = {
        "reason", "sequence", "session", "attempt", "blamed", "detail", "version", "code", "model",
        "stamp", "spec", "news", "records", "loads", "facts", "members", "node", "layers", "start",
        "stop", "token", "logprob", "number", "secret", "host", "port", "state", "wall_ms",
        "counter", "writer", "target",
    }  # fmt: skip
    bare = set(re.findall(r"^\| \w+ \| `(\w+)` \|[^|]*\|[^|]*\|  ?\|$", TEXT, re.MULTILINE))
    assert bare <= plain


@pytest.mark.parametrize("reason", FailureReason, ids=lambda reason: reason.name)
def test_the_flow_says_what_follows_from_every_failure(reason: FailureReason) -> None:
    assert len(re.findall(rf"^\| {reason.name} \|", PROSE, re.MULTILINE)) == 1
    assert f"| {reason.value} | `{reason.name}` |" in TEXT


def test_every_code_of_a_refused_join_is_documented() -> None:
    places = ("security/enrolment.py", "security/invites.py", "net/incoming.py")
    sources = "\n".join((ROOT / "p2pllm" / place).read_text("utf-8") for place in places)
    found = set(re.findall(r'EnrolRefusal\(\s*"(\w+)"|code="(\w+)"', sources))
    codes = {one or other for one, other in found}
    assert len(codes) > 10
    assert sorted(code for code in codes if f"`{code}`" not in PROSE) == []


def test_the_sizes_of_a_datagram_are_right() -> None:
    assert f"at most {DATAGRAM_BYTES_MAX:,} bytes" in PROSE
    assert f"which takes {OVERHEAD_BYTES};" in PROSE
    assert f"a message has at most {BODY_BYTES_MAX:,}" in PROSE
