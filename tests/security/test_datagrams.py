import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.enrolment import DatagramKey
from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId
from p2pllm.security import datagrams
from p2pllm.security.datagrams import (
    EPOCH_MAX,
    OVERHEAD_BYTES,
    WINDOW,
    DatagramSealer,
    next_boot_epoch,
)
from tests.security.material import KEY, OLDER_KEY

ALICE = NodeId("a" * 32)
BOB = NodeId("b" * 32)
CAROL = NodeId("c" * 32)
EPOCH = 1_900_000_000_000


def sealer(
    node: NodeId = ALICE, keys: tuple[DatagramKey, ...] = (KEY,), epoch: int = EPOCH
) -> DatagramSealer:
    return DatagramSealer(node, keys, epoch)


def test_what_is_sealed_is_opened_with_its_senders_name() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    assert bob.open(alice.seal(b"hello")) == (ALICE, b"hello")
    assert alice.open(bob.seal(b"")) == (BOB, b"")


def test_the_overhead_is_fifty_bytes() -> None:
    assert OVERHEAD_BYTES == 50
    for length in (0, 1, 1_150):
        assert len(sealer().seal(bytes(length))) == length + OVERHEAD_BYTES


def test_a_payload_does_not_show() -> None:
    assert b"attack at dawn" not in sealer().seal(b"attack at dawn")


def test_no_two_counters_epochs_senders_or_keys_share_a_key_stream() -> None:
    alice = sealer()
    others = (
        sealer(epoch=EPOCH + 1),
        sealer(BOB),
        sealer(keys=(DatagramKey(KEY.number, bytes(32)),)),
    )
    sealed = [alice.seal(bytes(32)) for _ in range(100)]
    sealed += [other.seal(bytes(32)) for other in others]
    assert len({data[34:-16] for data in sealed}) == 103


def test_a_datagram_is_opened_once() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    data = alice.seal(b"hello")
    bob.open(data)
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="came before"):
            bob.open(data)


def test_a_replay_to_another_member_is_its_first_and_passes_once() -> None:
    data = sealer(ALICE).seal(b"hello")
    sealer(BOB).open(data)
    carol = sealer(CAROL)
    carol.open(data)
    with pytest.raises(AuthenticationError):
        carol.open(data)


def test_datagrams_in_any_order_within_the_window_are_each_opened_once() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    sealed = [alice.seal(index.to_bytes(2)) for index in range(WINDOW)]
    order = list(range(WINDOW))
    random.Random(7).shuffle(order)
    assert [bob.open(sealed[index])[1] for index in order] == [i.to_bytes(2) for i in order]
    for data in sealed:
        with pytest.raises(AuthenticationError, match="came before"):
            bob.open(data)


def test_the_window_ends_exactly_where_it_says() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    sealed = [alice.seal(b"") for _ in range(WINDOW + 1)]
    bob.open(sealed[WINDOW])  # the newest; the window now begins at index 1
    bob.open(sealed[1])
    with pytest.raises(AuthenticationError, match="came before"):
        bob.open(sealed[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3 * WINDOW), max_size=60))
def test_the_window_agrees_with_a_plain_set_of_counters(counters: list[int]) -> None:
    window, seen, highest = datagrams._Sender(EPOCH), {0}, 0
    for counter in counters:
        expected = counter not in seen and counter > highest - WINDOW
        assert window.is_new(counter) is expected
        if expected:
            window.mark(counter)
            seen.add(counter)
            highest = max(highest, counter)


def test_a_jump_of_the_counter_costs_nothing() -> None:
    window = datagrams._Sender(EPOCH)
    window.mark(2**64 - 1)
    assert not window.is_new(1)
    assert window.is_new(2**64 - 2)


def test_after_a_restart_of_the_sender_its_older_datagrams_are_refused() -> None:
    before, bob = sealer(ALICE), sealer(BOB)
    bob.open(before.seal(b"1"))
    late = before.seal(b"2")
    after = sealer(ALICE, epoch=EPOCH + 1)
    assert bob.open(after.seal(b"3")) == (ALICE, b"3")
    with pytest.raises(AuthenticationError, match="before its sender's last start"):
        bob.open(late)
    assert bob.open(after.seal(b"4")) == (ALICE, b"4")


def test_a_forged_epoch_does_not_shut_the_sender_out() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    bob.open(alice.seal(b"1"))
    forged = bytearray(sealer(ALICE, epoch=EPOCH + 9).seal(b"2"))
    forged[-1] ^= 1
    with pytest.raises(AuthenticationError):
        bob.open(bytes(forged))
    assert bob.open(alice.seal(b"3")) == (ALICE, b"3")


def test_a_forged_counter_does_not_shut_the_sender_out() -> None:
    alice, bob = sealer(ALICE), sealer(BOB)
    forged = bytearray(alice.seal(b"1"))
    forged[26:34] = b"\xff" * 8
    with pytest.raises(AuthenticationError):
        bob.open(bytes(forged))
    assert bob.open(alice.seal(b"2")) == (ALICE, b"2")


def test_an_epoch_rises_whatever_the_clock_does() -> None:
    assert next_boot_epoch(0, EPOCH) == EPOCH
    assert next_boot_epoch(EPOCH, EPOCH - 3_600_000) == EPOCH + 1
    assert next_boot_epoch(EPOCH, EPOCH) == EPOCH + 1
    assert next_boot_epoch(EPOCH, EPOCH + 5) == EPOCH + 5


def test_a_datagram_of_another_ring_is_refused() -> None:
    other = DatagramKey(KEY.number, bytes(32))
    with pytest.raises(AuthenticationError, match="no member sealed"):
        sealer(BOB).open(sealer(ALICE, (other,)).seal(b"x"))


def test_an_unknown_key_number_is_refused() -> None:
    other = DatagramKey(77, KEY.secret)
    with pytest.raises(AuthenticationError, match="not in the ring"):
        sealer(BOB).open(sealer(ALICE, (other,)).seal(b"x"))


def test_of_two_keys_the_newest_seals_and_both_open() -> None:
    both, old, new = (
        sealer(BOB, (KEY, OLDER_KEY)),
        sealer(ALICE, (OLDER_KEY,)),
        sealer(CAROL, (KEY,)),
    )
    assert both.open(old.seal(b"old")) == (ALICE, b"old")
    assert both.open(new.seal(b"new")) == (CAROL, b"new")
    assert new.open(both.seal(b"x")) == (BOB, b"x")
    with pytest.raises(AuthenticationError):
        old.open(both.seal(b"x"))


def test_a_nodes_own_datagram_thrown_back_is_refused() -> None:
    alice = sealer(ALICE)
    with pytest.raises(AuthenticationError, match="came back"):
        alice.open(alice.seal(b"x"))


def test_only_as_many_senders_as_said_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagrams, "SENDERS_MAX", 4)
    bob = sealer(BOB)
    senders = [sealer(NodeId(f"{index:032x}")) for index in range(5)]
    first = [sender.seal(b"") for sender in senders]
    for data in first[:4]:
        bob.open(data)
    bob.open(senders[0].seal(b"again"))  # so the second is heard least recently
    bob.open(first[4])
    assert len(bob._senders) == 4
    for index in (0, 2, 3, 4):
        with pytest.raises(AuthenticationError, match="came before"):
            bob.open(first[index])
    bob.open(first[1])  # forgotten, so new again


def test_strangers_leave_no_trace_in_memory() -> None:
    bob, stranger = sealer(BOB), DatagramKey(KEY.number, bytes(32))
    for index in range(20):
        with pytest.raises(AuthenticationError):
            bob.open(sealer(NodeId(f"{index:032x}"), (stranger,)).seal(b""))
    assert not bob._senders


SEALED = sealer(ALICE).seal(b"some payload")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(SEALED) * 8 - 1))
def test_a_datagram_with_one_bit_changed_is_refused(bit: int) -> None:
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(AuthenticationError):
        sealer(BOB).open(bytes(changed))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: SEALED[:34] + tail),
        st.binary(max_size=80).map(lambda tail: bytes([1, KEY.number]) + tail),
        st.integers(0, len(SEALED) - 1).map(lambda length: SEALED[:length]),
        st.binary(min_size=1, max_size=20).map(lambda tail: SEALED + tail),
    )
)
def test_nothing_but_an_authentication_error_comes_of_nonsense(data: bytes) -> None:
    with pytest.raises(AuthenticationError):
        sealer(BOB).open(data)


def test_an_epoch_beyond_all_is_refused() -> None:
    data = bytearray(SEALED)
    data[18:26] = (EPOCH_MAX + 1).to_bytes(8)
    with pytest.raises(AuthenticationError, match="impossible boot epoch"):
        sealer(BOB).open(bytes(data))


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (KEY, KEY),
        (KEY, OLDER_KEY, DatagramKey(2, bytes(32))),
        (DatagramKey(3, b"short secret"),),
        (DatagramKey(256, bytes(32)),),
    ],
)
def test_a_ring_has_one_or_two_whole_keys(keys: tuple[DatagramKey, ...]) -> None:
    with pytest.raises(ValueError, match="datagram ring") as caught:
        sealer(keys=keys)
    assert "short secret" not in str(caught.value)


@pytest.mark.parametrize("epoch", [-1, 0, EPOCH_MAX + 1])
def test_an_epoch_is_a_positive_number(epoch: int) -> None:
    with pytest.raises(ValueError, match="no boot epoch"):
        sealer(epoch=epoch)


def test_no_key_shows_in_the_repr() -> None:
    assert repr(sealer()) == f"DatagramSealer(self_id={ALICE!r}, boot_epoch={EPOCH})"
