"""The recipes that learn from chosen completions: by imitation (sft), in rounds (rest), by comparison (preference)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo_math.config_base import Count, NonNegative, Section, Share
from grpo_math.config_common import Common, Task
from grpo_math.config_data import Data
from grpo_math.config_preference import UNPAIRED, PreferenceLoss

# of preferences/table.py, for those who must not import torch; a test holds them equal
NO_REFERENCE = frozenset({"simpo", "orpo", "cpo", "sft"})
BEHAVIOUR = frozenset({"p3o"})

ReferenceName = Literal["fixed", "precomputed", "round", "behaviour", "none"]
PairName = Literal["best-worst", "all", "hard", "rso"]
ChoiceName = Literal["random", "shortest", "longest", "diverse"]


class Stop(Section):
    """Stop once sampled accuracy on held-out problems reaches `accuracy`, measured every `every` steps."""

    accuracy: Share
    every: Count = 20
    problems: Count = 128


class SFT(Common):
    """`recipe: sft`: maximum likelihood of completions, prompts untrained. They come from files (data), or are the
    worked solutions of the task; prompts_per_step of them an update."""

    recipe: Literal["sft"] = "sft"
    data: Data | None = None
    stop: Stop | None = None

    @model_validator(mode="after")
    def _one_model(self) -> SFT:
        if (self.model.path is None) == (self.model.new is None):
            raise ValueError("give one of model.path (a folder or Hub id) and model.new (a small model from scratch)")
        return self

    @model_validator(mode="after")
    def _has_examples(self) -> SFT:
        if self.data is None and self.task is None:
            raise ValueError("task is missing, and so is data; give data=FILE to learn from, or a task with solutions")
        if self.stop is not None and self.task is None:
            raise ValueError("stop measures accuracy on a task, and there is none; set task=NAME")
        return self


class Online(Section):
    """Pairs of the policy's own completions, sampled and verified anew every `every` steps: 1 is online DPO, more is
    iterative DPO. A round samples every * prompts_per_step problems, and each of its pairs is trained on `passes`
    times, spread evenly over its steps. pair, gap and pairs_per_problem are those of `grpo-math filter`."""

    every: Count = 1
    passes: Count = 1
    pair: PairName = "best-worst"
    gap: NonNegative = 0.0
    pairs_per_problem: Count = 1


class Preference(Common):
    """`recipe: preference`: raise the likelihood of what is preferred over that of what is not.

    The examples are those of files (data), prompts_per_step of them an update, or the policy's own (online). reference:
    `fixed` is the model that the run starts from; `precomputed` the same, read once before the first step and then not
    held in memory; `round` the policy at the beginning of each round of `online`; `behaviour` whoever sampled the
    completions (BPO); None takes what the loss needs. stages: the data in so many parts, one after the other, and the
    policy after each is the reference of the next (sDPO)."""

    recipe: Literal["preference"] = "preference"
    algorithm: str = "dpo"
    loss: PreferenceLoss = PreferenceLoss()
    data: Data | None = None
    online: Online | None = None
    group_size: Annotated[int, Field(ge=2)] = 8
    reference: ReferenceName | None = None
    stages: Count = 1

    @property
    def losses(self) -> frozenset[str]:
        """The names of the loss, or of those that are mixed."""
        return frozenset(self.loss.weights)

    @property
    def said(self) -> str:
        """The loss as the user gave it."""
        return f"loss.name={self.loss.name}" if self.loss.mix is None else f"loss.mix={dict(self.loss.mix)}"

    @property
    def chosen_reference(self) -> ReferenceName:
        """What `reference` is where it is left out."""
        if self.reference is not None:
            return self.reference
        if not self.losses - NO_REFERENCE:
            return "none"
        return "precomputed" if self.stages > 1 else "fixed"

    @model_validator(mode="after")
    def _has_examples(self) -> Preference:
        if self.model.path is None:
            raise ValueError("model.path is missing; give a Hugging Face folder or Hub id: model.path=DIR_OR_HUB_ID")
        if (self.data is None) == (self.online is None):
            raise ValueError("give one of data=FILE (pairs that are there) and online.every=1 (the policy's own)")
        if self.online is not None and self.task is None:
            raise ValueError("task is missing, of which online samples the problems; set task=NAME")
        if "kto" in self.losses and self.prompts_per_step < 2:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step}: kto compares with prompts that have another's completion; "
                "set prompts_per_step=2 or more"
            )
        if self.online is not None and self.losses.intersection(UNPAIRED):
            raise ValueError(
                f"{self.said} learns from single completions, and online makes pairs; use data=FILE "
                "of grpo-math filter --to kto, or another loss"
            )
        return self

    @model_validator(mode="after")
    def _rounds_are_whole(self) -> Preference:
        if self.online is not None and self.steps % self.online.every:
            every = self.online.every
            raise ValueError(
                f"steps={self.steps} is not divisible by online.every={every}, and the last round would be sampled for "
                f"a part of its steps; try steps={-(-self.steps // every) * every}"
            )
        return self

    @model_validator(mode="after")
    def _reference_fits(self) -> Preference:
        needs, kind = bool(self.losses - NO_REFERENCE), self.chosen_reference
        if needs and kind == "none":
            raise ValueError(f"reference=none, and {self.said} compares with one; leave reference out")
        if not needs and kind != "none":
            raise ValueError(f"reference={kind}: {self.said} compares with none; leave reference out")
        if kind == "round" and self.online is None:
            raise ValueError("reference=round is the policy at the start of a round of online; set online.every too")
        if kind == "precomputed" and self.online is not None:
            raise ValueError(
                "reference=precomputed reads data that is there before the run; with online set reference=fixed, "
                "round or behaviour"
            )
        if kind not in ("fixed", "none") and self.losses.intersection(UNPAIRED):
            raise ValueError(
                f"reference={kind} is of pairs, and {self.said} learns from single completions; set reference=fixed"
            )
        exact = kind == "behaviour" or bool(self.losses & BEHAVIOUR)
        if exact and self.online is not None and self.sampling.temperature != 1:
            raise ValueError(
                f"sampling.temperature={self.sampling.temperature:g} and a loss that compares with the sampler's own "
                "log-probabilities, which are the model's at 1; set sampling.temperature=1"
            )
        if exact and self.data is not None and self.data.too_long == "truncate":
            raise ValueError(
                "data.too_long=truncate and a loss that compares with the sampler's log-probabilities, which are those "
                "of whole completions; set data.too_long=drop"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> Preference:
        if self.stages == 1:
            return self
        if self.data is None or self.chosen_reference != "precomputed":
            raise ValueError(
                f"stages={self.stages} makes each stage's policy the next one's reference, which is read when the "
                "stage begins; it needs data=FILE, a loss with a reference, and reference=precomputed"
            )
        if self.steps % self.stages:
            raise ValueError(
                f"steps={self.steps} is not divisible by stages={self.stages}; "
                f"try steps={-(-self.steps // self.stages) * self.stages}"
            )
        return self


class REST(Common):
    """`recipe: rest`: rounds of Grow (sample problems x group_size completions, verify them) and Improve (learn from
    the good ones; ReST, arXiv:2308.08998).

    thresholds: an Improve step for each, of `updates` updates on prompts_per_step completions, learning from those
    whose reward is at least the threshold, or that quantile of all rewards. start: `policy` trains on from where the
    last round ended, `base` anew from the first model each round (ReST-EM, arXiv:2312.06585). weighting: `reward`
    multiplies a completion's loss by its reward. per_problem: at most so many of each problem; choose says which.
    tolerated_fall: a round whose held-out accuracy falls by more than this below the best is thrown away and ends the
    run; None never does."""

    recipe: Literal["rest"] = "rest"
    algorithm: str = "rest"
    task: Task
    steps: Count = 0
    rounds: Count = 3
    problems: Count = 512
    group_size: Count = 8
    thresholds: Annotated[list[float], Field(min_length=1)] = [1.0]
    threshold: Literal["reward", "quantile"] = "reward"
    updates: Count = 50
    start: Literal["policy", "base"] = "policy"
    weighting: Literal["none", "reward"] = "none"
    per_problem: Count | None = None
    choose: ChoiceName | None = None
    best_only: bool = False
    tolerated_fall: Share | None = 0.03

    @property
    def steps_per_round(self) -> int:
        return len(self.thresholds) * self.updates

    @model_validator(mode="after")
    def _rounds_make_steps(self) -> REST:
        steps = self.rounds * self.steps_per_round
        if self.steps not in (0, steps):
            raise ValueError(
                f"steps={self.steps} is not rounds x thresholds x updates = {self.rounds} x {len(self.thresholds)} x "
                f"{self.updates} = {steps}; leave steps out"
            )
        object.__setattr__(self, "steps", steps)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> REST:
        if self.model.path is None:
            raise ValueError("model.path is missing; give a Hugging Face folder or Hub id: model.path=DIR_OR_HUB_ID")
        if self.thresholds != sorted(self.thresholds):
            raise ValueError(f"thresholds={self.thresholds} do not rise; sort them")
        if self.threshold == "quantile" and not 0 <= self.thresholds[0] <= self.thresholds[-1] <= 1:
            raise ValueError(f"thresholds={self.thresholds} are to be quantiles, from 0 to 1; set threshold=reward")
        if self.weighting == "reward" and self.threshold == "reward" and self.thresholds[0] < 0:
            raise ValueError(
                f"thresholds={self.thresholds} with weighting=reward would push completions of negative rewards away "
                "without bound; begin thresholds at 0 or above, or set weighting=none"
            )
        if self.choose is not None and self.per_problem is None:
            raise ValueError(f"choose={self.choose} says which per_problem=K are kept; set per_problem too")
        if self.evaluation.every:
            raise ValueError(
                f"evaluation.every={self.evaluation.every}: rest measures after each round, as the rest of the section "
                "says; leave evaluation.every out"
            )
        return self
