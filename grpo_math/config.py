"""The configuration tree: YAML and dotted overrides in, one validated object out.

Unknown keys, contradictions and impossible arithmetic are refused here, before torch or a model is loaded, with the
key, the value and the remedy. Nothing in here imports torch: `grpo-math plan` answers from it alone. A class for each
recipe; the sections that they are made of are in the sister files, and all are found under this name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

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
    AnyReward,
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
    verifiers_in,
)
from grpo_math.config_credit import CreditName, Critic, Pretraining, Process, Vine
from grpo_math.config_data import Data
from grpo_math.config_learned import Aggregate, Combine, Guards, LearnedReward, Retraining
from grpo_math.config_offline import BEHAVIOUR, REST, SFT, Online, Preference, Stop
from grpo_math.config_preference import UNPAIRED, PreferenceLoss
from grpo_math.config_reward_model import (
    HeldOut,
    ProcessRewardModel,
    RewardCommon,
    RewardLoss,
    RewardLossName,
    RewardModel,
    StepLoss,
)
from grpo_math.config_stack import VLLM, Backend, DeepSpeed, LoRA, Model, NewModel, Rollout, Run, Server

ALONE = frozenset({"gae", "reinforce_pp"})  # advantages that compare with no siblings


class GRPO(Common):
    """`recipe: grpo`: sample groups, score them, update on the advantages.

    whiten: advantages of all tokens of a step get mean 0 and variance 1 (PPO). process, vine, critic: of the advantages
    process, vine and gae. pretraining: completions to imitate beside (PPO-ptx). combine_rewards: how several reward
    models among `rewards` become one, after their weights: their sum, or the least of them (a safety model beside one
    of helpfulness); the verifiers' weighted sum is added either way."""

    takes_learned_rewards: ClassVar[bool] = True

    recipe: Literal["grpo"] = "grpo"
    task: Task
    algorithm: str = "grpo"
    group_size: int = 16
    updates_per_step: Count = 1
    passes: Count = 1
    advantage: AdvantageName | CreditName = "group_norm"
    whiten: bool = False
    process: Process = Process()
    vine: Vine = Vine()
    critic: Critic = Critic()
    pretraining: Pretraining | None = None
    combine_rewards: Combine = "sum"
    guards: Guards = Guards()
    retraining: Retraining | None = None
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
    def _learned_rewards_fit(self) -> GRPO:
        learned = [reward for reward in self.rewards or () if isinstance(reward, LearnedReward)]
        if not learned and self.guards != Guards():
            raise ValueError("guards watches reward models, and rewards has none; leave it out")
        if len(learned) < 2 and self.combine_rewards == "min":
            raise ValueError(
                f"combine_rewards=min is of several reward models, and rewards has {len(learned)}; leave it out"
            )
        if self.group_size < 2 and any(reward.normalise == "group" for reward in learned):
            raise ValueError(
                f"group_size={self.group_size}: a score cannot be normalised by its siblings'; set normalise=running"
            )
        return self

    @model_validator(mode="after")
    def _can_retrain(self) -> GRPO:
        if self.retraining is None:
            return self
        every = self.retraining.every
        models = [r for r in self.rewards or () if isinstance(r, LearnedReward) and r.kind == "outcome"]
        if len(models) != 1:
            raise ValueError(
                f"retraining trains the outcome reward model on, and rewards has {len(models)}; list one: "
                "rewards=[{verifier: NAME}, {model: DIR, kind: outcome}]"
            )
        for key in ("url", "offload", "device", "dtype"):
            if (value := getattr(models[0], key)) != LearnedReward.model_fields[key].default:
                raise ValueError(
                    f"{key}={value} of the reward model: retraining needs its weights beside the policy's, as the back "
                    f"end trains them; leave {key} of it out"
                )
        if every >= self.steps:
            raise ValueError(
                f"retraining.every={every} of steps={self.steps}: no step would come after it has learnt; set steps "
                f"above {every}, or retraining.every below {self.steps}"
            )
        if self.model.lora.rank and self.kl.coefficient:
            raise ValueError(
                f"retraining moves the reference to the policy, which with model.lora.rank={self.model.lora.rank} is "
                "the model with its adapter off; set kl.coefficient=0, or model.lora.rank=0"
            )
        if self.kl.coefficient and (self.kl.reference, self.kl.refresh_every) != ("refresh", every):
            raise ValueError(
                f"retraining.every={every} moves the reference too, and kl.reference={self.kl.reference} with "
                f"kl.refresh_every={self.kl.refresh_every}; set kl.reference=refresh and kl.refresh_every={every}"
            )
        return self

    @model_validator(mode="after")
    def _credit_fits(self) -> GRPO:
        if self.advantage in ("process", "vine") and self.kl.coefficient and self.kl.where == "reward":
            raise ValueError(
                f"kl.where=reward takes the distance from a completion's reward, and advantage={self.advantage} is of "
                "steps; set kl.where=loss"
            )
        if self.advantage == "vine" and self.run.staleness:
            raise ValueError(
                f"advantage=vine goes on from each step with the weights that sampled it, and run.staleness="
                f"{self.run.staleness} has newer ones by then; set run.staleness=0"
            )
        if self.advantage == "vine" and self.overlong.penalty_buffer:
            raise ValueError(
                f"overlong.penalty_buffer={self.overlong.penalty_buffer} is taken from the reward, and advantage=vine "
                "counts what is right; set overlong.penalty_buffer=0, or overlong.mask=true"
            )
        for number, reward in enumerate(self.rewards or ()):
            first = isinstance(reward, Reward) and reward is verifiers_in(self.rewards)[0]
            if self.advantage == "vine" and reward.weight and not first:
                raise ValueError(
                    f"rewards.{number} has weight={reward.weight}, and advantage=vine counts what the first verifier "
                    "calls correct; leave it out, or give it weight 0 to look at it"
                )
        if self.pretraining is not None and self.sampling.temperature != 1:
            raise ValueError(
                "pretraining imitates with the policy itself, and sampling.temperature="
                f"{self.sampling.temperature} trains another one; set sampling.temperature=1"
            )
        for section, name in (("process", "process"), ("vine", "vine"), ("critic", "gae")):
            given = getattr(self, section)
            if given != type(given)() and self.advantage != name:
                raise ValueError(f"{section} is read by advantage={name}, and advantage={self.advantage}; leave it out")
        if self.advantage == "process" and self.process.share == 1 and self.overlong.penalty_buffer:
            raise ValueError(
                "overlong.penalty_buffer is a part of the completion's reward, which process.share=1 leaves out; set "
                "process.share=0.5, or overlong.penalty_buffer=0"
            )
        if self.critic.shared and self.model.lora.rank:
            raise ValueError(
                f"critic.shared=true needs the policy's weights to learn, and model.lora.rank={self.model.lora.rank} "
                "freezes them; set critic.shared=false"
            )
        if self.critic.warmup_steps >= self.steps:
            raise ValueError(
                f"critic.warmup_steps={self.critic.warmup_steps} of steps={self.steps} leave the policy none; "
                f"try critic.warmup_steps={self.steps // 10}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> GRPO:
        if self.model.path is None:
            raise ValueError("model.path is missing; give a Hugging Face folder or Hub id: model.path=DIR_OR_HUB_ID")
        if self.model.new is not None:
            raise ValueError("model.new makes an untrained model, which has nothing to reinforce; run recipe sft first")
        if self.group_size < (1 if self.advantage in ALONE else 2):
            raise ValueError(
                f"group_size={self.group_size}: advantage={self.advantage} is relative to the group, and needs "
                "siblings; set group_size=2 or more"
            )
        if self.group_size < 2 and self.dynamic_sampling.enabled:
            raise ValueError(
                f"group_size={self.group_size}: dynamic_sampling keeps groups whose rewards differ, which one "
                "completion's cannot; set group_size=2 or more, or dynamic_sampling.enabled=false"
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


RECIPES: dict[str, type[Common]] = {
    "grpo": GRPO,
    "sft": SFT,
    "preference": Preference,
    "rest": REST,
    "reward_model": RewardModel,
    "process_reward_model": ProcessRewardModel,
}
