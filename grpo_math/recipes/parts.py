"""The parts a recipe is built from: policy, engine, backend, scorer, and the stream of prompts."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from grpo_math import config
from grpo_math.backend.base import Metrics, TrainBackend
from grpo_math.backend.make import make_backend
from grpo_math.examples.raw import RawExample
from grpo_math.find import find_task, find_verifier
from grpo_math.groups import TooManyErrors, score_groups
from grpo_math.policy import Policy
from grpo_math.preflight import resolve_rewards
from grpo_math.problems import ProblemSource, ProblemStream
from grpo_math.prompts import MakePrompt, prompt_maker
from grpo_math.ranks import Ranks
from grpo_math.recipes.watchdog import Watchdog
from grpo_math.rollout.engine import RolloutEngine
from grpo_math.rollout.make import make_engine
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Group, Problem, Prompt, UserError
from grpo_math.value_model import ValueModel

MAX_TOO_LONG = 1000  # prompts in a row that do not fit: then none will


@dataclass(frozen=True)
class StepResult:
    """finished: the recipe has reached what it was asked for before the last step. stopped: why it must not go on now,
    though the same command would. worth_saving: a checkpoint is due, whatever checkpoint.every says. stream: where the
    problems stand after this step, which a sampler that works ahead is beyond."""

    metrics: Metrics
    completions: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    stopped: str | None = None
    worth_saving: bool = False
    stream: dict[str, Any] = field(default_factory=dict)


class Stream(Protocol):
    """What a recipe reads, without end."""

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON; `too_long` is how many were passed over for not fitting the context."""

    def restore(self, state: dict[str, Any]) -> None: ...


class Recipe(Protocol):
    between_updates: bool  # false from the first update of a step until the loop has marked the step as done

    @property
    def stream(self) -> Stream: ...

    def step(self, step: int) -> StepResult: ...

    def samples_in(self, step: int) -> bool:
        """Whether this step samples, with the weights of the step before it."""

    def sync(self, step: int) -> None:
        """Let the engine sample from the weights after this step."""

    def save(self, path: Path) -> dict[str, Any]:
        """Write what the backend does not know; return what is small enough for JSON."""

    def load(self, path: Path, state: dict[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class PromptStream:
    """Fresh prompts that fit the context, for ever. Those that do not are passed over and counted in `too_long`."""

    def __init__(self, problems: ProblemStream, make: MakePrompt, room: int) -> None:
        self.problems, self.make, self.room = problems, make, room
        self.too_long = 0

    def take(self, count: int) -> list[Prompt]:
        prompts: list[Prompt] = []
        in_a_row = 0
        while len(prompts) < count:
            for prompt in map(self.make, self.problems.take(count - len(prompts))):
                if len(prompt.token_ids) <= self.room:
                    prompts.append(prompt)
                    in_a_row = 0
                else:
                    in_a_row += 1
                    self.too_long += 1
            if in_a_row >= MAX_TOO_LONG:
                raise UserError(
                    f"{in_a_row} prompts in a row have more than {self.room} tokens, which is what the model's context "
                    "leaves beside sampling.max_tokens; lower sampling.max_tokens or take a model with a longer context"
                )
        return prompts

    def state(self) -> dict[str, Any]:
        return {"problems": self.problems.state(), "too_long": self.too_long}

    def restore(self, state: dict[str, Any]) -> None:
        self.problems.restore(state["problems"])
        self.too_long = state["too_long"]


@dataclass(frozen=True)
class Parts:
    policy: Policy | ValueModel  # what is trained
    engine: RolloutEngine
    backend: TrainBackend
    scorer: Scorer | None  # None where nothing is sampled
    stream: PromptStream | None  # None where there is no task
    examples: Sequence[RawExample]  # of the files of `data`
    watchdog: Watchdog
    ranks: Ranks
    samplers: Ranks  # the same ranks, for what is told while sampling, which may go on in a thread of its own
    held_out: Sequence[RawExample] = ()  # of files too, and never learnt from

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together that both the trainer and the sampler can read."""
        return min(self.policy.context, self.engine.context)

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], before: Sequence[Group] = ()
    ) -> list[Group]:
        """`before`: what else the step has sampled, to be written down too should this stop the run."""
        assert self.scorer is not None, "only a recipe with a task samples"
        try:
            return score_groups(self.scorer, prompts, completions, self.samplers)
        except TooManyErrors as error:
            error.groups[:0] = before
            raise


def gold_check(cfg: config.Common) -> Callable[[Problem], str | None] | None:
    """The first verifier's own judgement of a gold answer: it is the one that decides what is correct."""
    return getattr(find_verifier(resolve_rewards(cfg)[0].verifier), "check", None)


def build_parts(
    cfg: config.Common,
    policy: Policy | ValueModel,
    updates: int,
    source: ProblemSource | None,
    ranks: Ranks,
    watchdog: Watchdog | None = None,
    examples: Sequence[RawExample] = (),
    held_out: Sequence[RawExample] = (),
) -> Parts:
    """updates: optimizer updates of the whole run. Engine and backend take the memory that they will hold."""
    # sampling may go on in a thread of its own, and then must not come between what the trainer's ranks tell each other
    samplers = ranks.apart()
    backend = make_backend(cfg, policy, updates, ranks)
    engine = make_engine(cfg, policy, samplers, ranks)
    context = min(policy.context, engine.context)
    room = context - cfg.sampling.max_tokens
    if cfg.samples and room < 1:
        raise UserError(
            f"sampling.max_tokens={cfg.sampling.max_tokens} leaves no room for a prompt in the {context} tokens that "
            f"the model and its sampler can read; set sampling.max_tokens={context // 2} or less"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    scoring = cfg.scoring.model_copy(update={"workers": max(1, cfg.scoring.workers // here)})
    rewards = resolve_rewards(cfg)
    stream = None
    if source is not None and cfg.task is not None:
        make = prompt_maker(cfg.task, find_task(cfg.task.name), policy.tokenizer)
        stream = PromptStream(ProblemStream(source, cfg.seed), make, room)
    return Parts(
        policy=policy,
        engine=engine,
        backend=backend,
        scorer=Scorer(rewards, scoring, cfg.sandbox) if rewards else None,
        stream=stream,
        examples=examples,
        watchdog=watchdog or Watchdog(cfg.phase_timeout_s),
        ranks=ranks,
        samplers=samplers,
        held_out=held_out,
    )


def step_seed(*parts: int | str) -> int:
    """One 63-bit seed out of several numbers: neighbours (seed 0 step 1, seed 1 step 0) share nothing."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Stopwatch:
    """`with watch("generate"):` adds to watch.seconds["generate"], under the watchdog's eye."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.watchdog.enter(name)
        try:
            yield
        finally:
            self.watchdog.leave()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self, others: Mapping[str, float] = MappingProxyType({})) -> Metrics:
        """others: seconds that another watch has taken."""
        return {f"time/{name}": seconds for name, seconds in {**others, **self.seconds}.items()}
