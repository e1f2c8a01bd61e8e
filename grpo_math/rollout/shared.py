"""One engine on each rank, used as one: every rank samples its share of the prompts and gets all completions."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from grpo_math.ranks import Ranks
from grpo_math.rollout.engine import RolloutEngine
from grpo_math.types import Completion, Prompt, Sampling


class SharedEngine:
    """split: over how many ranks each copy of the model is split (tensor parallelism); those sample the same prompts
    together."""

    def __init__(self, engine: RolloutEngine, ranks: Ranks, split: int = 1) -> None:
        self.engine, self.ranks, self.split = engine, ranks, split

    @property
    def context(self) -> int:
        return self.engine.context

    def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        team = Ranks(self.ranks.rank // self.split, self.ranks.size // self.split)
        completions = self.ranks.together(lambda: self.engine.generate(team.share(prompts), sampling))
        speaks = self.ranks.rank % self.split == 0
        return self.ranks.gather(completions if speaks else [])

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.engine.update_weights(weights, version)

    def sleep(self) -> None:
        self.engine.sleep()

    def close(self) -> None:
        self.engine.close()
