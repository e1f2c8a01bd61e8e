"""PPO-ptx: completions of files that are imitated in the same updates, so that the policy does not forget them.

    loss + coefficient * mean_t -log pi(y_t | x, y_<t)      InstructGPT, arXiv:2203.02155, eq. 2

Left out: reading the files (examples/), which sft does the same way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import LossFn
from grpo_math.batch import Batch, pad_rows
from grpo_math.losses import negative_log_likelihood, token_mean
from grpo_math.recipes.from_files import example_stream
from grpo_math.recipes.parts import Parts


class Imitation:
    def __init__(self, cfg: config.GRPO, parts: Parts, settings: config.Pretraining) -> None:
        self.settings, self.pad_id = settings, parts.policy.pad_id
        self.stream = example_stream(cfg, parts, settings.data)

    def term(self) -> tuple[Batch, LossFn]:
        """The next update's rows, and their part of the loss."""
        examples = self.stream.take(self.settings.examples)
        rows = [(example.prompt, example.completion) for example in examples]
        batch = pad_rows(rows, [True] * len(rows), self.pad_id)
        return replace(batch, weights=token_mean(batch.loss_mask, 1) * self.settings.coefficient), loss

    def state(self) -> dict[str, Any]:
        return self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.stream.restore(state)


def loss(logprobs: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    value, _ = negative_log_likelihood(logprobs, entropy, part)
    return value, {"pretraining/nll": -logprobs.detach()}
