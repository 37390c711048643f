from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.models import BenchModel
from bench.swarm import _held_bytes, _size_bytes


def model(folder: Path, *, tied: bool) -> BenchModel:
    """Three layers; embedding and head are 10 x 2 float32 each."""
    (folder / "config.json").write_text(json.dumps({"hidden_size": 2, "tie_word_embeddings": tied}))
    return BenchModel("model", "model", folder, 3, (180, 100, 180), 10)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_of_the_layers_held(tmp_path: Path, tied: bool) -> None:
    assert _held_bytes(model(tmp_path, tied=tied), [[0, 2]]) == 280


def test_a_tied_head_is_held_once_by_who_holds_both_ends(tmp_path: Path) -> None:
    assert _held_bytes(model(tmp_path, tied=True), [[0, 3]]) == 380
    assert _held_bytes(model(tmp_path, tied=True), [[0, 1], [2, 3]]) == 280
    assert _size_bytes(model(tmp_path, tied=True)) == 380


def test_an_untied_head_is_held_beside_the_embedding(tmp_path: Path) -> None:
    assert _held_bytes(model(tmp_path, tied=False), [[0, 3]]) == 460
    assert _size_bytes(model(tmp_path, tied=False)) == 460
