"""Figures for Prometheus. Labels come from small fixed sets, never from what a client wrote."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from p2pllm.api.gateway import Control

CONTENT_TYPE = CONTENT_TYPE_LATEST

_DELAY_PERIOD_S = 0.1

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_DELAYS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The node's figures, in a registry of their own.

    Attributes:
        registry: where others may add theirs.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "p2pllm_http_requests",
            "Answered HTTP requests; status 499: the client went away first.",
            ["route", "status"],
            registry=self.registry,
        )
        self.requests_running = Gauge(
            "p2pllm_http_requests_running",
            "HTTP requests being answered.",
            registry=self.registry,
        )
        self.stream_errors = Counter(
            "p2pllm_http_stream_errors",
            "Streamed answers that ended with an error after they had begun.",
            registry=self.registry,
        )
        self.generations_running = Gauge(
            "p2pllm_generations_running",
            "Choices being generated for clients of this node.",
            registry=self.registry,
        )
        self.tokens = Counter(
            "p2pllm_tokens_generated",
            "Tokens generated for clients of this node.",
            registry=self.registry,
        )
        self.first_token = Histogram(
            "p2pllm_first_token_seconds",
            "From a generation's submission to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "p2pllm_inter_token_seconds",
            "From one token of a generation to the next.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.loop_delay = Histogram(
            "p2pllm_event_loop_delay_seconds",
            "How late the event loop woke a timer.",
            buckets=_DELAYS,
            registry=self.registry,
        )

    def watch(self, control: Control) -> StatusCollector:
        """Add gauges over the node's status; give the result to `unwatch` in the end."""
        collector = StatusCollector(control)
        self.registry.register(collector)
        return collector

    def unwatch(self, collector: StatusCollector) -> None:
        """Take the gauges out again."""
        self.registry.unregister(collector)

    def render(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)

    async def measure_loop_delay(self) -> None:
        """Measure for ever."""
        clock = asyncio.get_running_loop().time
        while True:
            due_s = clock() + _DELAY_PERIOD_S
            await asyncio.sleep(_DELAY_PERIOD_S)
            self.loop_delay.observe(max(0.0, clock() - due_s))


class StatusCollector(Collector):
    """Gauges read from `Control.status()` when they are asked for."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing, so that registering does not ask for the status yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One value per state, and this node's own load."""
        members: list[dict[str, Any]] = self._control.status()["members"]
        states = Tally(member["state"] for member in members)
        family = GaugeMetricFamily("p2pllm_members", "Nodes known to this one.", labels=["state"])
        for state in ("alive", "suspect", "dead", "left"):
            family.add_metric([state], states[state])
        yield family

        own = next((member for member in members if member["self"]), None)
        layers = Tally[str]()
        for holding in own["holdings"] if own is not None else ():
            start, stop = holding["layers"]
            layers[holding["state"]] += stop - start
        family = GaugeMetricFamily(
            "p2pllm_held_layers", "Layers this node holds, of all models.", labels=["state"]
        )
        for state in ("loading", "ready", "draining"):
            family.add_metric([state], layers[state])
        yield family

        load = (own["load"] if own is not None else None) or {}
        for name, field, text in (
            ("p2pllm_stage_sessions", "sessions", "Sessions with a KV lease on this node."),
            ("p2pllm_stage_queue_steps", "queue_steps", "Steps waiting at this node's stage."),
            ("p2pllm_kv_free_bytes", "kv_free_bytes", "Room for further KV leases."),
            ("p2pllm_stage_tokens_per_second", "tokens_per_s", "Steps finished, lately."),
        ):
            yield GaugeMetricFamily(name, text, value=load.get(field, 0))
