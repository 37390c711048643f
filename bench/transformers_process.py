"""The reference of the swarm benchmark: one process with transformers and nothing else.

`python -m bench.transformers_process THREADS [MODEL]` answers one JSON line for each line of
standard input. Without a model it has just imported torch and transformers: the floor of memory.
With one it generates greedily when given `{"prompt": [ids], "tokens": n}`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers


class _Clock(transformers.StoppingCriteria):
    """Notes when each token was there; never stops anything."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.times_s.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def generate(model: Any, prompt: list[int], tokens: int) -> dict[str, Any]:
    """One greedy generation."""
    clock = _Clock()
    ids = torch.tensor([prompt])
    started_s = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
    decode_s = clock.times_s[-1] - clock.times_s[0]
    return {
        "token_ids": output[0, len(prompt) :].tolist(),
        "first_s": clock.times_s[0] - started_s,
        "tokens_per_s": (len(clock.times_s) - 1) / decode_s,
    }


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(int(sys.argv[1]))
    model: Any = None
    if len(sys.argv) > 2:
        transformers.utils.logging.set_verbosity_error()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            sys.argv[2], dtype=torch.float32, local_files_only=True
        )
        model.eval()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(generate(model, asked["prompt"], asked["tokens"])), flush=True)


if __name__ == "__main__":
    main()
