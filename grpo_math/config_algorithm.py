"""The sections of the configuration that say what is learnt: loss, KL, correction, and which samples count.

The names are those of the tables in losses.py, advantages.py, kl.py and correction.py; a test holds them equal.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo_math.config_base import Count, NonNegative, Positive, Section, Share

AdvantageName = Literal[
    "group_norm", "group_center", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline", "maxrl", "pass_at_k", "gpg"
]
LossName = Literal["grpo", "bnpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "reinforce"]
RatioName = Literal["token", "sequence"]
SurrogateName = Literal["clip", "dual_clip", "cispo", "sapo", "reinforce"]
ReductionName = Literal["sequence_mean", "token_mean", "constant_length", "sequence_sum"]
CorrectionName = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"]
KLName = Literal["k1", "k2", "k3"]


class Loss(Section):
    """ratio x surrogate x reduction. `name` is a row of losses.LOSSES; the three parts override it one by one."""

    name: LossName = "grpo"
    ratio: RatioName | None = None
    surrogate: SurrogateName | None = None
    reduction: ReductionName | None = None
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.2
    dual_clip: Annotated[float, Field(gt=1)] = 3.0
    cispo_low: NonNegative = 0.0
    cispo_high: Positive = 5.0
    sapo_positive: Positive = 1.0
    sapo_negative: Positive = 1.05
    constant_length: Count | None = None
    entropy_bonus: float = 0.0

    shorthand = "name"
    # dapo is clip-higher; gspo clips a geometric mean, which moves a thousand times less than a token's ratio
    by_name = {"dapo": {"clip_high": 0.28}, "gspo": {"clip_low": 3e-4, "clip_high": 4e-4}}


class KL(Section):
    """Distance to a reference policy. coefficient 0 is off: the reference is then neither loaded nor read. per_token:
    in the reward, each token answers for its own distance and that of those after it, and not for those before."""

    coefficient: NonNegative = 0.0
    estimator: KLName = "k3"
    where: Literal["loss", "reward"] = "loss"
    unbiased: bool = True
    per_token: bool = False
    target: Positive | None = None
    reference: Literal["fixed", "refresh", "ema"] = "fixed"
    refresh_every: Count = 100
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.99

    @model_validator(mode="after")
    def _has_gradient(self) -> KL:
        if self.coefficient and self.where == "loss" and self.estimator == "k1" and not self.unbiased:
            raise ValueError(
                "estimator=k1 as a plain loss has an expected gradient of 0; set unbiased=true (importance-weighted), "
                "or where=reward"
            )
        if self.coefficient and self.where == "loss" and self.estimator == "k2" and self.unbiased:
            raise ValueError(
                "estimator=k2 as a plain loss has the exact gradient of the KL already, and weighting it would spoil "
                "that; set unbiased=false"
            )
        if self.per_token and self.where != "reward":
            raise ValueError("per_token=true is of a KL in the reward, and where=loss; set where=reward")
        if self.per_token and not self.coefficient:
            raise ValueError("per_token=true spreads a KL whose coefficient is 0; set coefficient=0.01, for example")
        if self.target and not self.coefficient:
            raise ValueError(
                f"target={self.target} adapts the coefficient, which is 0; set coefficient to a start value"
            )
        return self


class Correction(Section):
    """Weights for the gap between the sampler's and the trainer's log-probabilities (see correction.py).

    low and high bound the ratio of a token or of a whole completion; for geometric_mask, that of a mean token, which
    hardly moves, so that it has defaults of its own: 0.999 and 1.001."""

    name: CorrectionName = "none"
    low: NonNegative = 0.5
    high: Positive = 2.0

    shorthand = "name"

    by_name = {"geometric_mask": {"low": 0.999, "high": 1.001}}

    @model_validator(mode="after")
    def _range(self) -> Correction:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}; try low=0.5 and high=2.0")
        return self


class DynamicSampling(Section):
    """Sample on until the step is full of groups whose task rewards differ (DAPO), at most `max_rounds` rounds."""

    enabled: bool = False
    max_rounds: Count = 8


class Overlong(Section):
    """What becomes of completions cut at max_tokens.

    mask: leave them out of the loss. penalty_buffer: DAPO's soft penalty, falling from 0 to -penalty over the last
    share of max_tokens (0 is off).
    """

    mask: bool = False
    penalty_buffer: Share = 0.0
    penalty: Positive = 1.0
