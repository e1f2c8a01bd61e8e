"""The configuration tree: YAML and dotted overrides in, one validated object out.

Unknown keys, contradictions and impossible arithmetic are refused here, before torch or a model is loaded, with the
key, the value and the remedy. Nothing in this file imports torch: `grpo-math plan` answers from it alone.
"""

from __future__ import annotations

from os.path import expanduser
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from grpo_math.sandbox.limits import LEVELS, Limits

AdvantageName = Literal[
    "group_norm", "group_center", "leave_one_out", "reinforce_pp", "reinforce_pp_baseline", "maxrl", "pass_at_k", "gpg"
]
LossName = Literal["grpo", "bnpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "reinforce"]
RatioName = Literal["token", "sequence"]
SurrogateName = Literal["clip", "dual_clip", "cispo", "sapo", "reinforce"]
ReductionName = Literal["sequence_mean", "token_mean", "constant_length", "sequence_sum"]
CorrectionName = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_mask"]
KLName = Literal["k1", "k2", "k3"]

Isolation = Literal["namespaces", "seccomp", "process"]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
PathText = Annotated[str, AfterValidator(expanduser)]  # the shell leaves the ~ of model.path=~/x as it is


class Section(BaseModel):
    """A part of the tree. `shorthand` is the key a lone string stands for: `task: gsm8k` is `task: {name: gsm8k}`.

    by_name: defaults of some names that differ from the section's own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    shorthand: ClassVar[str | None] = None
    by_name: ClassVar[dict[str, dict[str, float]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        value = {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value
        name = value.get("name") if isinstance(value, dict) else None
        return cls.by_name[name] | value if isinstance(name, str) and name in cls.by_name else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read `kl.coefficient: yes` as 1.0
        if isinstance(value, bool) and info.field_name:
            annotation = cls.model_fields[info.field_name].annotation
            if {int, float} & {annotation, *get_args(annotation)}:
                raise ValueError("is a truth value where a number belongs")
        return value


class NewModel(Section):
    """A small Qwen2-type transformer with a character tokenizer, made from scratch (recipe sft only)."""

    hidden_size: Count = 128
    layers: Count = 4
    heads: Count = 4
    kv_heads: Count = 4
    intermediate_size: Count = 384
    context: Count = 256
    rope_theta: Positive = 10_000.0
    initializer_range: Positive = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> NewModel:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of heads={self.heads}, and heads of "
                f"kv_heads={self.kv_heads}; try heads=4 and kv_heads=4"
            )
        return self


class Model(Section):
    """Which policy. `path` is a Hugging Face folder or Hub id; `new` makes a small one instead (recipe sft)."""

    shorthand = "path"

    path: PathText | None = None
    new: NewModel | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"


class Task(Section):
    """Which problems, and how they are put to the model. None takes the task file's own choice."""

    name: str
    split: str = "train"
    path: PathText | None = None
    limit: Count | None = None
    options: dict[str, Any] = {}
    template: str | None = None
    system: str | None = None
    chat: bool | None = None

    shorthand = "name"

    @field_validator("template")
    @classmethod
    def _has_question(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value:
            raise ValueError("has no {question} in it; the problem's text would never reach the model")
        return value


class Reward(Section):
    """One verifier and its weight in the reward."""

    verifier: str
    weight: float = 1.0
    options: dict[str, Any] = {}

    shorthand = "verifier"


class Scoring(Section):
    """Verifiers run in `workers` processes; one that takes over `timeout_s` seconds for a completion is killed, and one
    that allocates over `memory_mb` megabytes gets a MemoryError. What is not judged `batch_timeout_s` seconds after it
    was asked for, all completions of a step together, has no score."""

    workers: Count = 2
    timeout_s: Positive = 2.0
    batch_timeout_s: Positive | None = None
    memory_mb: Count = 4096
    max_error_share: Share = 0.2


class Sandbox(Section):
    """What a judged program may use, and how well it must be kept apart; see sandbox/limits.py for the units."""

    require: Isolation = "seccomp"
    at_most: Isolation = "namespaces"
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    output_mb: Annotated[int, Field(ge=1, le=1 << 12)] = 16

    @model_validator(mode="after")
    def _ordered(self) -> Sandbox:
        if LEVELS.index(self.at_most) < LEVELS.index(self.require):
            raise ValueError(
                f"at_most={self.at_most} is less isolation than require={self.require}; set require={self.at_most} too"
            )
        return self

    def limits(self) -> Limits:
        """The same for verifiers, which know nothing of configurations."""
        return Limits(**self.model_dump())


class SamplingConfig(Section):
    """How training completions are drawn. top_p and top_k exist to be refused with a reason."""

    temperature: Positive = 1.0
    max_tokens: Count = 512
    top_p: float = 1.0
    top_k: int = 0

    @model_validator(mode="after")
    def _exact(self) -> SamplingConfig:
        if self.top_p != 1.0 or self.top_k != 0:
            raise ValueError(
                f"top_p={self.top_p}, top_k={self.top_k} cut the sampler's distribution where the trainer cannot "
                "follow (the ratio of an unchanged policy would not be 1); use top_p=1.0 and top_k=0 to train, and set "
                "them for evaluation only"
            )
        return self


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
    """Distance to a reference policy. coefficient 0 is off: the reference is then neither loaded nor read."""

    coefficient: NonNegative = 0.0
    estimator: KLName = "k3"
    where: Literal["loss", "reward"] = "loss"
    unbiased: bool = True
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


class Optimizer(Section):
    """AdamW. warmup_steps and the schedule count optimizer updates."""

    learning_rate: Positive = 1e-6
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: CountOrNone = 0
    final_share: Share = 0.0


class Rollout(Section):
    """The engine that samples. max_rows bounds how many completions are decoded side by side."""

    engine: Literal["hf"] = "hf"
    max_rows: Count = 512
    max_logprob_gap: Positive | None = None


class Backend(Section):
    """What trains. dtype bfloat16 is autocast over float32 weights. logprob_chunk: tokens whose logits are in memory at
    a time, which takes 12 bytes for each and for every entry of the vocabulary."""

    name: Literal["torch"] = "torch"
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    logprob_chunk: Count = 256


class Evaluation(Section):
    """pass@k every so many steps (0: never), on `task` or else the training task's test split."""

    every: CountOrNone = 0
    task: Task | None = None
    n: Count = 8
    k: Annotated[list[Count], Field(min_length=1)] = [1, 8]
    limit: Count | None = 200
    temperature: NonNegative | None = None

    @model_validator(mode="after")
    def _k_within_n(self) -> Evaluation:
        if max(self.k) > self.n:
            raise ValueError(f"k={max(self.k)} needs at least that many samples, but n={self.n}; set n={max(self.k)}")
        return self


class Checkpoint(Section):
    """A full state every so many steps (0: only at the end), of which the newest `keep` are kept."""

    every: CountOrNone = 50
    keep: Count = 2


class Common(Section):
    """What every recipe has."""

    run_dir: PathText
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    model: Model
    task: Task
    steps: Count = 100
    prompts_per_step: Count = 16
    micro_batch_tokens: Count = 16384
    optimizer: Optimizer = Optimizer()
    backend: Backend = Backend()
    rollout: Rollout = Rollout()
    scoring: Scoring = Scoring()
    sandbox: Sandbox = Sandbox()
    rewards: list[Reward] | None = None
    sampling: SamplingConfig = SamplingConfig()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    phase_timeout_s: Positive = 3600.0  # longest that sampling, scoring or updating may take before the run is ended

    @model_validator(mode="after")
    def _batch_ends_before_the_run(self) -> Common:
        batch, phase = self.scoring.batch_timeout_s, self.phase_timeout_s
        if batch is not None and batch >= phase:
            raise ValueError(
                f"scoring.batch_timeout_s={batch:g} is not below phase_timeout_s={phase:g}, which ends the whole run; "
                f"try scoring.batch_timeout_s={phase / 2:g}"
            )
        return self

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("rewards")
    @classmethod
    def _named_once(cls, value: list[Reward] | None) -> list[Reward] | None:
        names = [r.verifier for r in value or []]
        if value == [] or len(set(names)) < len(names):
            raise ValueError(f"lists {names}; name at least one verifier, and each once (give it a weight)")
        return value


class GRPO(Common):
    """`recipe: grpo`: sample groups, score them, update on the advantages."""

    recipe: Literal["grpo"] = "grpo"
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
        if self.overlong.penalty_buffer and int(self.overlong.penalty_buffer * self.sampling.max_tokens) < 1:
            raise ValueError(
                f"overlong.penalty_buffer={self.overlong.penalty_buffer} of sampling.max_tokens="
                f"{self.sampling.max_tokens} is less than one token; raise it or set it to 0"
            )
        return self


class Stop(Section):
    """Stop once sampled accuracy on held-out problems reaches `accuracy`, measured every `every` steps."""

    accuracy: Share
    every: Count = 20
    problems: Count = 128


class SFT(Common):
    """`recipe: sft`: maximum likelihood of the tasks' worked solutions, completion tokens only."""

    recipe: Literal["sft"] = "sft"
    stop: Stop | None = None

    @model_validator(mode="after")
    def _one_model(self) -> SFT:
        if (self.model.path is None) == (self.model.new is None):
            raise ValueError("give one of model.path (a folder or Hub id) and model.new (a small model from scratch)")
        return self


RECIPES: dict[str, type[Common]] = {"grpo": GRPO, "sft": SFT}
