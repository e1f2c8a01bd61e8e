"""The recipes that train models of values from files: of whole completions (reward_model), and of their steps
(process_reward_model).

Left out: reading the files (examples/), and the equations (reward_losses.py).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from grpo_math.config_base import Count, CountOrNone, NonNegative, PathText, Positive, Section
from grpo_math.config_common import Common
from grpo_math.config_data import Data
from grpo_math.steps.split import boundary
from grpo_math.types import UserError

RewardLossName = Literal["bradley_terry", "ranked", "binary"]

# what each loss reads besides its name
READS: dict[str, tuple[str, ...]] = {
    "bradley_terry": ("margin", "margin_scale", "label_smoothing", "centre"),
    "ranked": ("margin", "margin_scale", "label_smoothing", "centre", "completions"),
    "binary": ("balance", "every_token"),
}
NO_SAMPLING = ("task", "rewards", "rollout", "sampling", "scoring", "sandbox", "evaluation")


class RewardLoss(Section):
    """What scores are taught by: pairs (bradley_terry), all pairs of the completions of a prompt (ranked), or each
    completion's own label (binary).

    margin: what scores must differ by: the file's column `margin` where it has one, margin_scale times the difference
    of the two rewards, or nothing. label_smoothing: share of pairs thought to be the wrong way round. centre: weight of
    (r+ + r-)^2, which draws the scores' mean to 0. completions: of one prompt that are compared with one another in
    one pass; a prompt with more makes several examples. balance: right and wrong labels get half of the weight each.
    every_token: the label is learnt after every token of the completion, and not after the last alone."""

    name: RewardLossName = "bradley_terry"
    margin: Literal["column", "rewards", "none"] = "column"
    margin_scale: Positive = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    centre: NonNegative = 0.0
    completions: Annotated[int, Field(ge=2)] = 8
    balance: bool = False
    every_token: bool = False

    shorthand = "name"
    by_name = {"ranked": {"margin": "none"}}

    @model_validator(mode="after")
    def _all_read(self) -> RewardLoss:
        for field in sorted(self.model_fields_set - {"name", *READS[self.name]}):
            readers = [name for name, read in READS.items() if field in read]
            raise ValueError(
                f"{field}={getattr(self, field)} is read by {' and '.join(readers)}, and not by {self.name}; leave it "
                f"out, or set name={readers[0]}"
            )
        if self.margin != "rewards" and self.margin_scale != 1:
            raise ValueError(
                f"margin_scale={self.margin_scale:g} is of the difference of two rewards; set margin=rewards, or leave "
                "it out"
            )
        if self.margin == "column" and self.name == "ranked":
            raise ValueError("margin=column is of pairs, and name=ranked has more completions; set margin=rewards")
        return self

    @model_serializer(mode="wrap")
    def _what_is_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a written configuration must load again, and what is not read would be refused then
        return {key: value for key, value in handler(self).items() if key in ("name", *READS[self.name])}


class StepLoss(Section):
    """Cross-entropy of each labelled step, all steps of an update having the same weight. balance: right and wrong
    labels get half of the weight each. every_token: a step's label is learnt after every token of it."""

    balance: bool = False
    every_token: bool = False


class HeldOut(Section):
    """What is measured and never learnt from, every `every` steps and after the last (0: never): files, or of those of
    `data` the examples of a share of the prompts, all of a prompt's. limit: at most so many examples."""

    files: list[PathText] | None = None
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    every: CountOrNone = 20
    limit: Count = 2000

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> HeldOut:
        if self.files == []:
            raise ValueError("files=[] names none; give one, or leave files out and set share=0.05")
        if self.files is not None and self.share is not None:
            raise ValueError("files and share say twice what is held out; give one of them")
        return self

    @property
    def chosen_share(self) -> float:
        """Of the prompts of `data`: 5 % where neither share nor files is given, none where nothing is measured."""
        if self.every == 0 or self.files is not None:
            return 0.0
        return 0.05 if self.share is None else self.share


class RewardCommon(Common):
    """What both recipes have. prompts_per_step: examples of an update. steps, or epochs: as many steps as it takes to
    see the examples so often (1, where neither is given); what is too long counts as seen."""

    either: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"steps", "epochs"}),)
    data: Data
    steps: CountOrNone = 0
    epochs: Positive | None = None
    prompts_per_step: Count = 32
    held_out: HeldOut = HeldOut()

    @model_validator(mode="after")
    def _a_length(self) -> RewardCommon:
        if self.steps and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs:g} both say how long to train; leave one out")
        if not self.steps and self.epochs is None:
            object.__setattr__(self, "epochs", 1.0)
        return self

    @model_validator(mode="after")
    def _a_model(self) -> RewardCommon:
        if self.model.path is None:
            raise ValueError(
                "model.path is missing; give a folder or Hub id of any language model, or of a reward model to train "
                "on: model.path=DIR_OR_HUB_ID"
            )
        if self.model.new is not None:
            raise ValueError("model.new makes a policy; give model.path, of a model that it or another run has made")
        if self.model.lora.rank:
            raise ValueError(
                f"model.lora.rank={self.model.lora.rank}: a model of values is trained whole; set model.lora.rank=0"
            )
        return self

    @model_validator(mode="after")
    def _samples_nothing(self) -> RewardCommon:
        for name in NO_SAMPLING:
            if getattr(self, name) != type(self).model_fields[name].get_default():
                remedy = "set held_out to measure on its way" if name == "evaluation" else f"leave {name} out"
                raise ValueError(
                    f"{name} is set, and a reward model learns from files alone, sampling nothing; {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _whole_completions(self) -> RewardCommon:
        if self.data.too_long == "truncate":
            raise ValueError(
                "data.too_long=truncate would judge the beginning of a completion by the label of the whole; set "
                "data.too_long=drop"
            )
        return self


class RewardModel(RewardCommon):
    """`recipe: reward_model`: a score for a whole completion, from comparisons or from verdicts.

    data: files of pairs (bradley_terry), of completions in an order (ranked), of labelled completions (binary); for the
    last two also a run's completions.jsonl and samples.jsonl, as they are."""

    recipe: Literal["reward_model"] = "reward_model"
    loss: RewardLoss = RewardLoss()

    @model_validator(mode="after")
    def _can_be_filtered(self) -> RewardModel:
        if self.data.filter is not None and self.loss.name == "ranked":
            raise ValueError(
                "data.filter makes pairs or labelled completions of samples, and loss.name=ranked takes samples as "
                "they are; leave data.filter out, or set loss.name=bradley_terry"
            )
        return self


class ProcessRewardModel(RewardCommon):
    """`recipe: process_reward_model`: a score for each step of a completion, from labels of the steps.

    boundary: what ends a step, as grpo-math label-steps has it (blank_line, newline, ...), written into the model for
    whoever splits completions for it; None: found out from the data, if one of them makes all of its steps. neutral:
    what PRM800K's rating 0 counts as. separator: between steps, where a file has them without."""

    recipe: Literal["process_reward_model"] = "process_reward_model"
    loss: StepLoss = StepLoss()
    boundary: str | None = None
    neutral: Literal["right", "wrong", "unlabelled"] = "right"
    separator: str = "\n"

    @field_validator("boundary")
    @classmethod
    def _known_boundary(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                boundary(value)
            except UserError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _has_steps(self) -> ProcessRewardModel:
        if self.data.filter is not None:
            raise ValueError(
                "data.filter makes no steps; label them with grpo-math label-steps SAMPLES, and give the file it writes"
            )
        return self
