"""Conversations as tensors, and what a model makes of them."""

from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM

from p2pllm.builtin.tokenizer import POSITIONS_MAX

# What cross_entropy leaves out, torch's own default.
NOT_SAID = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Conversations of like length, padded at the end.

    Attributes:
        inputs: [rows, positions], token ids.
        targets: [rows, positions], the next token ids; -100 where nothing is to be learned.
    """

    inputs: torch.Tensor
    targets: torch.Tensor


def make_batches(
    rows: list[tuple[list[int], list[bool]]], *, rows_per_batch: int, padding: int
) -> list[Batch]:
    """Group encoded conversations by length and pad each group.

    Padding stands at the end, where a causal model cannot see it from the tokens before; so no
    attention mask is needed.
    """
    rows = sorted(rows, key=lambda row: len(row[0]))
    batches: list[Batch] = []
    for start in range(0, len(rows), rows_per_batch):
        group = rows[start : start + rows_per_batch]
        positions = min(POSITIONS_MAX, max(len(ids) for ids, _ in group) - 1)
        inputs = torch.full((len(group), positions), padding)
        targets = torch.full((len(group), positions), NOT_SAID)
        for row, (ids, is_said) in enumerate(group):
            count = min(positions, len(ids) - 1)
            inputs[row, :count] = torch.tensor(ids[:count])
            wanted = torch.tensor(ids[1 : count + 1])
            wanted[~torch.tensor(is_said[1 : count + 1])] = NOT_SAID
            targets[row, :count] = wanted
        batches.append(Batch(inputs, targets))
    return batches


def summed_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the sum of the negative log-likelihoods (nats) of a batch's targets; a scalar."""
    logits = model(input_ids=batch.inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        batch.targets.flatten(),
        ignore_index=NOT_SAID,
        reduction="sum",
    )
