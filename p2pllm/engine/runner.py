"""The engine: all models of a node, behind one thread that computes and one that loads.

    event loop --run, free_cache, drop_layers--> step thread    owns stages and caches
    event loop --add_model, load_layers--------> loader thread  builds parts on the side,
                                                                then hands them to the step thread

Only the step thread touches what a step uses, in the order it was asked, so there are no locks: a
cache is freed after the batch that uses it, and freshly loaded layers are moved in between two
batches, which takes moments. Reading weights takes as long as it takes, beside the steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch.nn import functional

from p2pllm.core.effects import StageStep
from p2pllm.core.events import StepResult, StepsFinished
from p2pllm.domain.errors import ModelRefusedError, P2PLLMError
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.layers import LayerRange, ranges_of
from p2pllm.domain.models import ModelSpec
from p2pllm.engine.anatomy import dissect
from p2pllm.engine.cache import StageCache
from p2pllm.engine.parts import Part, needed_elements
from p2pllm.engine.sampling import sample
from p2pllm.engine.stage import Stage
from p2pllm.engine.tensors import choose_device, choose_dtype, from_activation, to_activation
from p2pllm.weights.checkpoint import Checkpoint

OnProgress = Callable[[int, int], None]
"""Told bytes read so far and bytes to read; called on the event loop."""

_SPEED_SIZE = 4_096
_SPEED_MATRICES = 4
_SPEED_SECONDS_MAX = 0.5

_Result = TypeVar("_Result")
_CacheKey = tuple[SessionId, int]


@dataclass(slots=True)
class _Model:
    """What the engine keeps of one model."""

    spec: ModelSpec
    stage: Stage


@dataclass(slots=True)
class _Cached:
    """A session's cache and what it measured after its last step."""

    model: ModelId
    cache: StageCache
    size_bytes: int = 0


class _StepRefusedError(P2PLLMError):
    """A step cannot be run as it was asked; its session fails, others go on."""

    code = "step_refused"


class Engine:
    """Runs layers of transformers models.

    Construct, then `async with engine:`; every method is for the event loop.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `auto`, `float32`, `bfloat16`, `float16`; of weights, caches and activations.
        threads: for one operation on the CPU.

    Raises:
        ConfigurationError: there is no such device or type here.
    """

    def __init__(self, *, device: str = "auto", dtype: str = "auto", threads: int = 1) -> None:
        self._device = choose_device(device)
        self._dtype = choose_dtype(dtype, self._device)
        self._threads = threads
        self._models: dict[ModelId, _Model] = {}
        # Touched by the step thread alone.
        self._caches: dict[_CacheKey, _Cached] = {}
        # Written by the step thread, read by anyone.
        self._kv_bytes = 0
        self._weight_bytes = 0
        self._stepper: ThreadPoolExecutor | None = None
        self._loader: ThreadPoolExecutor | None = None

    async def __aenter__(self) -> Engine:
        self._stepper = ThreadPoolExecutor(1, "p2pllm-step", self._start_stepper)
        self._loader = ThreadPoolExecutor(1, "p2pllm-load")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        loader, stepper = self._loader, self._stepper
        self._loader = self._stepper = None
        for executor in (loader, stepper):
            if executor is not None:
                executor.shutdown(wait=False, cancel_futures=True)
        for executor in (loader, stepper):
            if executor is not None:
                await asyncio.to_thread(executor.shutdown)
        self._models.clear()
        self._caches.clear()
        self._kv_bytes = self._weight_bytes = 0

    @property
    def device(self) -> str:
        """The device in use."""
        return str(self._device)

    @property
    def dtype(self) -> str:
        """The element type in use: `float32`, `bfloat16` or `float16`."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def parameter_bytes(self) -> int:
        """Bytes of one weight or cached element."""
        return self._dtype.itemsize

    @property
    def weight_bytes(self) -> int:
        """Memory the held weights take."""
        return self._weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory the sessions' caches take, room to grow included."""
        return self._kv_bytes

    def held(self, model: ModelId) -> tuple[LayerRange, ...]:
        """Which layers of `model` can be run now."""
        known = self._models.get(model)
        return ranges_of(sorted(known.stage.held)) if known is not None else ()

    async def add_model(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        """Prepare a model; none of its layers are loaded yet. A known one is left as it is.

        Raises:
            ModelRefusedError: the files are of another model than the spec, or cannot be run.
        """
        if spec.id in self._models:
            return
        if checkpoint.fingerprint != spec.fingerprint:
            raise ModelRefusedError(
                f"{checkpoint.folder} holds another model than the swarm's {spec.id}; "
                "give this node the same version."
            )
        stage = await self._load(self._new_stage, checkpoint)
        self._models.setdefault(spec.id, _Model(spec, stage))
        await self._step(self._count_weights)

    async def remove_model(self, model: ModelId) -> None:
        """Forget a model, its layers and its sessions."""

        def forget() -> None:
            self._models.pop(model, None)
            for key in [key for key, cached in self._caches.items() if cached.model == model]:
                del self._caches[key]
            self._count_weights()
            self._count_caches()

        await self._step(forget)

    async def load_layers(
        self, model: ModelId, layers: LayerRange, on_progress: OnProgress | None = None
    ) -> None:
        """Load layers, beside the steps that run; those already held are left as they are.

        Raises:
            ModelRefusedError: the model was not added, the checkpoint lacks a tensor or has one of
                another shape, or the memory does not suffice.
        """
        known = self._known(model)
        if layers.stop > known.spec.num_layers:
            raise ModelRefusedError(f"{model} has layers 0-{known.spec.num_layers - 1} only.")
        wanted = range(layers.start, layers.stop)
        missing = [layer for layer in wanted if layer not in known.stage.held]
        if not missing:
            return
        loop = asyncio.get_running_loop()
        read = _ReadBytes(self._check_room(known, missing), loop, on_progress)
        try:
            part, loaded = await self._load(known.stage.read, missing, read.add)
            await self._step(known.stage.install, part, loaded)
        except MemoryError as error:
            raise self._no_room(known, missing, available=None) from error
        except torch.OutOfMemoryError as error:
            raise self._no_room(known, missing, available=None) from error
        await self._step(self._count_weights)

    async def drop_layers(self, model: ModelId, layers: LayerRange) -> None:
        """Free the weights of `layers`; steps that want them fail from now on."""
        known = self._models.get(model)
        if known is None:
            return
        await self._step(known.stage.drop, layers)
        await self._step(self._count_weights)

    async def run(self, steps: Sequence[StageStep]) -> StepsFinished:
        """Run a batch. A step that fails has an error in its result; the others go on."""
        return await self._step(self._run_batch, tuple(steps))

    def free_cache(self, session: SessionId, attempt: int) -> None:
        """Free a session's cache, after the running batch."""
        if self._stepper is not None:
            self._stepper.submit(self._free, (session, attempt))

    async def measure_speed(self) -> int:
        """Weight bytes per second that a decode step streams, measured in under a second.

        One row is multiplied with matrices that are together larger than processor caches, as one
        token is with a model's weights; the best of several rounds counts, since noise only slows.
        """
        return await self._step(self._measure_speed)

    def _known(self, model: ModelId) -> _Model:
        known = self._models.get(model)
        if known is None:
            raise ModelRefusedError(f"{model} was not added to this node.")
        return known

    async def _step(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        if self._stepper is None:
            raise RuntimeError("the engine is not running: enter it with `async with`")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._stepper, function, *arguments)

    async def _load(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        if self._loader is None:
            raise RuntimeError("the engine is not running: enter it with `async with`")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loader, function, *arguments)

    def _start_stepper(self) -> None:
        torch.set_num_threads(self._threads)

    def _new_stage(self, checkpoint: Checkpoint) -> Stage:
        return Stage(dissect(checkpoint), checkpoint, dtype=self._dtype, device=self._device)

    def _check_room(self, known: _Model, layers: Sequence[int]) -> int:
        """Bytes to read.

        Raises:
            ModelRefusedError: the layers do not fit into free memory.
        """
        needed = self._needed_bytes(known, layers)
        available = self._available_bytes()
        if needed > available:
            raise self._no_room(known, layers, available=available)
        return needed

    def _needed_bytes(self, known: _Model, layers: Sequence[int]) -> int:
        last = known.spec.num_layers - 1
        part = Part(frozenset(layers), entry=0 in layers, exit=last in layers)
        return needed_elements(known.stage.anatomy, part) * self.parameter_bytes

    def _no_room(
        self, known: _Model, layers: Sequence[int], *, available: int | None
    ) -> ModelRefusedError:
        names = ", ".join(str(part) for part in ranges_of(layers))
        there = "less" if available is None else f"{available / 2**20:,.0f} MiB"
        return ModelRefusedError(
            f"Layers {names} of {known.spec.id} need "
            f"{self._needed_bytes(known, layers) / 2**20:,.0f} MiB in {self.dtype}, but {there} is "
            f"free on {self.device}; free memory, or add a node."
        )

    def _available_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return psutil.virtual_memory().available

    def _run_batch(self, steps: tuple[StageStep, ...]) -> StepsFinished:
        started = time.perf_counter()
        results: list[StepResult] = []
        with torch.inference_mode():
            for step in steps:
                try:
                    results.append(self._run_step(step))
                except _StepRefusedError as error:
                    results.append(StepResult(step.session, step.attempt, error=str(error)))
                except Exception as error:
                    # A pass that broke off has advanced some layers' caches and not others'.
                    self._caches.pop((step.session, step.attempt), None)
                    results.append(StepResult(step.session, step.attempt, error=_describe(error)))
        self._count_caches()
        return StepsFinished(tuple(results), time.perf_counter() - started)

    def _run_step(self, step: StageStep) -> StepResult:
        known = self._models.get(step.model)
        if known is None:
            raise _StepRefusedError(f"{step.model} was not added to this node")
        stage, layers = known.stage, step.layers
        self._check_step(step, known)
        received = None
        if step.activation is not None:
            received = from_activation(step.activation, dtype=self._dtype, device=self._device)
        key = (step.session, step.attempt)
        cached = self._caches.get(key)
        length = cached.cache.length(layers.start) if cached is not None else 0
        if length != step.position:
            raise _StepRefusedError(
                f"layers {layers} have cached {length} positions of this session, but the step "
                f"starts at {step.position}"
            )
        if cached is None:
            cached = self._caches[key] = _Cached(step.model, stage.new_cache())
        tokens = torch.tensor(step.tokens, dtype=torch.long, device=self._device)
        arguments = (layers, step.position, tokens, received, cached.cache)
        if not step.is_last:
            activation = to_activation(stage.hidden_states(*arguments).to(self._dtype))
            result = StepResult(step.session, step.attempt, activation=activation)
        elif step.draw is None:
            stage.hidden_states(*arguments)
            result = StepResult(step.session, step.attempt)
        else:
            logits = stage.logits(*arguments).to(dtype=torch.float32, device="cpu").numpy()
            logits = np.ascontiguousarray(logits)[: known.spec.vocabulary_size]
            result = StepResult(step.session, step.attempt, sampled=sample(logits, step.draw))
        cached.size_bytes = cached.cache.size_bytes()
        return result

    def _check_step(self, step: StageStep, known: _Model) -> None:
        """Refuse what the model cannot take, before a kernel reads outside of its tables."""
        spec, layers = known.spec, step.layers
        missing = [
            layer for layer in range(layers.start, layers.stop) if layer not in known.stage.held
        ]
        if missing:
            raise _StepRefusedError(f"layer {missing[0]} of {spec.id} is not held here")
        if step.is_last != (layers.stop == spec.num_layers):
            raise _StepRefusedError(f"layers {layers} of {spec.num_layers}: wrong end of path")
        if not step.tokens:
            raise _StepRefusedError("a step needs a token")
        if step.position + len(step.tokens) > spec.context_length_max:
            raise _StepRefusedError(
                f"position {step.position + len(step.tokens) - 1} is beyond the context of "
                f"{spec.context_length_max}"
            )
        if min(step.tokens) < 0 or max(step.tokens) >= spec.vocabulary_size:
            raise _StepRefusedError(f"a token is outside the vocabulary of {spec.vocabulary_size}")
        if (step.activation is None) != (layers.start == 0):
            raise _StepRefusedError("an activation comes on every hop but the first")
        if step.activation is not None and (
            step.activation.rows != len(step.tokens) or step.activation.columns != spec.hidden_size
        ):
            raise _StepRefusedError(
                f"the activation has {step.activation.rows} x {step.activation.columns} elements "
                f"for {len(step.tokens)} tokens of {spec.hidden_size}"
            )

    def _free(self, key: _CacheKey) -> None:
        self._caches.pop(key, None)
        self._count_caches()

    def _count_caches(self) -> None:
        self._kv_bytes = sum(cached.size_bytes for cached in self._caches.values())

    def _count_weights(self) -> None:
        self._weight_bytes = sum(model.stage.weight_bytes() for model in self._models.values())

    def _measure_speed(self) -> int:
        with torch.inference_mode():
            shape = (_SPEED_SIZE, _SPEED_SIZE)
            matrices = [
                torch.ones(shape, dtype=self._dtype, device=self._device)
                for _ in range(_SPEED_MATRICES)
            ]
            output = torch.ones((1, _SPEED_SIZE), dtype=self._dtype, device=self._device)
            size = sum(matrix.numel() * matrix.element_size() for matrix in matrices)
            best_s = float("inf")
            started = time.perf_counter()
            while time.perf_counter() - started < _SPEED_SECONDS_MAX:
                round_started = time.perf_counter()
                for matrix in matrices:
                    output = functional.linear(output, matrix).clamp_(max=1)
                output[0, 0].item()  # waits for the device
                best_s = min(best_s, time.perf_counter() - round_started)
        return int(size / best_s)


class _ReadBytes:
    """Adds up what loader threads have read, and tells the event loop."""

    def __init__(
        self, total: int, loop: asyncio.AbstractEventLoop, on_progress: OnProgress | None
    ) -> None:
        self._done = 0
        self._total = total
        self._loop = loop
        self._on_progress = on_progress

    def add(self, count: int) -> None:
        if self._on_progress is not None:
            self._loop.call_soon_threadsafe(self._tell, count)

    def _tell(self, count: int) -> None:
        self._done += count
        # The file's element type may be wider than the engine's.
        self._total = max(self._total, self._done)
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
