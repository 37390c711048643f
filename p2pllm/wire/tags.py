"""Which number stands for which message on the wire.

To add a message: write its dataclass in `p2pllm.domain`, give it the next free number of its range
here, and pin its bytes in `tests/wire/vectors.py`. A number is never given to another message, and
fields are only ever appended to one, with defaults; anything else is a new protocol version.

| range | what |
| --- | --- |
| 1 - 15 | a stream's own business |
| 16 - 31 | generation, over streams |
| 32 - 47 | joining, over streams |
| 48 - 63 | records, as signed payloads |
| 64 - 127 | gossip, in datagrams |
"""

from __future__ import annotations

from typing import Final

from p2pllm.domain import enrolment, gossip, messages, records
from p2pllm.wire import control

TAGS: Final[dict[type, int]] = {
    messages.Hello: 1,
    messages.Goodbye: 2,
    control.KeepAlive: 3,
    control.KeepAliveAck: 4,
    messages.Forward: 16,
    messages.TokenSampled: 17,
    messages.SessionFailed: 18,
    messages.CloseSession: 19,
    messages.StreamProbe: 20,
    messages.StreamProbeAck: 21,
    enrolment.EnrolRequest: 32,
    enrolment.EnrolOffer: 33,
    enrolment.EnrolProof: 34,
    enrolment.EnrolGrant: 35,
    enrolment.EnrolRefusal: 36,
    records.NodeRecord: 48,
    records.LoadRecord: 49,
    records.ModelFact: 50,
    gossip.Ping: 64,
    gossip.Ack: 65,
    gossip.PingRequest: 66,
    gossip.Nack: 67,
    gossip.Gossip: 68,
    gossip.Pull: 69,
    gossip.Bodies: 70,
    gossip.SyncDigest: 71,
    gossip.SyncEntries: 72,
}

PeerMessage = messages.SessionMessage | messages.StreamProbe | messages.StreamProbeAck
"""What streams carry between members for the core."""

IncomingMessage = PeerMessage | messages.Goodbye | control.KeepAlive
"""What the dialler of a stream says after its Hello."""

OutgoingAnswer = messages.Goodbye | control.KeepAliveAck
"""What the listener of a stream says after its Hello."""

Greeting = messages.Hello | messages.Goodbye
"""What both say first."""

Opening = Greeting | enrolment.EnrolRequest
"""What a dialler with a certificate says first; the request is to have it renewed."""
