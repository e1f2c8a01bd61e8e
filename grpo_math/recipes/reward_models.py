"""The reward models of a GRPO run, from step to step: they score, are watched, and may go on learning.

With verifiers alone there are none, and nothing happens. Left out: scores (learned/), and how they learn
(retraining.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.backend.base import Metrics
from grpo_math.learned.make import make_learned
from grpo_math.learned.rewards import LearnedRewards
from grpo_math.recipes.parts import Parts, Stopwatch
from grpo_math.recipes.retraining import Retraining
from grpo_math.types import Group


class RewardModels:
    """stopped: why the run is to end, once an alarm has said so."""

    stopped: str | None = None

    def score(self, groups: list[Group], watch: Stopwatch) -> tuple[list[Group], Metrics]:
        """The groups with the models' scores in their rewards."""
        return groups, {}

    def look(self, groups: Sequence[Group], step: int, kl: float, watch: Stopwatch) -> Metrics:
        """After the step's updates. kl: mean nats a token from the reference, NaN where that is not known."""
        return {}

    def save(self, path: Path) -> dict[str, Any] | None:
        return None

    def load(self, path: Path, state: dict[str, Any] | None) -> None:
        pass

    def close(self) -> None:
        pass


class Watched(RewardModels):
    def __init__(self, cfg: config.GRPO, parts: Parts, learned: LearnedRewards) -> None:
        self.learned = learned
        self.retraining = None if cfg.retraining is None else Retraining(cfg, parts, learned)

    def score(self, groups: list[Group], watch: Stopwatch) -> tuple[list[Group], Metrics]:
        with watch("learned"):
            scored = self.learned.score(groups)
        return scored, self.learned.metrics

    def look(self, groups: Sequence[Group], step: int, kl: float, watch: Stopwatch) -> Metrics:
        metrics = self.learned.watch.look(groups, kl)
        self.stopped = self.learned.watch.stopped
        if self.retraining is not None:
            with watch("retraining"):
                metrics |= self.retraining.learn(groups, step)
        return metrics

    def save(self, path: Path) -> dict[str, Any] | None:
        if self.retraining is not None:
            self.retraining.save(path)
        return self.learned.state()

    def load(self, path: Path, state: dict[str, Any] | None) -> None:
        assert state is not None
        self.learned.restore(state)
        if self.retraining is not None:
            self.retraining.load(path)

    def close(self) -> None:
        if self.retraining is not None:
            self.retraining.close()
        self.learned.close()


def reward_models(cfg: config.GRPO, parts: Parts) -> RewardModels:
    learned = make_learned(cfg, parts)
    return RewardModels() if learned is None else Watched(cfg, parts, learned)
