"""The sections of the configuration that say which tokens of a completion its reward is put down to.

Left out: advantages of whole completions, which need no section (config_algorithm.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo_math.config_base import Count, CountOrNone, NonNegative, PathText, Positive, Section, Share
from grpo_math.config_data import Data

CreditName = Literal["process", "vine", "gae"]


class Process(Section):
    """`advantage: process`: of the steps' rewards, as a verifier or a process reward model gives them. share: of it in
    the advantage; what is left of 1 is the outcome's, group_norm of the completion's whole reward. scale: what the
    rewards of the steps, less their mean over the group, are divided by: their standard deviation there, or nothing."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    scale: Literal["std", "none"] = "std"


class Vine(Section):
    """`advantage: vine`: a step is worth what it adds to the share of `continuations` from there that are right.

    boundary: where a step ends, a name of steps/split.py (blank_line, newline, step, sentence, marker:TEXT)."""

    continuations: Count = 8
    boundary: str = "newline"


class Critic(Section):
    """`advantage: gae`: a model of the reward that is to come, trained beside the policy.

    shared: a head on the policy's own network, learning in the policy's updates with `coefficient`, in place of a model
    of its own. path: what that starts from, a model or an earlier critic; the policy's where it is left out. gamma,
    lam: of GAE. clip: how far a value may move in a step and still be corrected; None for as far as it will.
    warmup_steps: first steps in which it alone learns. learning_rate, max_grad_norm: of its AdamW; the rest is
    optimizer's."""

    shared: bool = False
    coefficient: Positive = 0.1
    path: PathText | None = None
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    lam: Share = 0.95
    clip: Positive | None = 0.2
    learning_rate: Positive = 1e-5
    max_grad_norm: Positive = 1.0
    warmup_steps: CountOrNone = 0

    @model_validator(mode="after")
    def _a_head_has_no_optimizer(self) -> Critic:
        fields = type(self).model_fields
        if not self.shared:
            if self.coefficient != fields["coefficient"].default:
                raise ValueError(
                    f"coefficient={self.coefficient} is of a loss that policy and critic share, and shared=false; set "
                    "learning_rate, or shared=true"
                )
            return self
        for key in ("path", "learning_rate", "max_grad_norm", "warmup_steps"):
            if getattr(self, key) != fields[key].default:
                raise ValueError(
                    f"{key}={getattr(self, key)} is of a critic with weights of its own, and shared=true is a head on "
                    f"the policy; leave {key} out"
                )
        return self


class Pretraining(Section):
    """PPO-ptx (InstructGPT, arXiv:2203.02155, eq. 2): each update also minimises coefficient times the mean negative
    log-likelihood of `examples` completions of `data`'s files."""

    data: Data
    coefficient: NonNegative = 1.0
    examples: Count = 16

    shorthand = "data"
