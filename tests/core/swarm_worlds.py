"""Small swarms to plan and route in."""

from __future__ import annotations

import hashlib

from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import (
    Address,
    Holding,
    HoldingState,
    LoadRecord,
    Member,
    MemberState,
    NodeRecord,
    SwarmView,
)

MODEL = ModelId("test/model")


def node_id(number: int) -> NodeId:
    return NodeId(hashlib.sha256(f"node {number}".encode()).hexdigest()[:32])


def model(
    layers: int,
    *,
    name: ModelId = MODEL,
    parameters: int = 1_000,
    embedding: int = 0,
    head: int = 0,
    kv_elements: int = 0,
) -> ModelSpec:
    return ModelSpec(
        id=name,
        reference="folder",
        fingerprint="0" * 32,
        architecture="TestForCausalLM",
        runs=(LayerRun(layers, parameters, kv_elements),),
        embedding_parameters=embedding,
        head_parameters=head,
        hidden_size=64,
        context_length_max=4_096,
        vocabulary_size=1_000,
    )


def holding(
    start: int, stop: int, state: HoldingState = HoldingState.READY, name: ModelId = MODEL
) -> Holding:
    return Holding(name, LayerRange(start, stop), state)


def record(
    node: NodeId,
    *,
    memory: int = 10_000,
    speed: int = 1_000_000,
    holdings: tuple[Holding, ...] = (),
    models: tuple[ModelId, ...] = (MODEL,),
    layers_max: int | None = None,
    leaving: bool = False,
) -> NodeRecord:
    return NodeRecord(
        node=node,
        incarnation=1,
        version=1,
        name=node[:4],
        addresses=(Address("127.0.0.1", 1_000),),
        api=None,
        memory_bytes=memory,
        layers_max=layers_max,
        parameter_bytes=1,
        speed_bytes_s=speed,
        models=models,
        holdings=holdings,
        leaving=leaving,
    )


def member(
    item: NodeRecord,
    state: MemberState = MemberState.ALIVE,
    *,
    queue_steps: int = 0,
    sessions: int = 0,
    kv_free_bytes: int = 2**40,
    tokens_per_s: float = 0.0,
) -> Member:
    load = LoadRecord(
        item.node, item.incarnation, 1, queue_steps, sessions, kv_free_bytes, tokens_per_s
    )
    return Member(item, state, load)


def view_of(
    *members: Member,
    models: tuple[ModelSpec, ...],
    self_id: NodeId | None = None,
    blacklisted: frozenset[NodeId] = frozenset(),
    round_trip_s: dict[NodeId, float] | None = None,
) -> SwarmView:
    ordered = tuple(sorted(members, key=lambda item: item.record.node))
    return SwarmView(
        self_id=self_id if self_id is not None else NodeId("f" * 32),
        members=ordered,
        models=models,
        blacklisted=blacklisted,
        round_trip_s=round_trip_s or {},
    )
