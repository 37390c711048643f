"""The engine's batches, its memory, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from p2pllm.core.effects import StageStep
from p2pllm.core.events import StepsFinished
from p2pllm.domain.errors import ConfigurationError, ModelRefusedError
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation, ActivationType
from p2pllm.engine import runner as runner_module
from p2pllm.engine.cache import KV_BLOCK_TOKENS
from p2pllm.engine.describe import describe
from p2pllm.engine.runner import Engine
from p2pllm.weights.checkpoint import open_checkpoint
from tests.engine.tiny_models import CONTEXT, HIDDEN, LAYERS, VOCABULARY, make_tiny_model
from tests.engine.walking import (
    MODEL,
    PROMPT,
    SESSION,
    SESSION_KEY,
    WHOLE,
    TinyModel,
    generate,
    run_one,
    run_path,
    step_of,
)

Tiny = Callable[[str], TinyModel]

FIRST = LayerRange(0, 3)
LAST = LayerRange(3, LAYERS)


def rows(count: int, columns: int = HIDDEN, kind: ActivationType = ActivationType.FLOAT32) -> Any:
    return Activation(kind, count, columns, bytearray(count * columns * kind.itemsize_bytes))


async def test_a_batch_has_one_result_per_step_in_order(tiny: Tiny) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        prefill = step_of(WHOLE, 0, PROMPT, None, history=PROMPT)
        sessions = [SessionId(f"{number:032x}") for number in range(3)]
        finished = await engine.run([replace(prefill, session=session) for session in sessions])
        assert isinstance(finished, StepsFinished)
        assert [result.session for result in finished.results] == sessions
        assert finished.elapsed_s > 0
        for result in finished.results:
            assert result.sampled is not None
            assert result.sampled.token == model.greedy[0]


async def test_a_step_that_fails_leaves_the_others_alone(tiny: Tiny) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        good = step_of(WHOLE, 0, PROMPT, None, history=PROMPT)
        bad = replace(good, session=SessionId("1" * 32), tokens=(VOCABULARY,))
        also = replace(good, session=SessionId("2" * 32))
        results = (await engine.run((good, bad, also))).results
        assert results[0].error is None
        assert results[1].error is not None
        assert "vocabulary" in results[1].error
        assert results[1].activation is results[1].sampled is None
        assert results[2].sampled == results[0].sampled


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": ()}, "needs a token"),
        ({"tokens": (-1,)}, "outside the vocabulary"),
        ({"tokens": (1,) * (CONTEXT + 1)}, "beyond the context"),
        ({"position": 3}, "cached 0 positions"),
        ({"layers": LayerRange(3, 5), "activation": rows(len(PROMPT))}, "layer 3 .* not held"),
        ({"layers": LayerRange(1, 3)}, "activation comes on every hop but the first"),
        ({"activation": rows(len(PROMPT))}, "activation comes on every hop but the first"),
        ({"layers": LayerRange(1, 3), "activation": rows(4)}, "4 x 32 elements for 11 tokens"),
        ({"layers": LayerRange(1, 3), "activation": rows(11, 16)}, "11 x 16 elements"),
        (
            {
                "layers": LayerRange(1, 3),
                "activation": Activation(ActivationType.FLOAT32, 11, HIDDEN, b"short"),
            },
            "measures 1408 bytes, not 5",
        ),
        ({"is_last": True}, "wrong end of path"),
        ({"model": ModelId("other")}, "other was not added"),
    ],
)
async def test_a_step_that_does_not_fit_is_refused_and_says_why(
    tiny: Tiny, changes: dict[str, Any], reason: str
) -> None:
    async with tiny("llama").engine(FIRST) as engine:
        good = step_of(FIRST, 0, PROMPT, None)
        result = await run_one(engine, replace(good, **changes))
        assert result.error is not None
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(result.error)
        # The engine is as before, and so is the session.
        assert (await run_one(engine, good)).error is None


async def test_a_repeated_step_is_out_of_step(tiny: Tiny) -> None:
    async with tiny("llama").engine(FIRST) as engine:
        step = step_of(FIRST, 0, PROMPT, None)
        assert (await run_one(engine, step)).error is None
        again = await run_one(engine, step)
        assert again.error is not None
        assert "cached 11 positions" in again.error


@pytest.mark.parametrize("kind", list(ActivationType))
async def test_activations_of_every_type_are_taken(tiny: Tiny, kind: ActivationType) -> None:
    async with tiny("llama").engine(LAST) as engine:
        activation = rows(len(PROMPT), kind=kind)
        step = step_of(LAST, 0, PROMPT, activation, history=PROMPT)
        result = await run_one(engine, step)
        assert result.error is None
        assert result.sampled is not None


async def test_activations_leave_in_the_engines_type(tiny: Tiny) -> None:
    for dtype, kind in (
        ("float32", ActivationType.FLOAT32),
        ("bfloat16", ActivationType.BFLOAT16),
    ):
        async with tiny("llama").engine(FIRST, dtype=dtype) as engine:
            activation = (await run_one(engine, step_of(FIRST, 0, PROMPT, None))).activation
            assert activation is not None
            assert (activation.type, activation.rows, activation.columns) == (
                kind,
                len(PROMPT),
                HIDDEN,
            )
            assert len(activation.data) == activation.size_bytes


async def test_a_chunk_that_is_not_the_last_draws_nothing(tiny: Tiny) -> None:
    async with tiny("llama").engine(WHOLE) as engine:
        result = await run_one(engine, step_of(WHOLE, 0, PROMPT, None))
        assert result.error is result.activation is result.sampled is None


async def test_attempts_of_a_session_have_caches_of_their_own(tiny: Tiny) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        first = step_of(WHOLE, 0, PROMPT, None, history=PROMPT)
        results = (await engine.run((first, replace(first, attempt=2)))).results
        assert [result.error for result in results] == [None, None]
        engine.free_cache(SESSION, 1)
        history = (*PROMPT, model.greedy[0])
        later = step_of(WHOLE, len(PROMPT), history[-1:], None, history=history)
        freed, kept = (await engine.run((later, replace(later, attempt=2)))).results
        assert freed.error is not None
        assert kept.sampled is not None
        assert kept.sampled.token == model.greedy[1]


async def test_the_memory_of_caches_is_counted_and_freed(tiny: Tiny) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        assert engine.kv_bytes == 0
        await run_path([(engine, WHOLE)], 0, PROMPT, PROMPT)
        per_token = sum(model.spec.layer_kv_elements()) * engine.parameter_bytes
        assert engine.kv_bytes == KV_BLOCK_TOKENS * per_token
        engine.free_cache(*SESSION_KEY)
        engine.free_cache(*SESSION_KEY)
        await engine.run(())
        assert engine.kv_bytes == 0


async def test_a_broken_pass_forgets_the_session(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny("llama").engine(WHOLE) as engine:
        step = step_of(WHOLE, 0, PROMPT, None, history=PROMPT)

        def fail(*_arguments: Any) -> None:
            raise RuntimeError("the kernel broke\nand said much")

        with monkeypatch.context() as patch:
            patch.setattr(runner_module, "sample", fail)
            result = await run_one(engine, step)
        assert result.error == "RuntimeError: the kernel broke"
        assert engine.kv_bytes == 0
        assert (await run_one(engine, step)).error is None


async def test_progress_of_loading_is_told_on_the_loop_and_ends_whole(tiny: Tiny) -> None:
    model = tiny("llama")
    told: list[tuple[int, int]] = []
    async with model.engine() as engine:
        await engine.load_layers(MODEL, FIRST, lambda *progress: told.append(progress))
        # Callbacks of the last tensors may still be on their way.
        await engine.run(())
    spec = model.spec
    expected = 4 * (3 * spec.runs[0].parameters + spec.embedding_parameters)
    assert told[-1] == (expected, expected)
    assert told == sorted(told)


async def test_loading_what_is_held_reads_nothing(tiny: Tiny) -> None:
    told: list[tuple[int, int]] = []
    async with tiny("llama").engine(FIRST) as engine:
        await engine.load_layers(MODEL, LayerRange(1, 3), lambda *progress: told.append(progress))
    assert told == []


async def test_steps_run_while_layers_are_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        await engine.drop_layers(MODEL, LAST)
        await engine.load_layers(MODEL, LayerRange(4, 6))
        reading, proceed = threading.Event(), threading.Event()
        stage = engine._models[MODEL].stage
        read = stage.read

        def slow_read(*arguments: Any) -> Any:
            reading.set()
            assert proceed.wait(30)
            return read(*arguments)

        monkeypatch.setattr(stage, "read", slow_read)
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(engine.load_layers(MODEL, LAST))
            await asyncio.to_thread(reading.wait)
            assert (await run_one(engine, step_of(FIRST, 0, PROMPT, None))).error is None
            assert not loading.done()
            proceed.set()
        engine.free_cache(*SESSION_KEY)
        assert await generate([(engine, WHOLE)]) == model.greedy


async def test_layers_beyond_the_model_are_refused(tiny: Tiny) -> None:
    async with tiny("llama").engine() as engine:
        with pytest.raises(ModelRefusedError, match="has layers 0-5 only"):
            await engine.load_layers(MODEL, LayerRange(4, 7))
        with pytest.raises(ModelRefusedError, match="was not added"):
            await engine.load_layers(ModelId("other"), FIRST)


async def test_layers_that_do_not_fit_are_refused_with_numbers(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tiny("llama").engine() as engine:
        monkeypatch.setattr(engine, "_available_bytes", lambda: 1_000)
        with pytest.raises(ModelRefusedError, match=r"Layers 5 of tiny need \d+ MiB in float32"):
            await engine.load_layers(MODEL, LayerRange(5, 6))
        assert engine.held(MODEL) == ()


async def test_a_model_is_forgotten_with_its_sessions(tiny: Tiny) -> None:
    model = tiny("llama")
    async with model.engine(WHOLE) as engine:
        await run_path([(engine, WHOLE)], 0, PROMPT, PROMPT)
        await engine.remove_model(MODEL)
        await engine.remove_model(MODEL)
        assert engine.weight_bytes == engine.kv_bytes == 0
        assert engine.held(MODEL) == ()
        await engine.drop_layers(MODEL, FIRST)
        await engine.add_model(model.spec, model.checkpoint)
        await engine.load_layers(MODEL, WHOLE)
        assert await generate([(engine, WHOLE)]) == model.greedy


async def test_two_models_live_side_by_side(tiny: Tiny) -> None:
    llama, gpt2 = tiny("llama"), tiny("gpt2")
    other = ModelId("other")
    async with llama.engine(WHOLE) as engine:
        await engine.add_model(replace(gpt2.spec, id=other), gpt2.checkpoint)
        await engine.load_layers(other, WHOLE)
        step: StageStep = step_of(WHOLE, 0, PROMPT, None, history=PROMPT)
        results = (
            await engine.run((step, replace(step, model=other, session=SessionId("1" * 32))))
        ).results
        tokens = [result.sampled.token for result in results if result.sampled is not None]
        assert tokens == [llama.greedy[0], gpt2.greedy[0]]


async def test_files_of_another_model_are_refused(tiny: Tiny) -> None:
    llama, gpt2 = tiny("llama"), tiny("gpt2")
    async with Engine(device="cpu", dtype="float32") as engine:
        with pytest.raises(ModelRefusedError, match="holds another model"):
            await engine.add_model(llama.spec, gpt2.checkpoint)


async def test_a_missing_tensor_is_named_when_its_layer_is_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.4.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    spec = describe(checkpoint, model_id=MODEL, reference="tiny")
    async with Engine(device="cpu", dtype="float32") as engine:
        await engine.add_model(spec, checkpoint)
        await engine.load_layers(MODEL, FIRST)
        with pytest.raises(ModelRefusedError, match=r"lacks the tensor model\.layers\.4\.mlp\.up"):
            await engine.load_layers(MODEL, LAST)
        assert engine.held(MODEL) == (FIRST,)


async def test_weights_that_are_not_numbers_fail_the_draw_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    async with TinyBroken(folder).engine() as engine:
        result = await run_one(engine, step_of(WHOLE, 0, PROMPT, None, history=PROMPT))
        assert result.error == "ValueError: the model returned logits that are not numbers"


class TinyBroken:
    """A checkpoint that cannot generate in one process either."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = open_checkpoint(folder)
        self.spec = describe(self.checkpoint, model_id=MODEL, reference="tiny")

    def engine(self) -> Any:
        @asynccontextmanager
        async def entered() -> Any:
            async with Engine(device="cpu", dtype="float32") as engine:
                await engine.add_model(self.spec, self.checkpoint)
                await engine.load_layers(MODEL, WHOLE)
                yield engine

        return entered()


async def test_a_sharded_model_runs(tmp_path: Path) -> None:
    folder = make_tiny_model("mixtral", tmp_path / "model", shard_bytes=100_000)
    assert len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) > 2
    model = TinyModel(folder)
    async with model.engine(FIRST) as left, model.engine(LAST) as right:
        assert await generate([(left, FIRST), (right, LAST)]) == model.greedy


async def test_the_speed_is_measured_and_plausible() -> None:
    async with Engine(device="cpu", dtype="float32", threads=1) as engine:
        speed = await engine.measure_speed()
    assert 10**8 < speed < 10**14


def test_unknown_devices_and_types_are_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no usable device 'abacus'"):
        Engine(device="abacus")
    with pytest.raises(ConfigurationError, match="no element type 'int3'"):
        Engine(device="cpu", dtype="int3")


def test_what_is_chosen_can_be_asked() -> None:
    engine = Engine(device="cpu", dtype="auto")
    assert engine.device == "cpu"
    assert (engine.dtype, engine.parameter_bytes) in (("float32", 4), ("bfloat16", 2))


async def test_an_engine_that_was_not_entered_says_so(tiny: Tiny) -> None:
    engine = Engine(device="cpu", dtype="float32")
    engine.free_cache(*SESSION_KEY)
    with pytest.raises(RuntimeError, match="async with"):
        await engine.run(())
