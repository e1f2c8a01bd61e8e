"""The scored groups of a step: sampled in turn with training, or ahead of it by a bounded number of steps.

With a staleness of k the groups of step s are sampled with the weights after step s - 1 - k, while steps s - k to s - 1
are trained on. Which weights a step is sampled with depends on k alone, never on how fast anything is, so that a run
can be repeated; only a run that is continued begins with fresh weights again. Left out: the correction for old weights
(correction.py), and the check that the bound is kept (grpo.py).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from grpo_math import config
from grpo_math.recipes.parts import Parts, Stopwatch, step_seed
from grpo_math.recipes.watchdog import Watchdog
from grpo_math.rewards import has_signal
from grpo_math.types import Group, Sampling

CLOSE_S = 10.0  # longest that the end of a run waits for what is being sampled in vain


@dataclass(frozen=True)
class Sampled:
    """groups: what the step trains on. filtered: what dynamic sampling left out. stream: where the problems stand after
    it, for a checkpoint of this step."""

    groups: list[Group]
    filtered: list[Group]
    stream: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)


class Sampler(Protocol):
    def take(self, step: int) -> Sampled:
        """The groups of this step; steps are taken one after the other."""

    def rest(self) -> None:
        """Return when nothing is being sampled: weights may change until the next `take`."""

    def close(self) -> None: ...


def sample_groups(
    parts: Parts, count: int, sampling: Sampling, watch: Stopwatch, before: Sequence[Group] = ()
) -> list[Group]:
    """The next `count` problems with sampling.n scored completions each. before: what the step has sampled already, to
    be written down too should scoring stop the run."""
    assert parts.stream is not None, "only a recipe with a task samples"
    with watch("problems"):
        prompts = parts.stream.take(count)
    with watch("generate"):
        completions = parts.engine.generate(prompts, sampling)
    with watch("verify"):
        return parts.score(prompts, completions, before)


class InTurn:
    """Sample a step when it is asked for."""

    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.sampling = Sampling(cfg.group_size, cfg.sampling.max_tokens, cfg.sampling.temperature)

    def take(self, step: int) -> Sampled:
        """With dynamic sampling (DAPO, arXiv:2503.14476, eq. 11) groups whose task rewards are all equal are replaced
        by fresh ones, for at most max_rounds rounds."""
        cfg, parts, watch = self.cfg, self.parts, Stopwatch(self.parts.watchdog)
        kept: list[Group] = []
        filtered: list[Group] = []
        for sampling_round in range(cfg.dynamic_sampling.max_rounds if cfg.dynamic_sampling.enabled else 1):
            sampling = replace(self.sampling, seed=step_seed(cfg.seed, step, sampling_round))
            missing = cfg.prompts_per_step - len(kept)
            for group in sample_groups(parts, missing, sampling, watch, before=[*kept, *filtered]):
                (kept if not cfg.dynamic_sampling.enabled or has_signal(group) else filtered).append(group)
            if len(kept) == cfg.prompts_per_step:
                break
        assert parts.stream is not None
        return Sampled(kept, filtered, parts.stream.state(), watch.seconds)

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


class Ahead:
    """Sample in a thread of its own, up to `staleness` steps ahead of the one that is trained on."""

    def __init__(self, inner: Sampler, staleness: int, steps: int, watchdog: Watchdog) -> None:
        self.inner, self.staleness, self.steps, self.watchdog = inner, staleness, steps, watchdog
        self.watch = Stopwatch(watchdog)
        self.failed: BaseException | None = None
        self.asked: queue.Queue[tuple[int, Future[Sampled]] | None] = queue.Queue()
        self.pending: deque[tuple[int, Future[Sampled]]] = deque()
        self.thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self.thread.start()

    def take(self, step: int) -> Sampled:
        start = self.pending[-1][0] + 1 if self.pending else step
        for ahead in range(start, min(step + self.staleness, self.steps) + 1):
            future: Future[Sampled] = Future()
            self.pending.append((ahead, future))
            self.asked.put((ahead, future))
        number, sampled = self.pending.popleft()
        assert number == step, (number, step)
        with self.watch("wait"):
            result = sampled.result()
        waited, self.watch = self.watch.seconds, Stopwatch(self.watchdog)
        return replace(result, seconds={**result.seconds, **waited})

    def rest(self) -> None:
        with self.watch("wait"):
            for _, future in self.pending:
                future.exception()  # waits; `take` raises it

    def close(self) -> None:
        self.asked.put(None)
        self.thread.join(CLOSE_S)

    def _work(self) -> None:
        while (job := self.asked.get()) is not None:
            step, future = job
            if self.failed is not None:  # nothing is sampled any more while the run is being saved
                future.set_exception(self.failed)
                continue
            try:
                future.set_result(self.inner.take(step))
            except BaseException as error:  # raised again in `take`, in the main thread
                self.failed = error
                future.set_exception(error)


def make_sampler(cfg: config.GRPO, parts: Parts) -> Sampler:
    in_turn = InTurn(cfg, parts)
    if not cfg.run.staleness:
        return in_turn
    return Ahead(in_turn, cfg.run.staleness, cfg.steps, parts.watchdog)
