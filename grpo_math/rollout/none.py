"""In an engine's place where nothing is sampled: a model of values cannot."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from grpo_math.types import Completion, Prompt, Sampling


class NoEngine:
    def __init__(self, context: int) -> None:
        self.context = context

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        raise AssertionError("a recipe that samples has a policy")

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise AssertionError("there is nobody to sample from them")

    def sleep(self) -> None:
        pass

    def close(self) -> None:
        pass
