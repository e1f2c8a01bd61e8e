"""The protocol between the loop and whatever samples. Recipes never ask which implementation they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from grpo_math.types import Completion, Prompt, Sampling


class RolloutEngine(Protocol):
    @property
    def context(self) -> int:
        """Tokens of prompt and completion together that it can read; prompts that leave no room must not be asked."""

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """sampling.n completions for each prompt, in the order of the prompts, each with the sampler's logprobs."""

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sample from these weights from now on; `weights` are full tensors under Hugging Face names."""

    def sleep(self) -> None:
        """Give GPU memory back to training; a no-op where there is none to give."""

    def close(self) -> None: ...
