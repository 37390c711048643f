"""Walking steps along paths of engines, as the session machines would, and what to expect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from p2pllm.core.effects import Draw, StageStep
from p2pllm.core.events import StepResult
from p2pllm.domain.generation import SamplingParameters
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation
from p2pllm.domain.models import ModelSpec
from p2pllm.engine.describe import describe
from p2pllm.engine.runner import Engine
from p2pllm.weights.checkpoint import Checkpoint, open_checkpoint
from tests.engine.tiny_models import LAYERS

MODEL = ModelId("tiny")
SESSION = SessionId("0" * 32)
PROMPT = (5, 17, 30, 44, 60, 61, 99, 12, 90, 33, 7)
GENERATED = 12
GREEDY = SamplingParameters(temperature=0)
WHOLE = LayerRange(0, LAYERS)

SESSION_KEY = (SESSION, 1)

Hop = tuple[Engine, LayerRange]


class TinyModel:
    """A saved model, what it generates in one process, and how it looks to the swarm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint: Checkpoint = open_checkpoint(folder)
        self.spec: ModelSpec = describe(self.checkpoint, model_id=MODEL, reference="tiny")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        generated = model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=GENERATED,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.greedy: list[int] = generated[0, len(PROMPT) :].tolist()
        assert len(set(self.greedy)) > 1, "a model that repeats itself proves little"

    @asynccontextmanager
    async def engine(self, *ranges: LayerRange, dtype: str = "float32") -> AsyncIterator[Engine]:
        async with Engine(device="cpu", dtype=dtype, threads=1) as engine:
            await engine.add_model(self.spec, self.checkpoint)
            for layers in ranges:
                await engine.load_layers(MODEL, layers)
            yield engine


def step_of(
    layers: LayerRange,
    position: int,
    tokens: Sequence[int],
    activation: Activation | None,
    *,
    history: Sequence[int] | None = None,
    sampling: SamplingParameters = GREEDY,
) -> StageStep:
    """A step of SESSION, with a draw where a history is given and it is the last hop."""
    is_last = layers.stop == LAYERS
    draw = None
    if history is not None and is_last:
        index = len(history) - len(PROMPT)
        draw = Draw(sampling, index, tuple(history), len(PROMPT))
    return StageStep(SESSION, 1, MODEL, layers, position, tuple(tokens), activation, is_last, draw)


async def run_one(engine: Engine, step: StageStep) -> StepResult:
    finished = await engine.run((step,))
    assert len(finished.results) == 1
    return finished.results[0]


async def run_path(
    path: Sequence[Hop], position: int, tokens: Sequence[int], history: Sequence[int] | None
) -> int | None:
    activation = None
    result = None
    for engine, layers in path:
        result = await run_one(
            engine, step_of(layers, position, tokens, activation, history=history)
        )
        assert result.error is None, result.error
        activation = result.activation
    assert result is not None
    return None if result.sampled is None else result.sampled.token


async def generate(path: Sequence[Hop], *, chunk: int = 100, count: int = GENERATED) -> list[int]:
    """Greedy tokens over `path`, the prompt in chunks."""
    history = list(PROMPT)
    token: int | None = None
    for start in range(0, len(PROMPT), chunk):
        tokens = PROMPT[start : start + chunk]
        is_last = start + chunk >= len(PROMPT)
        token = await run_path(path, start, tokens, history if is_last else None)
    generated: list[int] = []
    while token is not None:
        generated.append(token)
        history.append(token)
        if len(generated) == count:
            return generated
        token = await run_path(path, len(history) - 1, [token], history)
    raise AssertionError("the last hop drew no token")
