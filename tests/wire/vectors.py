"""One sample of every message; `vectors.txt` beside it holds their bytes.

After an intended change of the protocol run `python -m tests.wire.vectors` and look at the diff:
only new lines, or longer ones, are compatible.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pllm.domain.enrolment import (
    DatagramKey,
    EnrolGrant,
    EnrolOffer,
    EnrolProof,
    EnrolRefusal,
    EnrolRequest,
)
from p2pllm.domain.generation import (
    FinishReason,
    Hop,
    Priority,
    SampledToken,
    SamplingParameters,
    TokenLogprob,
)
from p2pllm.domain.gossip import (
    Ack,
    Bodies,
    FactHeadline,
    Gossip,
    Headline,
    Nack,
    News,
    Ping,
    PingRequest,
    Pull,
    Signed,
    SyncDigest,
    SyncEntries,
)
from p2pllm.domain.ids import ModelId, NodeId, SessionId, SwarmId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    Activation,
    ActivationType,
    CloseSession,
    FailureReason,
    Forward,
    Goodbye,
    Hello,
    SessionFailed,
    SessionSetup,
    StreamProbe,
    StreamProbeAck,
    TokenSampled,
)
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import (
    Address,
    Holding,
    HoldingState,
    HybridTime,
    LoadRecord,
    MemberState,
    ModelFact,
    NodeRecord,
)
from p2pllm.wire.codec import encode
from p2pllm.wire.control import KeepAlive, KeepAliveAck

PINNED = Path(__file__).with_name("vectors.txt")

NODE = NodeId("00112233445566778899aabbccddeeff")
OTHER = NodeId("ff" * 16)
SESSION = SessionId("5e" * 16)
MODEL = ModelId("owner/model-1")

RECORD = NodeRecord(
    NODE,
    incarnation=3,
    version=4,
    name="kitchen",
    addresses=(Address("10.0.0.1", 7777), Address("fe80::1", 7777)),
    api=Address("10.0.0.1", 8000),
    memory_bytes=2**34,
    layers_max=None,
    parameter_bytes=2,
    speed_bytes_s=10**10,
    models=(MODEL,),
    holdings=(Holding(MODEL, LayerRange(0, 4), HoldingState.READY),),
    leaving=False,
)
LOAD = LoadRecord(NODE, 3, 9, 1, 2, 2**30, 12.5)
FACT = ModelFact(
    MODEL,
    HybridTime(1_700_000_000_000, 1, NODE),
    ModelSpec(
        MODEL,
        "builtin",
        "c0ffee",
        "LlamaForCausalLM",
        (LayerRun(8, 10, 20),),
        5,
        6,
        64,
        128,
        99,
    ),
)
NEWS = News(
    (
        Headline(OTHER, 3, 4, 9, MemberState.SUSPECT, NODE, 0),
        Headline(NODE, 3, 4, 9, MemberState.ALIVE),
    ),
    (FactHeadline(MODEL, HybridTime(1_700_000_000_000, 1, NODE)),),
)


def _signed(value: Any) -> Any:
    return Signed(value, encode(value), b"g" * 64, b"c" * 8)


SAMPLES: tuple[Any, ...] = (
    Hello(1, 2, NODE, SwarmId("ab" * 32), "p2pllm 0.1.0"),
    Goodbye("leaving"),
    KeepAlive(),
    KeepAliveAck(),
    Forward(
        SESSION,
        attempt=2,
        step=0,
        hop=1,
        position=0,
        tokens=(1, 70_000),
        sample=True,
        setup=SessionSetup(
            gateway=NODE,
            model=MODEL,
            fingerprint="c0ffee",
            path=(Hop(NODE, LayerRange(0, 4)), Hop(OTHER, LayerRange(4, 8))),
            prompt_length=2,
            tokens_max=100,
            sampling=SamplingParameters(
                0.5, 0.9, 40, 0.1, 7, 1.1, 0.2, 0.3, logit_bias=((5, -1.5),), logprobs=2
            ),
            stop_tokens=(2,),
            priority=Priority.HIGH,
        ),
        activation=Activation(ActivationType.BFLOAT16, 2, 3, bytes(range(12))),
    ),
    TokenSampled(SESSION, 2, 0, SampledToken(9, -0.5, (TokenLogprob(9, -0.5),)), FinishReason.STOP),
    SessionFailed(SESSION, 2, FailureReason.HOP_LOST, OTHER, "reset"),
    CloseSession(SESSION, 2),
    StreamProbe(7),
    StreamProbeAck(7),
    EnrolRequest(1),
    EnrolOffer(b"authority", bytes(32), False),
    EnrolProof(b"k" * 32, b"s" * 32, b"g" * 64, "kitchen"),
    EnrolGrant(b"certificate", (DatagramKey(1, b"r" * 32),), (Address("10.0.0.1", 7777),)),
    EnrolRefusal("invite_refused", "This invite has expired."),
    RECORD,
    LOAD,
    FACT,
    Ping(7, OTHER, NEWS),
    Ack(7, NEWS),
    PingRequest(7, OTHER, NEWS),
    Nack(7),
    Gossip(NEWS),
    Pull((NODE,), (OTHER,), (MODEL,)),
    Bodies((_signed(RECORD),), (_signed(LOAD),), (_signed(FACT),), NEWS),
    SyncDigest(bytes(range(256)) * 4),
    SyncEntries(b"\x01" + bytes(31), NEWS),
)


def lines() -> list[str]:
    """Name and bytes of every sample."""
    return [f"{type(sample).__name__} {encode(sample).hex()}" for sample in SAMPLES]


if __name__ == "__main__":
    PINNED.write_text("\n".join(lines()) + "\n")
