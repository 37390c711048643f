"""What the owner asks of a node, and what the core is told of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from p2pllm.api.gateway import ServedModel
from p2pllm.app.control import CoreControl, Inviter
from p2pllm.app.enrol import wall_clock
from p2pllm.app.models import ModelLibrary
from p2pllm.core.capacity import PlacementConfig
from p2pllm.core.events import Event, ModelAdded, ModelRemoved
from p2pllm.domain.errors import AuthenticationError, ClientError, ModelNotFoundError
from p2pllm.domain.ids import ModelId, SwarmId
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import MODELS_MAX, Address, SwarmView
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.invites import InviteBook, parse_invite
from p2pllm.weights.references import References
from tests.core.swarm_worlds import MODEL, holding, member, model, node_id, record, view_of
from tests.engine.tiny_models import LAYERS

ADDRESS = Address("192.168.1.20", 7_770)
SWARM = SwarmId("5" * 64)


class World:
    """A control over a made-up swarm, which serves at once what it is told to."""

    def __init__(self, *models: ModelSpec, memory: int = 10_000_000) -> None:
        self.posted: list[Event] = []
        self.models = {spec.id: spec for spec in models}
        self.records = [
            record(
                node_id(number),
                memory=memory,
                holdings=(holding(0, 4),) if MODEL in self.models and number == 1 else (),
            )
            for number in (1, 2)
        ]
        self.now = 100.0
        self.control = self.made(None)

    def made(self, inviter: Inviter | None) -> CoreControl:
        return CoreControl(
            post=self.post,
            view=self.view,
            models=lambda: [ServedModel(spec, 1, ()) for spec in self.models.values()],
            library=ModelLibrary(References({})),
            placement=PlacementConfig(),
            swarm=SWARM,
            inviter=inviter,
            addresses=lambda: (ADDRESS,),
            clock=lambda: self.now,
        )

    def post(self, event: Event) -> None:
        self.posted.append(event)
        if isinstance(event, ModelAdded):
            self.models[event.spec.id] = event.spec

    def view(self) -> SwarmView:
        return view_of(
            *(member(item) for item in self.records),
            models=tuple(sorted(self.models.values(), key=lambda spec: spec.id)),
            self_id=node_id(1),
        )


def test_the_status_is_the_view_with_how_long_it_has_run() -> None:
    world = World(model(4))
    world.now += 12.34
    status = world.control.status()
    assert status["node"] == node_id(1)
    assert status["swarm"] == SWARM
    assert status["uptime_s"] == 12.3
    assert [entry["id"] for entry in status["models"]] == [MODEL]
    assert len(status["members"]) == 2


async def test_a_model_is_described_and_handed_to_the_core(tiny_folder: Path) -> None:
    world = World()
    answer = await world.control.add_model(str(tiny_folder), "mine")
    assert answer["id"] == "mine"
    (event,) = world.posted
    assert isinstance(event, ModelAdded)
    assert event.spec.num_layers == LAYERS
    assert event.wall_ms > 1_700_000_000_000


async def test_one_model_too_many_is_refused_but_one_that_is_served_may_change(
    tiny_folder: Path,
) -> None:
    full = [model(4, name=ModelId(f"m{number}")) for number in range(MODELS_MAX)]
    world = World(*full)
    with pytest.raises(ClientError, match="p2pllm models rm"):
        await world.control.add_model(str(tiny_folder), "new")
    assert world.posted == []
    assert (await world.control.add_model(str(tiny_folder), "m3"))["id"] == "m3"


async def test_only_a_served_model_can_be_removed() -> None:
    world = World(model(4))
    with pytest.raises(ModelNotFoundError, match="p2pllm models ls"):
        await world.control.remove_model(ModelId("nobody"))
    await world.control.remove_model(MODEL)
    (event,) = world.posted
    assert isinstance(event, ModelRemoved)
    assert event.model == MODEL


async def test_a_plan_covers_every_layer_and_counts_what_is_to_be_loaded(
    tiny_folder: Path,
) -> None:
    served = World(model(4))
    answer = await served.control.plan(MODEL)
    assert answer["missing"] == []
    assert answer["model"]["layers"] == 4
    load_bytes = {item["id"]: item["load_bytes"] for item in answer["nodes"]}
    assert load_bytes[node_id(1)] == 0, "it has them all"

    new = World()
    answer = await new.control.plan(str(tiny_folder))
    assert answer["missing"] == []
    assert {*range(LAYERS)} == {
        layer
        for item in answer["nodes"]
        for start, stop in item["layers"]
        for layer in range(start, stop)
    }
    assert any(item["load_bytes"] for item in answer["nodes"])
    assert new.posted == [], "a plan changes nothing"


async def test_a_plan_without_room_names_the_layers_that_fit_nowhere(tiny_folder: Path) -> None:
    answer = await World(memory=10).control.plan(str(tiny_folder))
    assert answer["missing"] == [[0, LAYERS]]
    assert answer["copies"] == [0] * LAYERS
    assert all(item["layers"] == [] for item in answer["nodes"])


async def test_a_node_on_its_way_out_is_not_planned_with(tiny_folder: Path) -> None:
    world = World()
    world.records[1] = replace(world.records[1], leaving=True)
    answer = await world.control.plan(str(tiny_folder))
    assert [item["id"] for item in answer["nodes"]] == [node_id(1)]


def test_only_who_holds_the_authority_invites(tmp_path: Path) -> None:
    world = World()
    with pytest.raises(AuthenticationError, match="the node that made the swarm"):
        world.control.create_invite(1, 60)
    book = InviteBook(tmp_path)
    control = world.made(Inviter(SwarmAuthority.generate(now=wall_clock()), book))
    invite = parse_invite(control.create_invite(2, 60))
    assert (invite.swarm, invite.addresses) == (SWARM, (ADDRESS,))
    now = wall_clock()
    book.redeem(invite.secret, node_id(1), now)
    with pytest.raises(AuthenticationError, match="expired"):
        book.redeem(invite.secret, node_id(2), now + timedelta(seconds=61))
