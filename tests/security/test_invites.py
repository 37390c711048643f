import json
import random
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.errors import ConfigurationError, InviteError
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.records import ADDRESSES_MAX, Address
from p2pllm.security import invites, storage
from p2pllm.security.invites import (
    INVITES_FILE,
    INVITES_MAX,
    USES_MAX,
    Invite,
    InviteBook,
    format_invite,
    parse_invite,
)
from tests.security.material import DAY, NOW, mode

ALICE = NodeId("a" * 32)
BOB = NodeId("b" * 32)
INVITE = Invite(
    SwarmId("5" * 64), b"sixteen bytes ok", (Address("192.168.1.20", 7421), Address("fe80::1", 80))
)
TEXT = format_invite(INVITE)

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{1,10})?", fullmatch=True),
)
addresses = st.builds(Address, hosts, st.integers(1, 65_535))
any_invite = st.builds(
    Invite,
    st.binary(min_size=32, max_size=32).map(lambda swarm: SwarmId(swarm.hex())),
    st.binary(min_size=16, max_size=16),
    st.lists(addresses, max_size=ADDRESSES_MAX).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(any_invite)
def test_an_invite_is_read_as_it_was_written(invite: Invite) -> None:
    assert parse_invite(format_invite(invite)) == invite


@settings(max_examples=50, deadline=None)
@given(any_invite, st.randoms(use_true_random=False))
def test_white_space_and_line_breaks_do_not_matter(invite: Invite, rng: random.Random) -> None:
    spaced = "".join(
        character + rng.choice(["", "", "", "\n", " ", "\r\n", "\t"])
        for character in format_invite(invite)
    )
    assert parse_invite("\n  " + spaced + "  \n") == invite


def test_an_invite_needs_no_quotes_in_a_shell() -> None:
    assert TEXT.startswith("p2p1.")
    assert all(
        character.isascii() and (character.isalnum() or character in "._-") for character in TEXT
    )


def test_an_invite_without_addresses_has_three_parts() -> None:
    text = format_invite(Invite(INVITE.swarm, INVITE.secret))
    assert text.count(".") == 2
    assert parse_invite(text) == parse_invite(text + ".")


def test_no_more_addresses_are_written_than_are_read() -> None:
    many = tuple(Address("10.0.0.1", port) for port in range(1, 20))
    parsed = parse_invite(format_invite(Invite(INVITE.swarm, INVITE.secret, many)))
    assert parsed.addresses == many[:ADDRESSES_MAX]


@pytest.mark.parametrize(
    "text",
    ["", "hello", "p2p1", "p2p1.", "p2p1..", TEXT + ".x", TEXT[1:], "P2P1" + TEXT[4:], "x" * 5_000],
)
def test_what_is_no_invite_is_refused_in_words(text: str) -> None:
    with pytest.raises(InviteError, match="not a whole invite") as caught:
        parse_invite(text)
    assert caught.value.code == "invite_malformed"


def test_there_is_one_text_for_an_invite() -> None:
    prefix, swarm, *rest = TEXT.split(".")
    # 32 bytes leave two spare bits in the last character.
    assert swarm[-1] == "U"
    with pytest.raises(InviteError, match="do not belong there"):
        parse_invite(".".join([prefix, swarm[:-1] + "V", *rest]))


def test_an_invite_of_another_version_is_told_apart() -> None:
    with pytest.raises(InviteError, match="another version") as caught:
        parse_invite("p2p2" + TEXT[4:])
    assert caught.value.code == "invite_version"


def hinted(hints: bytes) -> str:
    return f"{format_invite(Invite(INVITE.swarm, INVITE.secret))}.{invites._encode(hints)}"


@pytest.mark.parametrize(
    "hints",
    [
        b"host",
        b"host:",
        b":80",
        b"host:0",
        b"host:65536",
        b"host:-1",
        b"host:8 0",
        "host:\u0663".encode(),
        b"::1:80",
        b"[]:80",
        b"ho/st:80",
        b"\x1b[31mhost:80",
        b"h" * 254 + b":80",
        b"host:80,",
        b",".join([b"host:80"] * (ADDRESSES_MAX + 1)),
    ],
)
def test_addresses_that_are_none_are_refused(hints: bytes) -> None:
    with pytest.raises(InviteError, match="address"):
        parse_invite(hinted(hints))


def test_an_address_in_the_right_form_is_read() -> None:
    assert parse_invite(hinted(b"[::1]:80")).addresses == (Address("::1", 80),)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.text(max_size=100).map(lambda tail: "p2p1." + tail),
        st.text(max_size=100).map(lambda tail: TEXT + tail),
        st.integers(0, len(TEXT) - 1).map(lambda length: TEXT[:length]),
    )
)
def test_nothing_but_an_invite_error_comes_of_nonsense(text: str) -> None:
    try:
        invite = parse_invite(text)
    except InviteError:
        return
    assert parse_invite(format_invite(invite)) == invite


def test_the_secret_shows_in_no_repr_and_no_error() -> None:
    assert "sixteen" not in repr(INVITE)
    secret_text = TEXT.split(".")[2]
    for broken in (TEXT + ".x", TEXT.replace(".", ".!", 1), TEXT[:-3] + "é", "p2p9" + TEXT[4:]):
        with pytest.raises(InviteError) as caught:
            parse_invite(broken)
        assert secret_text not in str(caught.value)
        assert caught.value.__cause__ is None


# The book


def test_an_invite_lets_in_as_many_nodes_as_it_says(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(uses=2, now=NOW)
    book.redeem(secret, ALICE, NOW)
    book.redeem(secret, BOB, NOW)
    with pytest.raises(InviteError, match="used up") as caught:
        book.redeem(secret, NodeId("c" * 32), NOW)
    assert caught.value.code == "invite_used_up"


def test_the_same_node_comes_in_again_without_using_the_invite_up(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(uses=2, now=NOW)
    for _ in range(3):
        book.redeem(secret, ALICE, NOW)
    book.redeem(secret, BOB, NOW)
    InviteBook(tmp_path).redeem(secret, ALICE, NOW)


def test_an_unknown_secret_is_refused(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    book.create(now=NOW)
    with pytest.raises(InviteError, match="not known") as caught:
        book.redeem(bytes(16), ALICE, NOW)
    assert caught.value.code == "invite_unknown"


def test_an_invite_expires(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(uses=2, lifetime=timedelta(hours=1), now=NOW)
    book.redeem(secret, ALICE, NOW + timedelta(minutes=59, seconds=59))
    for node in (ALICE, BOB):
        with pytest.raises(InviteError, match="expired") as caught:
            book.redeem(secret, node, NOW + timedelta(hours=1))
        assert caught.value.code == "invite_expired"


def test_the_book_survives_a_restart(tmp_path: Path) -> None:
    secret = InviteBook(tmp_path).create(now=NOW)
    InviteBook(tmp_path).redeem(secret, ALICE, NOW)
    with pytest.raises(InviteError, match="used up"):
        InviteBook(tmp_path).redeem(secret, BOB, NOW)


def test_the_book_holds_no_secret_and_is_private(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(now=NOW)
    data = (tmp_path / INVITES_FILE).read_bytes()
    assert secret not in data
    assert secret.hex().encode() not in data
    assert invites._encode(secret).encode() not in data
    assert mode(tmp_path / INVITES_FILE) == 0o600
    assert secret.hex() not in repr(book)


def test_secrets_differ_and_come_from_the_source_given(tmp_path: Path) -> None:
    book = InviteBook(tmp_path, random.Random(1).randbytes)
    expected = random.Random(1)
    assert [book.create(now=NOW) for _ in range(3)] == [expected.randbytes(16) for _ in range(3)]


def test_one_invite_admits_no_more_than_its_uses_however_many_try_at_once(tmp_path: Path) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(uses=3, now=NOW)
    start = threading.Barrier(12)
    admitted: list[NodeId] = []

    def join(index: int) -> None:
        node = NodeId(f"{index:032x}")
        start.wait()
        try:
            book.redeem(secret, node, NOW)
        except InviteError:
            return
        admitted.append(node)

    threads = [threading.Thread(target=join, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 3
    content = storage.read_private_json(tmp_path / INVITES_FILE, "p2pllm invites", remedy="")
    assert content is not None
    assert sorted(content["invites"][0]["admitted"]) == sorted(admitted)


def test_an_invite_that_cannot_be_written_down_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = InviteBook(tmp_path)
    secret = book.create(now=NOW)

    def full(*_: object) -> None:
        raise ConfigurationError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_private_json", full)
        with pytest.raises(ConfigurationError):
            book.redeem(secret, ALICE, NOW)
    book.redeem(secret, BOB, NOW)


def test_a_full_book_makes_room_by_what_expired_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invites, "INVITES_MAX", 3)
    book = InviteBook(tmp_path)
    lives = [book.create(lifetime=days * DAY, now=NOW) for days in (3, 1, 2)]
    with pytest.raises(InviteError, match="have not expired"):
        book.create(now=NOW)
    later = NOW + DAY
    book.create(now=later)
    with pytest.raises(InviteError, match="not known"):
        book.redeem(lives[1], ALICE, later)
    book.redeem(lives[0], ALICE, later)
    book.redeem(lives[2], ALICE, later)


@pytest.mark.parametrize(
    ("uses", "lifetime"),
    [(0, DAY), (-1, DAY), (USES_MAX + 1, DAY), (1, timedelta()), (1, -DAY), (1, 400 * DAY)],
)
def test_invites_without_sense_are_not_made(tmp_path: Path, uses: int, lifetime: timedelta) -> None:
    with pytest.raises(InviteError):
        InviteBook(tmp_path).create(uses=uses, lifetime=lifetime, now=NOW)


def test_the_fullest_book_can_be_read_again(tmp_path: Path) -> None:
    entry = {
        "secret_sha256": "0" * 64,
        "uses": USES_MAX,
        "expires": NOW.isoformat(),
        "admitted": [ALICE] * USES_MAX,
    }
    content = {"invites": [entry] * INVITES_MAX}
    storage.write_private_json(tmp_path / INVITES_FILE, "p2pllm invites", content)
    assert (tmp_path / INVITES_FILE).stat().st_size < storage.FILE_BYTES_MAX
    assert repr(InviteBook(tmp_path)) == f"InviteBook({INVITES_MAX} invites)"


@pytest.mark.parametrize(
    "change",
    [
        {"secret_sha256": "zz"},
        {"secret_sha256": 5},
        {"uses": "one"},
        {"expires": "tomorrow"},
        {"expires": "2030-01-01T00:00:00"},
        {"admitted": ["nobody"]},
        {"admitted": None},
    ],
)
def test_a_damaged_book_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    InviteBook(tmp_path).create(now=NOW)
    path = tmp_path / INVITES_FILE
    document = json.loads(path.read_text())
    document["content"]["invites"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match="delete it and make new invites"):
        InviteBook(tmp_path)
