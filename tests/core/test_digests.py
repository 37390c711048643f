from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.digests import Digests, bucket_of, from_bits, to_bits

entries = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=20)


@settings(max_examples=50)
@given(entries, entries)
def test_digests_differ_just_where_the_entries_do(one: dict[str, str], two: dict[str, str]) -> None:
    left, right = Digests(), Digests()
    for name, version in one.items():
        left.set(("node", name), "earlier")
        left.set(("node", name), version)
        left.set(("node", name), version)
    for name, version in two.items():
        right.set(("node", name), version)
    left.check()
    expected = {bucket_of(("node", name)) for name in one | two if one.get(name) != two.get(name)}
    assert set(left.differing(right.hashes())) == expected
    for name in one:
        left.set(("node", name), None)
        left.set(("node", name), None)
    left.check()
    assert left.hashes() == Digests().hashes()


def test_a_malformed_digest_differs_everywhere() -> None:
    digests = Digests()
    digests.set(("node", "a"), "1")
    assert len(digests.differing(b"")) == 256
    assert digests.keys(bucket_of(("node", "a"))) == [("node", "a")]


@given(st.sets(st.integers(0, 255)))
def test_bits_name_their_buckets(buckets: set[int]) -> None:
    assert from_bits(to_bits(sorted(buckets))) == sorted(buckets)
    assert len(to_bits(sorted(buckets))) == 32
