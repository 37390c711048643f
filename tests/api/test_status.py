from __future__ import annotations

import json

from p2pllm.api.gateway import ServedModel
from p2pllm.api.metrics import StatusCollector
from p2pllm.api.status import status_json
from p2pllm.domain.ids import ModelId, SwarmId
from p2pllm.domain.layers import LayerRange
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
from tests.api.fakes import A, B, FakeControl, spec


def record(node: str, **fields: object) -> NodeRecord:
    values: dict[str, object] = {
        "node": node,
        "incarnation": 1,
        "version": 1,
        "name": "desktop",
        "addresses": (Address("10.0.0.1", 4190),),
        "api": None,
        "memory_bytes": 1_000,
        "layers_max": None,
        "parameter_bytes": 2,
        "speed_bytes_s": 5,
    }
    return NodeRecord(**(values | fields))  # type: ignore[arg-type]


def status() -> dict[str, object]:
    holding = Holding(ModelId("fake"), LayerRange(0, 3), HoldingState.READY)
    view = SwarmView(
        self_id=A,
        members=(
            Member(
                record(A, holdings=(holding,), api=Address("::1", 80)),
                MemberState.ALIVE,
                LoadRecord(A, 1, 1, 2, 3, 4_096, 5.5),
            ),
            Member(record(B, leaving=True), MemberState.DEAD),
        ),
        models=(spec(),),
        blacklisted=frozenset({B}),
        round_trip_s={B: 0.25},
    )
    served = ServedModel(spec(), 1, (LayerRange(3, 4),))
    return status_json(
        view, [served], swarm=SwarmId("f" * 64), software="p2pllm 0.1.0", uptime_s=1.5
    )


def test_a_swarm_is_told_as_json() -> None:
    told = json.loads(json.dumps(status()))
    own, other = told["members"]
    assert (own["id"], own["self"], own["state"], own["api"]) == (A, True, "alive", "[::1]:80")
    assert own["holdings"] == [{"model": "fake", "layers": [0, 3], "state": "ready"}]
    assert own["load"]["sessions"] == 3
    assert (other["self"], other["state"], other["load"]) == (False, "dead", None)
    assert (other["leaving"], other["blacklisted"], other["round_trip_s"]) == (True, True, 0.25)
    assert told["models"][0]["p2pllm"]["missing"] == [[3, 4]]
    assert told["uptime_s"] == 1.5


def test_the_gauges_understand_it() -> None:
    class Control(FakeControl):
        def status(self) -> dict[str, object]:
            return status()

    families = {family.name: family for family in StatusCollector(Control()).collect()}
    by_state = {
        sample.labels["state"]: sample.value for sample in families["p2pllm_members"].samples
    }
    assert by_state == {"alive": 1, "suspect": 0, "dead": 1, "left": 0}
    assert families["p2pllm_kv_free_bytes"].samples[0].value == 4_096
