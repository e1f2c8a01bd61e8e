"""One reward model: texts -> verdicts. The same text has the same score whatever it is scored beside.

Left out: normalisation and the weighted sum (rewards.py), and where the values come from (local.py, server.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from grpo_math.best_of import sigmoid
from grpo_math.config_learned import Aggregate, LearnedReward
from grpo_math.learned.checks import Trained
from grpo_math.learned.reading import Asked, Reader, Steps, Values
from grpo_math.types import UserError, Verdict

AGGREGATES: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "last": lambda p: p[-1],
    "min": min,  # a solution is as right as its worst step: Math-Shepherd, arXiv:2312.08935
    "prod": math.prod,  # the probability that each step is right: Lightman et al., arXiv:2305.20050
    "mean": lambda p: math.fsum(p) / len(p),
}


class RewardModel:
    """key: rewards.N, for messages."""

    def __init__(self, reward: LearnedReward, read: Reader, model: Values, how: Trained, key: str) -> None:
        self.reward, self.read, self.model, self.how, self.key = reward, read, model, how, key
        self.aggregate = AGGREGATES[reward.aggregate or "min"]

    @property
    def p99(self) -> float | None:
        """The 99th percentile of its training scores, as verdicts have them: of outcomes, or of steps as
        probabilities."""
        if self.how.p99 is None or self.reward.kind == "outcome":
            return self.how.p99
        return float(sigmoid(self.how.p99))

    def verdicts(self, texts: Sequence[Asked]) -> list[Verdict]:
        """outcome: reward is the value after the whole text. process: step_rewards are (end of the step in characters,
        sigma(value), the probability that it is right), and reward is their aggregate. The reason is `unknown`: a
        score does not say whether the answer is right. What cannot be scored has no reward, and says why in `detail`;
        nothing is ever cut. Raises UserError for a score that is no number."""
        read = [self.read_or_why_not(partial(self.read, text)) for text in texts]
        values = iter(self.model.values([steps.read for steps in read if isinstance(steps, Steps)]))
        return [
            self._verdict(steps, next(values)) if isinstance(steps, Steps) else Verdict(None, "unknown", steps)
            for steps in read
        ]

    def read_or_why_not(self, read: Callable[[], Steps]) -> Steps | str:
        """What `read` gives, or why it cannot be scored."""
        try:
            steps = read()
        except UserError as error:
            return str(error)
        if steps.read.tokens > self.model.context:
            return f"{steps.read.tokens:,} tokens are more than the {self.model.context:,} that it reads"
        return steps

    def probabilities(self, values: Sequence[float]) -> list[float]:
        """That each step is right, of a process model's values. Raises UserError where one is no number."""
        self._check(values)
        return [float(p) for p in sigmoid(values)]

    def _check(self, values: Sequence[float]) -> None:
        if bad := [value for value in values if not math.isfinite(value)]:
            raise UserError(
                f"{self.key}.model={self.reward.model} gives a score of {bad[0]}: its weights are broken, or "
                f"{self.key}.dtype is too coarse for them; try {self.key}.dtype=float32"
            )

    def _verdict(self, steps: Steps, values: Sequence[float]) -> Verdict:
        if self.reward.kind == "outcome":
            self._check(values)
            return Verdict(values[0], "unknown")
        right = self.probabilities(values)
        return Verdict(self.aggregate(right), "unknown", step_rewards=tuple(zip(steps.ends, right, strict=True)))
