"""What every recipe's configuration has: the task, the verifiers, the optimizer, the engine, the back end.

Left out: the recipes themselves (config.py), the sections of the algorithm (config_algorithm.py), and those of model,
engine and backend (config_stack.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from grpo_math.config_base import Count, CountOrNone, Decay, NonNegative, PathText, Positive, Section, Share
from grpo_math.config_learned import LearnedReward, which
from grpo_math.config_stack import Backend, Model, Rollout
from grpo_math.sandbox.limits import LEVELS, Limits

Isolation = Literal["namespaces", "seccomp", "process"]


class Task(Section):
    """Which problems, and how they are put to the model. None takes the task file's own choice; prompt is the name of
    one of its PROMPTS, of which template, system and chat replace parts. exclude: files that name problems to leave
    out, such as `grpo-math decontaminate` writes; limit counts these too."""

    name: str
    split: str = "train"
    path: PathText | None = None
    limit: Count | None = None
    exclude: list[PathText] | None = None
    options: dict[str, Any] = {}
    prompt: str | None = None
    template: str | None = None
    system: str | None = None
    chat: bool | None = None

    shorthand = "name"

    @field_validator("exclude", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def _has_question(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value and "{prompt}" not in value:
            raise ValueError("has no {question} in it; the problem's text would never reach the model")
        return value


class Reward(Section):
    """One verifier and its weight in the reward."""

    verifier: str
    weight: float = 1.0
    options: dict[str, Any] = {}

    shorthand = "verifier"

    @property
    def called(self) -> str:
        return self.verifier


# an item of `rewards` is the one or the other, by the key that it has; the tags only stand in pydantic's own errors
AnyReward = Annotated[
    Annotated[Reward, Tag("(verifier)")] | Annotated[LearnedReward, Tag("(model)")],
    Discriminator(
        which,
        custom_error_type="reward_of_neither_kind",
        custom_error_message="give it one of the keys verifier (a program that checks) and model (a reward model)",
    ),
]


def verifiers_in(rewards: Iterable[Reward | LearnedReward] | None) -> list[Reward]:
    return [reward for reward in rewards or () if isinstance(reward, Reward)]


class Scoring(Section):
    """Verifiers run in `workers` processes on each machine; one that takes over `timeout_s` seconds for a completion is
    killed, and one that allocates over `memory_mb` megabytes gets a MemoryError. What is not judged `batch_timeout_s`
    seconds after it was asked for, all completions of a step together, has no score."""

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
    """What every recipe has. task: None where all is learnt from a file, and nothing is sampled."""

    takes_learned_rewards: ClassVar[bool] = False
    either: ClassVar[tuple[frozenset[str], ...]] = ()  # keys of which a run has one

    run_dir: PathText
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    model: Model
    task: Task | None = None
    steps: Count = 100
    prompts_per_step: Count = 16
    micro_batch_tokens: Count = 16384
    optimizer: Optimizer = Optimizer()
    backend: Backend = Backend()
    rollout: Rollout = Rollout()
    scoring: Scoring = Scoring()
    sandbox: Sandbox = Sandbox()
    rewards: list[AnyReward] | None = None
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

    @property
    def trained_temperature(self) -> float:
        """At which the trainer computes log-probabilities: that of sampling where the loss compares it with sampling,
        otherwise 1, the model's own distribution."""
        return 1.0

    @property
    def samples(self) -> bool:
        """Whether anything is sampled, to train on or to measure."""
        return self.task is not None or bool(self.evaluation.every)

    @model_validator(mode="after")
    def _has_what_it_samples(self) -> Common:
        if self.task is not None:
            return self
        if self.evaluation.every and self.evaluation.task is None:
            raise ValueError("evaluation.every is set, and there is no task to evaluate on; set evaluation.task")
        if self.rollout.engine != "hf" and not self.evaluation.every:
            raise ValueError(
                f"rollout.engine={self.rollout.engine} would only hold memory: without a task nothing is sampled; "
                "leave rollout out"
            )
        if self.rewards is not None and not self.evaluation.every:
            raise ValueError("rewards are for samples, and without a task nothing is sampled; leave rewards out")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Common:
        engine = self.rollout.engine
        if self.model.new is not None and engine != "hf":
            raise ValueError(f"model.new makes a model that {engine} has no folder of; set rollout.engine=hf")
        if engine == "hf" and self.model.lora.rank and self.model.lora.sync == "adapter":
            raise ValueError(
                "model.lora.sync=adapter is for vLLM, and rollout.engine=hf samples from the trained model itself; "
                "leave model.lora.sync out"
            )
        if self.model.load_in_4bit and self.backend.name == "deepspeed":
            raise ValueError(
                "model.load_in_4bit=true with backend.name=deepspeed has not been made to work; set "
                "backend.name=torch, or load_in_4bit=false"
            )
        return self

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("rewards")
    @classmethod
    def _named_once(cls, value: list[AnyReward] | None) -> list[AnyReward] | None:
        names = [r.called for r in value or []]
        if value == [] or len(set(names)) < len(names):
            models = " or, for several models, a name" if any(isinstance(r, LearnedReward) for r in value or []) else ""
            raise ValueError(f"lists {names}; name at least one, and each once (give it a weight{models})")
        return value

    @model_validator(mode="after")
    def _models_reward_where_they_can(self) -> Common:
        for number, reward in enumerate(self.rewards or ()):
            if isinstance(reward, LearnedReward) and not self.takes_learned_rewards:
                raise ValueError(
                    f"rewards.{number}.model={reward.model}: only the recipe grpo learns from a reward model while it "
                    "samples; name verifiers alone, or set recipe: grpo"
                )
        return self
