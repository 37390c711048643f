"""Train the built-in model: ``python -m p2pllm.builtin.train --out DIR``.

Everything is drawn from the seed: the tokenizer's texts, the first weights, and every step's
conversations, which are written on the fly and never seen twice. A run can be stopped at any time
and taken up again with ``--resume``: the step alone says what comes next.

A run starts with few layers and grows to all of them part of the way through. What takes long to
learn is not the grammar but carrying a name from the request through the story: a model of all
twelve layers from the start wrote well-formed stories after 300 steps, and after 600 none that
was about what was asked for. Four layers learn it sooner, at a third of the cost per step.

The held-out stories come from seeds that no training step uses (see
:func:`p2pllm.builtin.evaluate.held_out_source`).
"""

import bisect
import json
import random
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import safetensors
import safetensors.torch
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from p2pllm.builtin.architecture import Shape, grown, new_model
from p2pllm.builtin.batches import NOT_SAID, Batch, make_batches, summed_loss
from p2pllm.builtin.chat import conversation
from p2pllm.builtin.evaluate import evaluate
from p2pllm.builtin.muon import Muon
from p2pllm.builtin.tokenizer import encode_conversation, train_tokenizer

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training run depends on, besides the device.

    Attributes:
        seed: Of everything.
        steps: In all.
        shallow_layers: How many layers a run starts with.
        growth_step: Before which step the model grows to all its layers.
        cycle_starts: At which steps the learning rates rise again, to fall until the next.
        cycle_peaks: How high they rise in each cycle, as a share of the full rates.
        cycle_lows: How low they fall in each cycle, as a share of its peak.
        tokens_per_step: About how many tokens of conversation a step learns from.
        warmup_steps: Over which the learning rates rise, at the start of every cycle.
        matrix_rate: Muon's learning rate, for the matrices in the layers.
        other_rate: AdamW's learning rate, for the embedding and the norms.
        shape: Of the model.
    """

    seed: int = 1
    steps: int = 5500
    shallow_layers: int = 4
    growth_step: int = 4200
    cycle_starts: tuple[int, ...] = (0, 1000, 2400, 4200, 4700)
    cycle_peaks: tuple[float, ...] = (1.0, 0.7, 0.7, 0.4, 0.4)
    cycle_lows: tuple[float, ...] = (0.1, 0.1, 0.1, 0.0, 0.0)
    tokens_per_step: int = 1536
    warmup_steps: int = 50
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    shape: Shape = field(default_factory=Shape)

    def rate_factor(self, step: int) -> float:
        """Return by what the learning rates are multiplied at ``step``, counted from 0."""
        cycle = bisect.bisect_right(self.cycle_starts, step) - 1
        start, peak = self.cycle_starts[cycle], self.cycle_peaks[cycle]
        end = (*self.cycle_starts[1:], self.steps)[cycle]
        rising = (step - start + 1) / self.warmup_steps
        falling = 1 - (1 - self.cycle_lows[cycle]) * (step - start) / max(1, end - start)
        return peak * min(1.0, rising, falling)


_DEFAULTS = Plan()


def draw_batches(plan: Plan, step: int, tokenizer: PreTrainedTokenizerFast) -> list[Batch]:
    """Write and encode the conversations that ``step`` learns from."""
    source = random.Random(f"train {plan.seed} {step}")
    rows: list[tuple[list[int], list[bool]]] = []
    tokens = 0
    while tokens < plan.tokens_per_step:
        ids, is_said = encode_conversation(tokenizer, conversation(source))
        rows.append((ids, is_said))
        tokens += len(ids)
    return make_batches(rows, rows_per_batch=10, padding=_token(tokenizer.eos_token_id))


class Trainer:
    """A training run at some step.

    Call :meth:`step` until ``next_step`` is ``plan.steps``; :meth:`save_checkpoint` and
    :meth:`load_checkpoint` carry a run over a restart.
    """

    def __init__(
        self, plan: Plan, tokenizer: PreTrainedTokenizerFast, device: torch.device
    ) -> None:
        self.plan = plan
        self.device = device
        self.tokenizer = tokenizer
        shallow = replace(plan.shape, layers=plan.shallow_layers)
        self._adopt(
            new_model(
                shallow,
                vocabulary=len(self.tokenizer),
                begin_token=_token(self.tokenizer.bos_token_id),
                end_token=_token(self.tokenizer.eos_token_id),
                seed=plan.seed,
            )
        )
        self.next_step = 0

    def _adopt(self, model: LlamaForCausalLM) -> None:
        """Train ``model`` from here on, with optimisers that remember nothing."""
        self.model = model.to(self.device)  # pyright: ignore[reportArgumentType]
        named = list(self.model.named_parameters())
        in_layers = [each for name, each in named if each.ndim == 2 and "embed" not in name]
        others = [each for name, each in named if each.ndim != 2 or "embed" in name]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(in_layers, lr=self.plan.matrix_rate),
            "adam": torch.optim.AdamW(
                others, lr=self.plan.other_rate, betas=(0.9, 0.98), weight_decay=0.0
            ),
        }

    def step(self) -> float:
        """Learn from the next step's conversations; return their mean loss in nats per token."""
        if self.next_step == self.plan.growth_step:
            self._adopt(grown(self.model, self.plan.shape.layers))
        batches = draw_batches(self.plan, self.next_step, self.tokenizer)
        said = sum(int((batch.targets != NOT_SAID).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            moved = Batch(batch.inputs.to(self.device), batch.targets.to(self.device))
            loss = summed_loss(self.model, moved) / said
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.plan.rate_factor(self.next_step)
        rates = {"muon": self.plan.matrix_rate, "adam": self.plan.other_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.next_step += 1
        return total

    def save_checkpoint(self, path: Path) -> None:
        """Write the weights, the optimisers' state and the step to ``path``, all or nothing."""
        tensors = {
            f"model/{name}": each.detach().clone() for name, each in self.model.named_parameters()
        }
        for optimizer_name, optimizer in self.optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    tensors[f"{optimizer_name}/{index}/{name}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        safetensors.torch.save_file(
            tensors,
            unfinished,
            metadata={"next_step": str(self.next_step), "plan": json.dumps(asdict(self.plan))},
        )
        unfinished.replace(path)

    def load_checkpoint(self, path: Path) -> None:
        """Go on where ``path`` left off.

        Raises:
            ValueError: The checkpoint is of another plan.
        """
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        if metadata["plan"] != json.dumps(asdict(self.plan)):
            raise ValueError(f"The checkpoint {path} is of another plan: {metadata['plan']}")
        self.next_step = int(metadata["next_step"])
        if self.next_step > self.plan.growth_step:
            self._adopt(grown(self.model, self.plan.shape.layers))
        states: dict[str, dict[int, dict[str, torch.Tensor]]] = {
            name: {} for name in self.optimizers
        }
        parameters = dict(self.model.named_parameters())
        for key, tensor in safetensors.torch.load_file(path).items():
            owner, _, rest = key.partition("/")
            if owner == "model":
                parameters[rest].data.copy_(tensor)
            else:
                index, _, name = rest.partition("/")
                states[owner].setdefault(int(index), {})[name] = tensor
        for name, optimizer in self.optimizers.items():
            groups: Any = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states[name], "param_groups": groups})

    def export(self, folder: Path) -> None:
        """Write the model and its tokenizer as transformers loads them, in bfloat16."""
        end_token = _token(self.tokenizer.eos_token_id)
        # Weights of a rounded copy, so that a run may go on after an export.
        rounded = LlamaForCausalLM(self.model.config)
        rounded.load_state_dict(self.model.state_dict())
        rounded = rounded.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
        rounded.generation_config = GenerationConfig(
            bos_token_id=_token(self.tokenizer.bos_token_id),
            eos_token_id=end_token,
            pad_token_id=end_token,
            max_new_tokens=400,
        )
        rounded.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _token(token: Any) -> int:
    """Return a special token's id, which the tokenizer's types hold possibly absent."""
    assert isinstance(token, int)
    return token


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``: "auto", "cpu" or "cuda"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model, the report, the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Everything is drawn from it.")] = _DEFAULTS.seed,
    steps: Annotated[int, typer.Option(min=1, help="Training steps in all.")] = _DEFAULTS.steps,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: torch decides.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="In steps.")] = 100,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in OUT.")] = False,
) -> None:
    """Train the built-in model, then write it, its held-out perplexity and samples to OUT."""
    if threads:
        torch.set_num_threads(threads)
    console = Console()
    # A shorter or longer run grows, and goes through its cycles, at the same shares of its length.
    plan = Plan(
        seed=seed,
        steps=steps,
        growth_step=_DEFAULTS.growth_step * steps // _DEFAULTS.steps,
        cycle_starts=tuple(start * steps // _DEFAULTS.steps for start in _DEFAULTS.cycle_starts),
    )
    trainer = Trainer(plan, train_tokenizer(seed), choose_device(device))
    checkpoint = out / CHECKPOINT_NAME
    if resume and checkpoint.exists():
        trainer.load_checkpoint(checkpoint)
        console.print(f"Going on at step {trainer.next_step}.")
    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, completed=trainer.next_step, loss=float("nan"))
        smoothed: float | None = None
        while trainer.next_step < steps:
            loss = trainer.step()
            smoothed = loss if smoothed is None else 0.95 * smoothed + 0.05 * loss
            progress.update(task, completed=trainer.next_step, loss=smoothed)
            if trainer.next_step % checkpoint_every == 0:
                trainer.save_checkpoint(checkpoint)
                if not console.is_terminal:
                    console.print(f"step {trainer.next_step}: loss {smoothed:.3f}")
    model_folder = out / "model"
    trainer.export(model_folder)
    report = evaluate(model_folder)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print_json(data=report)


if __name__ == "__main__":
    typer.run(main)
