"""Padding is harmless."""

from p2pllm.builtin.batches import make_batches


def test_padding_is_neither_learned_nor_in_the_way() -> None:
    rows = [([1, 2, 3, 4], [False, False, True, True]), ([1, 5], [False, True])]
    (batch,) = make_batches(rows, rows_per_batch=4, padding=0)
    assert batch.inputs.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.targets.tolist() == [[5, -100, -100], [-100, 3, 4]]
