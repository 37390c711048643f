from __future__ import annotations

from p2pllm.core.detour import Detour
from p2pllm.domain.errors import NoPathError, OverloadedError, SwarmError
from p2pllm.domain.generation import Hop, Path
from p2pllm.domain.ids import NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import FailureReason
from tests.core.generation_world import node_id

A, B, C, D = map(node_id, range(1, 5))
LOST = FailureReason.HOP_LOST


def detour(*paths: tuple[NodeId, ...]) -> Detour:
    """The first of `paths` without an excluded node is taken."""

    def ask(excluded: frozenset[NodeId]) -> Path:
        for path in paths:
            if not excluded.intersection(path):
                return tuple(Hop(node, LayerRange(i, i + 1)) for i, node in enumerate(path))
        raise NoPathError("layer 0 has no holder")

    return Detour(ask, exclusion_s=10.0)


def nodes(path: Path | None) -> tuple[NodeId, ...] | None:
    return None if path is None else tuple(hop.node for hop in path)


def test_excluded_nodes_are_left_out_until_they_have_served_their_time() -> None:
    way = detour((A, B), (A, C))
    way.exclude(B, LOST, 0.0)
    assert nodes(way.choose(9.9)) == (A, C)
    assert nodes(way.choose(10.0)) == (A, B)


def test_no_path_is_no_path() -> None:
    way = detour((A,))
    way.exclude(A, LOST, 0.0)
    assert way.choose(0.0) is None
    assert way.choose(0.0, suspects=(A,)) is None


def test_the_next_path_shares_no_node_with_the_suspects_where_there_is_one() -> None:
    assert nodes(detour((A, B), (C, B), (C, D)).choose(0.0, suspects=(A, B))) == (C, D)


def test_else_it_shares_as_few_as_can_be() -> None:
    assert nodes(detour((A, B), (A, C)).choose(0.0, suspects=(A, B))) == (A, C)


def test_else_the_suspects_are_tried_again() -> None:
    assert nodes(detour((A, B)).choose(0.0, suspects=(A, B))) == (A, B)


def test_leaving_out_the_reporter_helps_where_leaving_out_the_lost_does_not() -> None:
    way = detour((A, B), (C, B))
    way.exclude(B, LOST, 0.0)
    assert nodes(way.choose(0.0, instead=(B, A))) == (C, B)
    assert way.choose(0.0, instead=(B, D)) is not None
    assert way.choose(0.0) is None


def test_missing_layers_are_named_and_worth_waiting_for() -> None:
    error, worth_waiting = detour().why_none("x", retry_after_s=2.0)
    assert isinstance(error, NoPathError)
    assert worth_waiting


def test_overload_is_told_with_a_time_to_retry_and_not_waited_for() -> None:
    way = detour((A,))
    way.exclude(A, FailureReason.NO_KV_ROOM, 0.0)
    error, worth_waiting = way.why_none("no room", retry_after_s=2.0)
    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == 2.0
    assert not worth_waiting


def test_overload_that_routing_sees_is_not_waited_for_either() -> None:
    def ask(excluded: frozenset[NodeId]) -> Path:
        raise OverloadedError("full")

    error, worth_waiting = Detour(ask, exclusion_s=1.0).why_none("x", retry_after_s=2.0)
    assert isinstance(error, OverloadedError)
    assert not worth_waiting


def test_a_failing_engine_is_not_waited_for() -> None:
    way = detour((A,))
    way.exclude(A, FailureReason.ENGINE, 0.0)
    error, worth_waiting = way.why_none("engine: out of memory", retry_after_s=2.0)
    assert isinstance(error, SwarmError)
    assert "out of memory" in str(error)
    assert not worth_waiting


def test_a_lost_node_is_waited_for_even_where_another_is_overloaded() -> None:
    way = detour((A, B))
    way.exclude(A, FailureReason.QUEUE_FULL, 0.0)
    way.exclude(B, LOST, 0.0)
    error, worth_waiting = way.why_none("x", retry_after_s=2.0)
    assert not isinstance(error, OverloadedError)
    assert worth_waiting
