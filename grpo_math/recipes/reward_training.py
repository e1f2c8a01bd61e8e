"""Training a model of values from files: what both recipes of reward models do. One step, from top to bottom.

    1. take     examples of the files, in tokens                    reward_examples.py
    2. update   minimise the objective of the scores                reward_objectives.py
    3. measure  the scores of what is held out, now and then

Nothing is sampled. Left out: what surrounds a step (loop.py), and what the recipes differ in (reward_model.py,
process_reward_model.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import LossFn, Metrics
from grpo_math.batch import Batch
from grpo_math.examples.raw import RawExample
from grpo_math.examples.stream import ExampleStream
from grpo_math.recipes.from_files import room_of
from grpo_math.recipes.parts import Parts, StepResult, Stopwatch
from grpo_math.recipes.reward_examples import Encode, Judged, every_token, rows_of
from grpo_math.recipes.reward_objectives import Objective
from grpo_math.types import UserError
from grpo_math.value_model import SUFFIXES

KEY = "grpo_math"  # in the saved config.json
SCORED = 2000  # examples whose scores a saved model tells of
AT_ONCE = 128  # examples that are scored together, so that short rows are not padded to the longest of all


@dataclass(frozen=True)
class Task:
    """What a recipe learns. encode: an example in tokens; check: raises what that would, without making tokens where it
    can; said: what the saved model says of itself. every_token: its labels are learnt at every token."""

    objective: Objective
    encode: Encode
    check: Any
    said: dict[str, Any]
    every_token: bool = False


class RewardTraining:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.RewardCommon, parts: Parts, task: Task) -> None:
        self.cfg, self.parts, self.task = cfg, parts, task
        self.between_updates = True
        tell_of_a_lost_head(cfg, parts.policy)
        self.room = room_of(cfg, parts)
        self.stream: ExampleStream[Judged] = ExampleStream(
            parts.examples, task.encode, cfg.seed, self.room, check=task.check
        )
        self.held_out = self.fitting(parts.held_out)
        if parts.held_out and not self.held_out:
            raise UserError(
                f"held_out: none of its {len(parts.held_out):,} examples has at most {self.room} tokens; raise "
                "data.max_length where it is set, give other files, or set held_out.every=0"
            )
        self.sample = spread(parts.examples, SCORED)
        self.scores: dict[str, Any] = {}  # of the sample, by the model of the newest checkpoint

    def step(self, step: int) -> StepResult:
        cfg, watch = self.cfg, Stopwatch(self.parts.watchdog)
        self.between_updates = False
        with watch("update"):
            examples = self.stream.take(cfg.prompts_per_step)
            taught = [every_token(example) for example in examples] if self.task.every_token else examples
            batch = self.batch(taught)
            seen: dict[int, list[float]] = {}
            metrics = self.parts.backend.step(batch, self.loss(taught, seen))
            # every rank has seen the scores of its rows
            known = dict(self.parts.ranks.gather(list(seen.items())))
            scores = torch.tensor([s for i, example in enumerate(examples) for s in self.told(known[i], example)])
            metrics |= prefixed("score", self.task.objective.metrics(examples, scores))
        tokens = sum(len(read.example.completion.token_ids) for example in examples for read in example.reads)
        metrics |= {"data/epoch": float(self.stream.epoch), "completion/length": tokens / len(batch)}
        last = step == cfg.steps
        if self.held_out and (last or step % cfg.held_out.every == 0):
            with watch("evaluate"):
                metrics |= prefixed("eval", self.measure(self.held_out))
        if last or (cfg.checkpoint.every and step % cfg.checkpoint.every == 0):
            with watch("score"):
                self.scores = score_summary(self.score(self.fitting(self.sample)))
        return StepResult(metrics | watch.metrics(), stream=self.stream.state())

    def loss(self, examples: Sequence[Judged], seen: dict[int, list[float]]) -> LossFn:
        """The loss of an update, which leaves each example's scores in `seen`."""

        def loss(values: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            assert part.units is not None
            scores, weights = values[part.loss_mask], part.weights[part.loss_mask]
            which = part.units.unique_consecutive().tolist()
            some = [examples[i] for i in which]
            if bool(weights.any()):  # rows that only keep step with other ranks are another rank's to tell of
                told = scores.detach().cpu().split([len(example.targets) for example in some])
                seen.update(zip(which, (values.tolist() for values in told), strict=True))
            return self.task.objective.loss(some, scores, weights), {}

        return loss

    def told(self, scores: Sequence[float], example: Judged) -> Sequence[float]:
        """Those at the example's own places, which are what the model is asked for."""
        return [scores[place] for place in example.reads[0].places] if self.task.every_token else scores

    def batch(self, examples: Sequence[Judged]) -> Batch:
        return rows_of(examples, self.task.objective.weights(examples), self.parts.policy.pad_id)

    def fitting(self, rows: Iterable[RawExample]) -> list[Judged]:
        found = (self.task.encode(row).fitted(self.room, truncate=False) for row in rows)
        return [example for example in found if example is not None]

    def score(self, examples: Sequence[Judged]) -> Tensor:
        """(N,) the model's scores at all places of the examples, on every rank."""
        scores = []
        for start in range(0, len(examples), AT_ONCE):
            batch = self.batch(examples[start : start + AT_ONCE])
            scores.append(self.parts.backend.logprobs(batch)[batch.loss_mask])
        return torch.cat(scores)

    def measure(self, examples: Sequence[Judged]) -> Metrics:
        objective, scores = self.task.objective, self.score(examples)
        weights = torch.tensor([weight for some in objective.weights(examples) for weight in some])
        return {"loss": float(objective.loss(examples, scores, weights))} | objective.metrics(examples, scores)

    def samples_in(self, step: int) -> bool:
        return False

    def sync(self, step: int) -> None:
        pass

    def save(self, path: Path) -> dict[str, Any]:
        if self.parts.ranks.first:
            settings = self.parts.policy.model.config
            setattr(settings, KEY, self.task.said | self.scores)
            settings.save_pretrained(path)
        return {"scores": self.scores}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        self.scores = state["scores"]

    def close(self) -> None:
        pass


def tell_of_a_lost_head(cfg: config.Common, policy: Any) -> None:
    """policy: the ValueModel as it was loaded. Where it says that it has a head, and its files have none, it begins at
    0 like a new one, which whoever wanted to train a reward model on ought to know."""
    named = (policy.model.config.architectures or [""])[0]
    # ZeRO 3 has split the weights over the ranks, and keeps this one's part aside
    parts = [getattr(weight, "ds_tensor", weight) for weight in policy.head.parameters()]
    if named.endswith(SUFFIXES[policy.kind]) and not any(bool(part.any()) for part in parts):
        print(
            f"model.path={cfg.model.path} is {named}, and its files have no head, or one of zeros: every score begins "
            "at 0, as on a plain language model"
        )


def score_summary(scores: Tensor) -> dict[str, Any]:
    """Of the scores that the training data get, for whoever uses the model as a reward and wants to see when the scores
    leave the range that it was taught."""
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()) if len(scores) > 1 else 0.0,
        "score_p99": float(scores.double().quantile(0.99)),
        "scores": len(scores),
    }


def spread(rows: Sequence[RawExample], count: int) -> list[RawExample]:
    """At most so many, evenly spread over the files."""
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def prefixed(name: str, metrics: Metrics) -> Metrics:
    return {f"{name}/{key}": value for key, value in metrics.items()}
