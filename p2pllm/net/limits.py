"""How much the streams may take, each limit with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of `p2pllm.net.streams.PeerStreams`.

    Attributes:
        queue_bytes_max: unsent bytes per peer: eight chunks of 512 positions of the widest models
            (16,384 float32), or 64 of common ones. A peer that is further behind is given up.
        queue_frames_max: unsent frames per peer; counts what small frames cost beside their bytes.
        write_bytes_max: encrypted bytes that wait for the kernel, per peer; beyond it the queue
            holds them back, unencrypted and uncopied.
        connect_timeout_s: per address, TCP and TLS and greeting together.
        greeting_timeout_s: from the end of an incoming handshake to the peer's Hello.
        handshake_timeout_s: from accept to the end of the TLS handshake.
        handshakes_max: at once; one more cuts the oldest off, so that a flood of slow ones
            cannot keep out a peer, whose handshake takes milliseconds.
        incoming_max: open connections from peers: one per member of a large swarm.
        enrolments_max: joins under way at once, connections without a certificate; and as many
            renewals.
        enrolments_per_s: of either on average; bursts up to `enrolments_max`.
        enrolment_timeout_s: from accept to the end of the exchange.
        keep_alive_s: silence after which an outgoing stream asks for a sign of life.
        silence_timeout_s: without a sign of life, and without the peer's kernel taking bytes, the
            stream is broken. Above the garbage collection and scheduling pauses of a loaded peer.
        incoming_silence_timeout_s: an incoming stream whose dialler stopped asking is closed; the
            dialler has noticed long before, this only frees what a vanished host left.
        shutdown_timeout_s: for the last frames and the TLS closing handshake at the end.
    """

    queue_bytes_max: int = 256 * 1024 * 1024
    queue_frames_max: int = 8_192
    write_bytes_max: int = 1024 * 1024
    connect_timeout_s: float = 3.0
    greeting_timeout_s: float = 5.0
    handshake_timeout_s: float = 5.0
    handshakes_max: int = 64
    incoming_max: int = 1_024
    enrolments_max: int = 8
    enrolments_per_s: float = 2.0
    enrolment_timeout_s: float = 10.0
    keep_alive_s: float = 1.0
    silence_timeout_s: float = 4.0
    incoming_silence_timeout_s: float = 30.0
    shutdown_timeout_s: float = 1.0
