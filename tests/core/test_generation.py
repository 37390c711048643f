from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.scheduling import QueueLimits
from p2pllm.core.session import GenerationLimits
from p2pllm.core.stage import StageLimits
from p2pllm.domain.errors import NoPathError, OverloadedError
from p2pllm.domain.layers import LayerRange
from tests.core.generation_world import World, make_request, make_spec, node_id

LAYERS = 6
QUIET_S = 400.0


def split(*bounds: int) -> list[LayerRange]:
    return [LayerRange(start, stop) for start, stop in pairwise(bounds)]


def line(*bounds: int, replicas: int = 1) -> World:
    """Node i + 1 holds the i-th part, `replicas` times over; the gateway holds nothing."""
    parts = split(*bounds) * replicas
    return World({node_id(i + 1): (part,) for i, part in enumerate(parts)})


@pytest.mark.parametrize("bounds", [(0, 6), (0, 3, 6), (0, 1, 2, 3, 4, 5, 6)])
def test_any_split_generates_what_one_machine_does(bounds: tuple[int, ...]) -> None:
    world = line(*bounds)
    clients = [
        world.submit(make_request(i, prompt=tuple(range(1, 4 + 3 * i)), tokens_max=7))
        for i in range(4)
    ]
    world.run(30.0)
    assert all(client.finished for client in clients)
    assert all(len(client.paths) == 1 for client in clients)
    world.assert_right()
    world.assert_quiet()


def test_a_wrapping_holder_serves_both_ends_of_a_path() -> None:
    holder, middle = node_id(0), node_id(1)
    world = World({holder: (LayerRange(0, 2), LayerRange(4, 6)), middle: (LayerRange(2, 4),)})
    client = world.submit(make_request(prompt=tuple(range(20)), tokens_max=6))
    world.run(30.0)
    assert client.finished
    world.assert_right()
    world.assert_quiet()


def test_a_sentence_goes_on_when_a_stage_dies() -> None:
    world = line(0, 3, 6, replicas=2)
    client = world.submit(make_request(tokens_max=30))
    while len(client.tokens) < 5:
        world.run(world.now + 0.01)
    world.kill(client.paths[0][0].node)
    world.run(60.0)
    assert client.finished
    assert len(client.paths) >= 2
    world.assert_right()
    world.run(QUIET_S)
    world.assert_quiet()


def test_a_sentence_goes_on_when_a_stage_hangs() -> None:
    world = line(0, 3, 6, replicas=2)
    client = world.submit(make_request(tokens_max=30))
    while len(client.tokens) < 5:
        world.run(world.now + 0.01)
    began_s = world.now
    world.hang(client.paths[0][1].node, 20.0)
    world.run(began_s + 10.0)
    assert client.finished
    assert client.at_s < began_s + 6.0
    world.assert_right()
    world.run(QUIET_S)
    world.assert_quiet()


def test_a_sentence_waits_for_a_holder_and_goes_on_when_one_comes() -> None:
    world = line(0, 3, 6)
    client = world.submit(make_request(tokens_max=30))
    while len(client.tokens) < 5:
        world.run(world.now + 0.01)
    world.kill(node_id(2))
    world.run(world.now + 15.0)
    assert not client.over
    world.restart(node_id(2))
    world.run(world.now + 20.0)
    assert client.finished
    world.assert_right()
    world.run(QUIET_S)
    world.assert_quiet()


def test_without_a_holder_it_ends_with_the_missing_layers_named() -> None:
    world = line(0, 3, 6)
    client = world.submit(make_request(tokens_max=30))
    while len(client.tokens) < 5:
        world.run(world.now + 0.01)
    world.kill(node_id(2))
    world.run(world.now + 40.0)
    assert isinstance(client.error, NoPathError)
    assert "layer 3" in str(client.error)
    world.run(QUIET_S)
    world.assert_quiet()


def test_a_dead_gateway_leaves_nothing_behind() -> None:
    world = line(0, 3, 6)
    client = world.submit(make_request(tokens_max=100))
    while len(client.tokens) < 5:
        world.run(world.now + 0.01)
    world.kill(node_id(0))
    world.run(QUIET_S)
    world.assert_quiet()


def test_more_than_fits_is_refused_and_the_rest_unharmed() -> None:
    spec = make_spec()
    tokens = 3 + 20
    world = World({node_id(1): (LayerRange(0, 6),)}, spec=spec, kv_bytes=2 * tokens * 6 * 4 * 2 + 1)
    clients = [world.submit(make_request(i, tokens_max=20)) for i in range(4)]
    world.run(20.0)
    assert sum(client.finished for client in clients) >= 2
    refused = [client for client in clients if not client.finished]
    assert refused
    assert all(isinstance(client.error, OverloadedError) for client in refused)
    world.assert_right()
    world.run(QUIET_S)
    world.assert_quiet()


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_whatever_happens_a_client_sees_the_reference_or_an_error(data: st.DataObject) -> None:
    """Cuts, replicas, delays, duplicates, deaths, hangs, broken streams, cancellations."""
    nodes = data.draw(st.integers(1, 6), label="nodes")
    holdings: dict = {}
    for index in range(nodes):
        start = data.draw(st.integers(0, LAYERS - 1))
        length = data.draw(st.integers(1, LAYERS))
        layers = sorted({(start + i) % LAYERS for i in range(length)})
        runs: list[LayerRange] = []
        for layer in layers:
            if runs and runs[-1].stop == layer:
                runs[-1] = LayerRange(runs[-1].start, layer + 1)
            else:
                runs.append(LayerRange(layer, layer + 1))
        holdings[node_id(index)] = tuple(runs)
    if has_whole := data.draw(st.booleans(), label="whole"):
        holdings[node_id(nodes)] = (LayerRange(0, LAYERS),)
    is_tight = data.draw(st.booleans(), label="tight")
    world = World(
        holdings,
        seed=data.draw(st.integers(0, 2**32), label="seed"),
        duplicates=data.draw(st.sampled_from([0.0, 0.3]), label="duplicates"),
        stage_limits=StageLimits(
            queue=QueueLimits(steps_max=3 if is_tight else 100),
            sessions_max=2 if is_tight else 100,
        ),
        generation_limits=GenerationLimits(chunk_tokens=data.draw(st.integers(1, 6))),
    )
    everybody = sorted(world.stages)
    for index in range(data.draw(st.integers(1, 4), label="sessions")):
        request = make_request(
            index,
            prompt=tuple(data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=12))),
            tokens_max=data.draw(st.integers(1, 14)),
            stop_tokens=tuple(data.draw(st.lists(st.integers(0, 96), max_size=3))),
        )

        cancelled_after_s = data.draw(st.none() | st.floats(0, 0.5))

        def begin(request=request, after=cancelled_after_s) -> None:
            if world.gateway_id in world.dead or world.gateway_id in world.hung:
                return
            client = world.submit(request)
            if after is not None:
                world.at(after, lambda: world.cancel(client))

        world.at(data.draw(st.floats(0, 0.3)), begin)
    # While the gateway and one holder of everything live, and there is room, nothing may fail.
    is_safe = has_whole and not is_tight
    for _ in range(data.draw(st.integers(0, 5), label="faults")):
        node = data.draw(st.sampled_from(everybody))
        other = data.draw(st.sampled_from(everybody))
        kind = data.draw(st.sampled_from(["kill", "kill", "restart", "hang", "cut"]))
        after = data.draw(st.floats(0, 1.5))
        is_safe &= kind == "cut" or node not in (world.gateway_id, node_id(nodes))
        action = {
            "kill": lambda node=node: world.kill(node),
            "restart": lambda node=node: (
                None if node == world.gateway_id else (world.kill(node), world.restart(node))
            ),
            "hang": lambda node=node: world.hang(node, 8.0),
            "cut": lambda node=node, other=other: world.cut(node, other),
        }[kind]
        world.at(after, action)
    world.run(QUIET_S)
    world.assert_right()
    world.assert_quiet()
    if is_safe:
        assert all(client.finished or client.cancelled for client in world.clients.values())


def test_duplicates_alone_disturb_nothing() -> None:
    parts = split(0, 2, 4, 6)
    world = World({node_id(i + 1): (part,) for i, part in enumerate(parts)}, duplicates=1.0)
    client = world.submit(make_request(prompt=tuple(range(20)), tokens_max=20))
    world.run(60.0)
    assert client.finished
    assert len(client.paths) == 1
    world.assert_right()
    world.assert_quiet()


def test_the_same_seed_gives_the_same_trace() -> None:
    def trace() -> list[str]:
        world = line(0, 2, 4, 6, replicas=2)
        client = world.submit(make_request(tokens_max=20))
        world.at(0.3, lambda: world.kill(node_id(2)))
        world.run(60.0)
        assert client.finished
        return [repr(item) for item in world.log]

    assert trace() == trace()
