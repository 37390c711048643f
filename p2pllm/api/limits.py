"""How much of anything one client, or all of them together, may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP face.

    Attributes:
        body_bytes_max: of one request; a prompt of a million tokens fits.
        connections_max: open at a time; with `body_bytes_max`, it bounds what bodies take.
        generations_max: choices generated at a time; more are told to come again.
        header_timeout_s: for the first request on a connection to arrive.
        body_timeout_s: for a request's body to arrive.
        write_timeout_s: how long a client may take nothing of its answer.
        shutdown_timeout_s: for answers to end after the server was told to stop.
        deadline_s: for a generation.
        tokens_default: most tokens generated where the request does not say; a lease on the KV
            caches is taken for all of them, so "the rest of the context" would be too dear.
        loop_text_length_max: longer text is read and tokenised on a worker thread, so that the
            event loop, which answers the swarm's probes, is not held up.
    """

    body_bytes_max: int = 8 * 2**20
    connections_max: int = 256
    generations_max: int = 64
    header_timeout_s: float = 30.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    shutdown_timeout_s: float = 5.0
    deadline_s: float = 600.0
    tokens_default: int = 2_048
    loop_text_length_max: int = 16_384
