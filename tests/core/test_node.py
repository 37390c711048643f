"""Whole nodes in a virtual world: they find each other, share a model out, and generate."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from p2pllm.core.events import CertificatesAged
from p2pllm.domain.generation import FinishReason
from p2pllm.domain.records import MemberState
from sim.network import Link
from sim.nodes import MachineSpec, NodeWorld, model_spec, reference_tokens

PROMPT = (1, 2, 3)
SPEC = model_spec()


def started(count: int, *, layers_max: int | None, seed: int = 1, loss: float = 0.0) -> NodeWorld:
    """Nodes that serve `SPEC`, settled."""
    world = NodeWorld([MachineSpec(layers_max=layers_max)] * count, seed, link=Link(loss=loss))
    for number in range(count):
        world.start(number)
    world.serve(0, SPEC)
    last = count - 1
    world.world.run_until(lambda: world.covered(SPEC, last), limit_s=60, step_s=0.1)
    return world


def finish(world: NodeWorld, limit_s: float = 120) -> None:
    """Let every client get its answer."""
    world.world.run_until(
        lambda: all(answer.ended for answer in world.answers.values()),
        limit_s=limit_s,
        step_s=0.05,
    )


def test_three_nodes_share_a_model_out_and_generate_what_one_would() -> None:
    world = started(3, layers_max=5)
    _, answer = world.ask(2, SPEC.id, PROMPT, 20)
    finish(world)
    assert answer.error is None
    assert answer.tokens == reference_tokens(PROMPT, 20)
    assert answer.finish is FinishReason.LENGTH
    assert len({hop.node for hop in answer.paths[0]}) == 3


def test_a_node_that_holds_all_needs_nobody() -> None:
    world = started(1, layers_max=None)
    _, answer = world.ask(0, SPEC.id, PROMPT, 5)
    finish(world)
    assert answer.tokens == reference_tokens(PROMPT, 5)


def test_no_session_leaves_anything_behind() -> None:
    world = started(3, layers_max=5)
    for gateway in range(3):
        world.ask(gateway, SPEC.id, PROMPT, 10)
    session, _ = world.ask(0, SPEC.id, PROMPT, 2_000)
    world.world.run(world.now + 0.2)
    world.cancel(0, session)
    world.answers[session].finish = FinishReason.STOP
    finish(world)
    world.world.run(world.now + 5)
    assert world.caches == set()


@pytest.mark.parametrize("seed", range(4))
def test_a_sentence_goes_on_when_any_one_node_of_it_dies(seed: int) -> None:
    world = started(4, layers_max=8, seed=seed)
    world.world.run(world.now + 10)
    _, answer = world.ask(0, SPEC.id, PROMPT, 300)
    world.world.run_until(lambda: len(answer.tokens) > 20, limit_s=30, step_s=0.01)
    gateway = world.hosts[0].node
    victim = next(hop.node for hop in answer.paths[0] if hop.node != gateway)
    world.crash(next(host.number for host in world.hosts if host.node == victim))
    finish(world)
    assert answer.error is None
    assert answer.tokens == reference_tokens(PROMPT, 300)
    assert len(answer.paths) >= 2


def test_layers_of_a_dead_node_are_placed_anew() -> None:
    world = started(4, layers_max=5)
    world.crash(1)
    world.world.run_until(
        lambda: world.node(0).swarm.view().members and 1 not in world.holders(SPEC.id, 0),
        limit_s=60,
        step_s=0.5,
    )
    world.world.run_until(lambda: world.covered(SPEC, 0), limit_s=60, step_s=0.5)
    _, answer = world.ask(0, SPEC.id, PROMPT, 10)
    finish(world)
    assert answer.tokens == reference_tokens(PROMPT, 10)


def test_a_node_that_leaves_finishes_what_it_carries_and_says_farewell() -> None:
    world = started(4, layers_max=8)
    world.world.run(world.now + 10)
    _, answer = world.ask(0, SPEC.id, PROMPT, 100)
    world.world.run_until(lambda: len(answer.tokens) > 5, limit_s=30, step_s=0.01)
    gateway = world.hosts[0].node
    leaver = next(
        host.number
        for host in world.hosts
        if host.node in {hop.node for hop in answer.paths[0]} and host.node != gateway
    )
    world.leave(leaver)
    finish(world)
    assert answer.tokens == reference_tokens(PROMPT, 100)
    assert len(answer.paths) == 1
    world.world.run_until(lambda: leaver in world.left, limit_s=40, step_s=0.5)
    states = {member.record.node: member.state for member in world.node(0).swarm.view().members}
    assert states[world.hosts[leaver].node] is MemberState.LEFT


def test_what_it_says_of_itself_and_of_models_is_signed_anew() -> None:
    world = started(3, layers_max=5)
    before = world.node(1).swarm.own
    world.tell(1, CertificatesAged(own=True, facts=(SPEC.id,)))

    def arrived() -> bool:
        swarm = world.node(0).swarm
        record = swarm.record_of(before.node)
        return (
            record is not None
            and record.stamp > before.stamp
            and swarm.facts[0].value.stamp.writer == before.node
        )

    world.world.run_until(arrived, limit_s=20, step_s=0.1)
    assert world.covered(SPEC, 0)


def test_without_a_path_the_client_is_told_which_layers_are_missing() -> None:
    world = started(3, layers_max=4)
    world.crash(1)
    _, answer = world.ask(0, SPEC.id, PROMPT, 10)
    finish(world)
    assert answer.error is not None
    assert answer.error.code == "layers_missing"


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_late_joiner_learns_everything_and_can_be_asked(loss: float) -> None:
    world = NodeWorld([MachineSpec(layers_max=8)] * 3, 1, link=Link(loss=loss))
    world.start(0)
    world.start(1)
    world.serve(0, SPEC)
    world.world.run_until(lambda: world.covered(SPEC, 1), limit_s=60, step_s=0.1)
    world.start(2)
    world.world.run_until(lambda: world.covered(SPEC, 2), limit_s=30, step_s=0.1)
    _, answer = world.ask(2, SPEC.id, PROMPT, 10)
    finish(world)
    assert answer.tokens == reference_tokens(PROMPT, 10)


TRACE = """
from tests.core.test_node import *
world = NodeWorld([MachineSpec(layers_max=5)] * 3, 5, traces=True)
for number in range(3):
    world.start(number)
world.serve(0, SPEC)
world.world.run(10)
world.ask(1, SPEC.id, PROMPT, 20)
world.world.run(20)
print(world.world.trace)
"""


def test_a_run_follows_from_its_seed_whatever_the_hash_seed() -> None:
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE],
            env=dict(os.environ, PYTHONHASHSEED=hash_seed, PYTHONPATH=os.getcwd()),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(traces) == 1
    assert len(traces.pop().strip()) == 32
