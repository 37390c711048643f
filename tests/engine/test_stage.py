"""Every family, cut in many ways, generates what transformers does in one process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaMLP

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.domain.layers import LayerRange, LayerWindow
from tests.engine.tiny_models import FAMILIES, LAYERS, MORE_FAMILIES
from tests.engine.walking import MODEL, PROMPT, SESSION_KEY, WHOLE, TinyModel, generate, run_path

MUST = ("llama", "llama-tied", "qwen3", "gemma", "gpt2", "mixtral")
SLIDING = ("mistral", "gemma2", "gemma3", "gpt-oss")
OTHERS = tuple(family for family in FAMILIES if family not in MUST)


@pytest.mark.parametrize("family", [*MUST, *OTHERS, *MORE_FAMILIES])
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


@pytest.mark.parametrize("family", MUST)
async def test_one_node_alone_generates_what_one_process_does(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    async with model.engine(WHOLE) as engine:
        assert await generate([(engine, WHOLE)]) == model.greedy


@pytest.mark.parametrize("family", [*MUST, *SLIDING, "opt"])
async def test_hops_may_run_any_part_of_what_a_node_holds(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    async with model.engine(LayerRange(0, 5)) as left, model.engine(LayerRange(1, 6)) as right:
        for cut in ((1, 4), (3, 5), (1, 5)):
            path = [
                (left, LayerRange(0, cut[0])),
                (right, LayerRange(cut[0], cut[1])),
                (right, LayerRange(cut[1], LAYERS)),
            ]
            assert await generate(path) == model.greedy
            left.free_cache(*SESSION_KEY)
            right.free_cache(*SESSION_KEY)


@pytest.mark.parametrize("family", [*MUST, *SLIDING, "bloom"])
async def test_a_prompt_in_chunks_generates_the_same(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    first, last = LayerRange(0, 3), LayerRange(3, 6)
    for chunk in (1, 4):
        async with model.engine(first) as left, model.engine(last) as right:
            assert await generate([(left, first), (right, last)], chunk=chunk) == model.greedy


@pytest.mark.parametrize("family", MUST)
async def test_two_holders_of_the_same_layers_may_take_turns_after_a_replay(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    first, middle, last = LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6)
    async with (
        model.engine(last, first) as ends,
        model.engine(middle) as one,
        model.engine(middle) as other,
    ):
        history = list(PROMPT)
        for index, expected in enumerate(model.greedy):
            holder = (one, other)[index % 2]
            path = [(ends, first), (holder, middle), (ends, last)]
            # Each turn is a new attempt that replays all tokens so far on the other holder.
            token = await run_path(path, 0, history, history)
            assert token == expected
            history.append(expected)
            for engine in (ends, holder):
                engine.free_cache(*SESSION_KEY)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "mixtral", "gemma3", "bloom"])
async def test_layers_come_and_go_while_a_generation_runs(
    family: str, tiny: Callable[[str], TinyModel]
) -> None:
    model = tiny(family)
    first, last = LayerRange(0, 3), LayerRange(3, 6)
    async with model.engine(LayerRange(1, 2)) as left, model.engine(last) as right:
        await left.load_layers(MODEL, LayerRange(0, 4))
        assert left.held(MODEL) == (LayerRange(0, 4),)
        await left.drop_layers(MODEL, LayerRange(3, 4))
        path = [(left, first), (right, last)]
        history = list(PROMPT)
        position, tokens = 0, list(PROMPT)
        for index, expected in enumerate(model.greedy):
            assert await run_path(path, position, tokens, history) == expected
            position, tokens = len(history), [expected]
            history.append(expected)
            if index == 3:  # all of it on either side, in between two steps
                await left.load_layers(MODEL, WHOLE)
                await right.load_layers(MODEL, first)
            if index == 6:
                await left.drop_layers(MODEL, last)
                await right.drop_layers(MODEL, first)
        assert left.held(MODEL) == (first,)
        assert right.held(MODEL) == (last,)


async def test_dropping_everything_frees_the_weights(tiny: Callable[[str], TinyModel]) -> None:
    for family in ("llama", "llama-tied", "gpt2", "opt"):
        model = tiny(family)
        async with model.engine() as engine:
            empty = engine.weight_bytes
            await engine.load_layers(MODEL, WHOLE)
            assert engine.weight_bytes - empty == model.parameters * 4
            await engine.drop_layers(MODEL, LayerRange(0, 4))
            await engine.drop_layers(MODEL, LayerRange(4, 6))
            assert engine.weight_bytes == empty


async def test_bfloat16_is_the_same_whatever_the_cut(tiny: Callable[[str], TinyModel]) -> None:
    model = tiny("llama")
    first, last = LayerRange(0, 3), LayerRange(3, 6)
    async with AsyncExitStack() as stack:
        whole = await stack.enter_async_context(model.engine(WHOLE, dtype="bfloat16"))
        left = await stack.enter_async_context(model.engine(first, dtype="bfloat16"))
        right = await stack.enter_async_context(model.engine(last, dtype="bfloat16"))
        assert whole.parameter_bytes == 2
        assert await generate([(whole, WHOLE)]) == await generate([(left, first), (right, last)])


async def test_float32_and_bfloat16_nodes_share_a_path(tiny: Callable[[str], TinyModel]) -> None:
    model = tiny("llama")
    first, last = LayerRange(0, 3), LayerRange(3, 6)
    async with model.engine(first, dtype="bfloat16") as left, model.engine(last) as right:
        assert len(await generate([(left, first), (right, last)])) == len(model.greedy)


def test_the_wrapping_window_is_what_it_says() -> None:
    assert LayerWindow(4, 4, LAYERS).ranges() == (LayerRange(0, 2), LayerRange(4, 6))


async def test_a_layer_that_fails_its_trial_is_refused_and_not_held(
    tiny: Callable[[str], TinyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError

    async with model.engine() as engine:
        with monkeypatch.context() as patch:
            patch.setattr(LlamaMLP, "forward", fail)
            with pytest.raises(ModelRefusedError, match="a trial of layer 0 failed"):
                await engine.load_layers(MODEL, WHOLE)
        assert engine.held(MODEL) == ()
        await engine.load_layers(MODEL, WHOLE)
        assert await generate([(engine, WHOLE)]) == model.greedy
