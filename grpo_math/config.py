"""The configuration tree: YAML and dotted overrides in, one validated object out.

Unknown keys, contradictions and impossible arithmetic are refused here, before torch or a model is loaded, with the
key, the value and the remedy. Nothing in here imports torch: `grpo-math plan` answers from it alone. A class for each
recipe; the sections that they are made of are in the sister files, and all are found under this name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from grpo_math.config_algorithm import (
    KL,
    AdvantageName,
    Correction,
    CorrectionName,
    DynamicSampling,
    KLName,
    Loss,
    LossName,
    Overlong,
    RatioName,
    ReductionName,
    SurrogateName,
)
from grpo_math.config_base import Count, CountOrNone, NonNegative, PathText, Positive, Section, Share
from grpo_math.config_common import (
    Checkpoint,
    Common,
    Evaluation,
    Isolation,
    Optimizer,
    Reward,
    SamplingConfig,
    Sandbox,
    Scoring,
    Task,
)
from grpo_math.config_data import Data
from grpo_math.config_offline import BEHAVIOUR, REST, SFT, Online, Preference, Stop
from grpo_math.config_preference import UNPAIRED, PreferenceLoss
from grpo_math.config_stack import VLLM, Backend, DeepSpeed, LoRA, Model, NewModel, Rollout, Run, Server


class GRPO(Common):
    """`recipe: grpo`: sample groups, score them, update on the advantages."""

    recipe: Literal["grpo"] = "grpo"
    task: Task
    algorithm: str = "grpo"
    group_size: int = 16
    updates_per_step: Count = 1
    passes: Count = 1
    advantage: AdvantageName = "group_norm"
    loss: Loss = Loss()
    kl: KL = KL()
    correction: Correction = Correction()
    dynamic_sampling: DynamicSampling = DynamicSampling()
    overlong: Overlong = Overlong()
    run: Run = Run()

    @property
    def trained_temperature(self) -> float:
        return self.sampling.temperature

    @model_validator(mode="after")
    def _stale_samples_are_corrected(self) -> GRPO:
        staleness = self.run.staleness
        if staleness and self.rollout.engine != "vllm_server":
            raise ValueError(
                f"run.staleness={staleness} samples while it trains, for which the engine {self.rollout.engine} has no "
                "process of its own; set rollout.engine=vllm_server, or run.staleness=0"
            )
        if staleness and self.correction.name == "none":
            raise ValueError(
                f"run.staleness={staleness} trains on samples of older weights, which need correcting; set "
                "correction=token_truncate, or run.staleness=0"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> GRPO:
        if self.model.path is None:
            raise ValueError("model.path is missing; give a Hugging Face folder or Hub id: model.path=DIR_OR_HUB_ID")
        if self.model.new is not None:
            raise ValueError("model.new makes an untrained model, which has nothing to reinforce; run recipe sft first")
        if self.group_size < 2:
            raise ValueError(
                f"group_size={self.group_size}: an advantage relative to the group needs siblings; set group_size=2 "
                "or more"
            )
        prompts, updates = self.prompts_per_step, self.updates_per_step
        if prompts % updates:
            raise ValueError(
                f"prompts_per_step={prompts} is not divisible by updates_per_step={updates}; "
                f"try prompts_per_step={-(-prompts // updates) * updates}"
            )
        if self.model.lora.rank and self.kl.coefficient and self.kl.reference != "fixed":
            raise ValueError(
                f"kl.reference={self.kl.reference} needs a reference with weights of its own, and with model.lora.rank="
                f"{self.model.lora.rank} it is the model with its adapter off; set kl.reference=fixed"
            )
        coarse = self.backend.name == "deepspeed" and self.backend.dtype == "bfloat16"
        if self.kl.coefficient and self.kl.reference == "ema" and coarse:
            raise ValueError(
                "kl.reference=ema moves the reference by less than bfloat16 can tell apart; set kl.reference=refresh, "
                "or backend.dtype=float32"
            )
        if self.overlong.penalty_buffer and int(self.overlong.penalty_buffer * self.sampling.max_tokens) < 1:
            raise ValueError(
                f"overlong.penalty_buffer={self.overlong.penalty_buffer} of sampling.max_tokens="
                f"{self.sampling.max_tokens} is less than one token; raise it or set it to 0"
            )
        return self


RECIPES: dict[str, type[Common]] = {"grpo": GRPO, "sft": SFT, "preference": Preference, "rest": REST}
