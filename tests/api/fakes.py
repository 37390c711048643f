"""A gateway without a swarm: it says what it is told to, and notes what it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from p2pllm.api.gateway import ServedModel
from p2pllm.api.limits import Limits
from p2pllm.api.metrics import Metrics
from p2pllm.api.server import ApiServer
from p2pllm.core.effects import PathChosen, TokenGenerated
from p2pllm.domain.errors import AuthenticationError, ModelNotFoundError, P2PLLMError
from p2pllm.domain.generation import (
    FinishReason,
    GenerationRequest,
    Hop,
    Path,
    SampledToken,
    TokenLogprob,
)
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun, ModelSpec

END = 256
TOKEN = "control-token-of-the-tests"
A, B, C = (NodeId(letter * 32) for letter in "abc")


def spec(name: str = "fake", context: int = 64) -> ModelSpec:
    return ModelSpec(
        id=ModelId(name),
        reference="/home/somebody/models/fake",
        fingerprint="0123456789abcdef0123456789abcdef",
        architecture="FakeForCausalLM",
        runs=(LayerRun(4, 100, 8),),
        embedding_parameters=10,
        head_parameters=10,
        hidden_size=16,
        context_length_max=context,
        vocabulary_size=257,
    )


class ByteTokenizer:
    """One token per byte of UTF-8, and an end token."""

    stop_tokens = (END,)
    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode(
            "".join(f"{message['role'][0]}:{message['content']}|" for message in messages)
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")

    def token_text(self, token: int) -> str:
        return "<end>" if token == END else self.decode([token])


def path(*nodes: NodeId) -> Path:
    size = 4 // len(nodes)
    return tuple(
        Hop(node, LayerRange(place * size, (place + 1) * size)) for place, node in enumerate(nodes)
    )


@dataclass
class FakeGateway:
    """Says `texts` in turn, token by token.

    `error` is raised after `error_after` tokens; with `gate`, nothing more is said after
    `gate_after` tokens until it is set.
    """

    text: str = "Hello, world"
    finish: FinishReason = FinishReason.STOP
    context: int = 64
    missing: tuple[LayerRange, ...] = ()
    names: tuple[str, ...] = ("fake", "owner/other")
    error: Exception | None = None
    error_after: int = 0
    reroute_after: int | None = None
    gate: asyncio.Event | None = None
    gate_after: int = 0
    tokenizer_of_models: ByteTokenizer = field(default_factory=ByteTokenizer)
    requests: list[GenerationRequest] = field(default_factory=list)
    opened: asyncio.Queue[GenerationRequest] = field(default_factory=asyncio.Queue)
    closed: asyncio.Queue[tuple[GenerationRequest, int]] = field(default_factory=asyncio.Queue)

    def models(self) -> Sequence[ServedModel]:
        return [
            ServedModel(spec(name, self.context), 1_700_000_000, self.missing)
            for name in self.names
        ]

    async def tokenizer(self, model: ModelId) -> ByteTokenizer:
        await asyncio.sleep(0)
        return self.tokenizer_of_models

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[PathChosen | TokenGenerated, None]:
        self.requests.append(request)
        self.opened.put_nowait(request)
        said = 0
        try:
            yield PathChosen(request.session, 1, path(A, B))
            tokens = [*self.text.encode()]
            if self.finish is FinishReason.STOP:
                tokens.append(END)
            tokens = tokens[: request.tokens_max]
            for index, token in enumerate(tokens):
                await asyncio.sleep(0)
                if self.error is not None and index == self.error_after:
                    raise self.error
                if self.gate is not None and index == self.gate_after:
                    await self.gate.wait()
                if index == self.reroute_after:
                    yield PathChosen(request.session, 2, path(A, C))
                last = index == len(tokens) - 1
                finish = None
                if last:
                    ends = token in request.stop_tokens
                    finish = FinishReason.STOP if ends else FinishReason.LENGTH
                said += 1
                yield TokenGenerated(request.session, index, self._sampled(token, request), finish)
        finally:
            self.closed.put_nowait((request, said))

    @staticmethod
    def _sampled(token: int, request: GenerationRequest) -> SampledToken:
        count = request.sampling.logprobs
        if count is None:
            return SampledToken(token)
        likeliest = [TokenLogprob(token, -0.5), TokenLogprob(120, -1.5), TokenLogprob(121, -2.5)]
        return SampledToken(token, -0.5, tuple(likeliest[:count]))


@dataclass
class FakeControl:
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    error: P2PLLMError | None = None

    def status(self) -> dict[str, Any]:
        holding = {"model": "fake", "layers": [0, 3], "state": "ready"}
        load = {"queue_steps": 2, "sessions": 3, "kv_free_bytes": 4_096, "tokens_per_s": 5.5}
        return {
            "members": [
                {"id": A, "self": True, "state": "alive", "holdings": [holding], "load": load},
                {"id": B, "self": False, "state": "suspect", "holdings": [], "load": None},
            ]
        }

    async def add_model(self, reference: str, name: str | None) -> dict[str, Any]:
        self.asked.append(("add", reference, name))
        if self.error is not None:
            raise self.error
        return {"id": name or reference}

    async def remove_model(self, model: ModelId) -> None:
        self.asked.append(("remove", model))

    async def plan(self, reference: str) -> dict[str, Any]:
        self.asked.append(("plan", reference))
        if reference == "nowhere":
            raise ModelNotFoundError("nothing at 'nowhere'")
        return {"assignments": []}

    def create_invite(self, uses: int, lifetime_s: int) -> str:
        self.asked.append(("invite", uses, lifetime_s))
        if uses == 99:
            raise AuthenticationError("this node does not hold the swarm's authority")
        return "p2pllm-invite"


@dataclass
class Face:
    """A running server, and a client for it."""

    gateway: FakeGateway
    control: FakeControl
    server: ApiServer
    client: aiohttp.ClientSession
    metrics: Metrics

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def post(
        self, route: str, body: Any, **headers: str
    ) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        async with self.client.post(self.url + route, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers

    async def get(self, route: str, **headers: str) -> tuple[int, dict[str, Any]]:
        async with self.client.get(self.url + route, headers=headers) as answer:
            return answer.status, await answer.json()


@asynccontextmanager
async def face(
    gateway: FakeGateway | None = None,
    *,
    host: str = "127.0.0.1",
    limits: Limits | None = None,
    hosts_allowed: Sequence[str] = (),
) -> AsyncIterator[Face]:
    gateway, control, metrics = gateway or FakeGateway(), FakeControl(), Metrics()
    server = ApiServer(
        gateway,
        control,
        host=host,
        port=0,
        control_token=TOKEN,
        metrics=metrics,
        hosts_allowed=hosts_allowed,
        limits=limits,
    )
    async with server, aiohttp.ClientSession() as client:
        yield Face(gateway, control, server, client, metrics)
