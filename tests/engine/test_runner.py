"""Whole generations, through engines that hold different layers of tiny random models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from p2pllm.core.effects import Draw, StageStep
from p2pllm.core.events import StepResult
from p2pllm.domain.generation import SamplingParameters
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.layers import LayerRange, LayerWindow
from p2pllm.domain.messages import Activation
from p2pllm.domain.models import ModelSpec
from p2pllm.engine.describe import describe
from p2pllm.engine.runner import Engine
from p2pllm.weights.checkpoint import Checkpoint, open_checkpoint
from tests.engine.tiny_models import FAMILIES, LAYERS, make_tiny_model

MODEL = ModelId("tiny")
SESSION = SessionId("0" * 32)
PROMPT = (5, 17, 30, 44, 60, 61, 99, 12, 90, 33, 7)
GENERATED = 12
GREEDY = SamplingParameters(temperature=0)

MUST = ("llama", "qwen3", "gemma", "gpt2", "mixtral")
OTHERS = tuple(family for family in FAMILIES if family not in MUST)

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
        self.greedy: list[int] = generated[0, len(PROMPT) :].tolist()
        assert len(set(self.greedy)) > 1, "a model that repeats itself proves little"

    @asynccontextmanager
    async def engine(self, *ranges: LayerRange, dtype: str = "float32") -> AsyncIterator[Engine]:
        async with Engine(device="cpu", dtype=dtype, threads=1) as engine:
            await engine.add_model(self.spec, self.checkpoint)
            for layers in ranges:
                await engine.load_layers(MODEL, layers)
            yield engine


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            folder = tmp_path_factory.mktemp("models") / family
            made[family] = TinyModel(make_tiny_model(family, folder))
        return made[family]

    return make


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


@pytest.mark.parametrize("family", [*MUST, *OTHERS])
async def test_a_model_cut_in_three_generates_what_one_process_does(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    cut = (LayerRange(0, 2), LayerRange(2, 5), LayerRange(5, 6))
    async with AsyncExitStack() as stack:
        path = [(await stack.enter_async_context(model.engine(part)), part) for part in cut]
        assert await generate(path) == model.greedy


@pytest.mark.parametrize("family", [*MUST, *OTHERS])
async def test_a_window_that_wraps_serves_the_first_and_the_last_hop(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    first, last = LayerWindow(4, 4, LAYERS).ranges()
    middle = LayerRange(2, 4)
    async with model.engine(last, first) as ends, model.engine(middle) as between:
        path = [(ends, first), (between, middle), (ends, last)]
        assert await generate(path) == model.greedy
