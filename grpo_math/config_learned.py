"""The sections of the configuration about learned rewards: which models give them, and what would betray that the
policy pleases a model and no longer solves the problems.

Left out: verifiers (config_common.py), and the list `rewards`, which holds both.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grpo_math.config_base import Count, NonNegative, PathText, Positive, Section, Share

LearnedKind = Literal["outcome", "process"]
Aggregate = Literal["last", "min", "prod", "mean"]
Combine = Literal["sum", "min"]
RESERVED = ("mean", "std", "accuracy", "overlong", "kl")  # metrics reward/... that are no single reward's


class LearnedReward(Section):
    """A reward model and its weight in the reward.

    model: a Hugging Face folder or Hub id, of kind outcome (a sequence classifier with one label) or process (a token
    classifier). The reward is  weight * (clip(normalise(score)) - length_penalty * tokens of the completion).
    normalise: `running` by mean and standard deviation of all scores of the run so far, `group` by those of the
    siblings. clip: the bound of what comes of it, on both sides. length_penalty: of normalised score, for each token.
    aggregate: of a completion's steps, whose probabilities of being right are the score. boundary: where a step ends,
    a name of steps/split.py; None takes what the model was trained with, or newline. chat: whether the model reads a
    conversation in its chat template; None is what it was trained with, or whether it has one. name: what metrics and
    records call it; None is the kind. device: `auto` is where the policy is. dtype: of its weights; `auto` is
    backend.dtype. offload: keep the weights on the CPU while nothing is scored. url: a vLLM server that scores in place
    of this process; `model` is then where the tokenizer is.
    """

    model: PathText
    kind: LearnedKind = "outcome"
    weight: float = 1.0
    name: str | None = None
    normalise: Literal["none", "running", "group"] = "none"
    clip: Positive | None = None
    length_penalty: NonNegative = 0.0
    aggregate: Aggregate | None = None
    boundary: str | None = None
    chat: bool | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    offload: bool = False
    micro_batch_tokens: Count | None = None
    url: str | None = None

    @property
    def called(self) -> str:
        return self.name or self.kind

    @model_validator(mode="after")
    def _keys_fit(self) -> LearnedReward:
        if self.kind == "outcome":
            for key in ("aggregate", "boundary"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}={getattr(self, key)} is of steps, and kind=outcome judges the whole; set kind=process, "
                        f"or leave {key} out"
                    )
        for key in ("device", "dtype", "offload", "micro_batch_tokens") if self.url is not None else ():
            if (value := getattr(self, key)) != type(self).model_fields[key].default:
                raise ValueError(f"{key}={value} is the server's to choose, at url={self.url}; leave {key} out")
        if self.name in RESERVED:
            raise ValueError(f"name={self.name}: reward/{self.name} is a metric of its own; give another name")
        if self.name is not None and not self.name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"name={self.name!r} is part of a metric's name; use letters, digits, _ and -")
        return self


class Guards(Section):
    """When to raise an alarm, each by the metric guard/NAME; None never does.

    gap: the learned reward has risen by so many standard deviations more than the verified one. correlation: the
    learned and the verified reward agree less than this within a step. length_correlation: the learned reward goes with
    the length, up or down. above_p99: the share of completions (or steps) that score above the 99th percentile of the
    model's training data. patience: steps in a row that must be beyond the threshold. stop: an alarm ends the run."""

    gap: Positive | None = 1.0
    correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    length_correlation: Share | None = None
    above_p99: Share | None = 0.2
    patience: Count = 3
    stop: bool = False

    @property
    def thresholds(self) -> dict[str, float]:
        """Of the metrics that are watched, by their names."""
        named = {name: getattr(self, name) for name in ("gap", "correlation", "length_correlation", "above_p99")}
        return {name: value for name, value in named.items() if value is not None}

    @model_validator(mode="after")
    def _stops_at_something(self) -> Guards:
        if self.stop and not self.thresholds:
            raise ValueError("stop=true, and no threshold is set that could stop the run; set gap=1, for example")
        return self


class Retraining(Section):
    """Iterative GRPO (DeepSeekMath, arXiv:2402.03300, algorithm 1): after every `every` steps the outcome reward model
    learns what the verifier said of the policy's newest samples, and the reference is moved to the policy.

    updates: of the reward model, each on `examples` completions, of which the share `replay` is drawn from the older
    samples, at most `remembered` of which are kept. learning_rate, max_grad_norm: of its AdamW; the rest is
    optimizer's."""

    every: Count = 25
    updates: Count = 20
    examples: Count = 64
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.1
    remembered: Count = 10_000
    learning_rate: Positive = 1e-5
    max_grad_norm: Positive = 1.0


def which(value: Any) -> str | None:
    """The tag of an item of `rewards`: which of the two it is; None where it does not say, or says both."""
    if isinstance(value, str):
        return "(verifier)"
    if isinstance(value, Section):
        return "(model)" if isinstance(value, LearnedReward) else "(verifier)"
    named = [key for key in ("verifier", "model") if isinstance(value, dict) and key in value]
    return f"({named[0]})" if len(named) == 1 else None
