"""What a node remembers survives a restart, and a torn file does not stop it."""

from __future__ import annotations

from pathlib import Path

from p2pllm.app.state import NodeState, load_state, save_state
from p2pllm.domain.records import Address


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    state = NodeState(incarnation=7, peers=[("10.0.0.1", 7770)], facts=["AA=="])
    save_state(tmp_path, state)
    loaded, warning = load_state(tmp_path)
    assert loaded == state
    assert warning is None
    assert loaded.addresses == (Address("10.0.0.1", 7770),)


def test_a_new_folder_starts_from_nothing(tmp_path: Path) -> None:
    assert load_state(tmp_path) == (NodeState(), None)


def test_a_torn_file_is_put_aside_and_said_so(tmp_path: Path) -> None:
    save_state(tmp_path, NodeState(incarnation=7))
    path = tmp_path / "state.json"
    path.write_bytes(path.read_bytes()[:-5])
    state, warning = load_state(tmp_path)
    assert state == NodeState()
    assert warning is not None
    assert (tmp_path / "state.unreadable.json").exists()


def test_an_absurd_incarnation_is_not_believed(tmp_path: Path) -> None:
    save_state(tmp_path, NodeState.model_construct(incarnation=2**63, peers=[], facts=[]))
    state, warning = load_state(tmp_path)
    assert state.incarnation == 0
    assert warning is not None
