"""Guards from step to step: the metrics guard/..., and alarms where they stay past their thresholds.

Left out: what each of them is (guards.py), how an alarm is shown (progress.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_math.backend.base import Metrics
from grpo_math.config_learned import Guards
from grpo_math.learned.guards import beyond, correlation, gap, rise, score_per_kl, share_above
from grpo_math.learned.normalise import Running
from grpo_math.types import Group, Verdict

FIRST_STEPS = 5  # that rises are measured from: the mean of one step's problems is too much a matter of luck
NONE = Running()
LOWEST = ("correlation", "score_per_kl")  # of several models the lowest is the worst; of the rest the highest


@dataclass(frozen=True)
class History:
    """One kind of reward, of completions so far. first: of the first steps."""

    steps: int = 0
    first: Running = NONE
    all: Running = NONE

    def add(self, values: Tensor) -> History:
        first = self.first.add(values) if self.steps < FIRST_STEPS else self.first
        return History(self.steps + 1, first, self.all.add(values))

    def rise(self, values: Tensor) -> float:
        """Of a step's mean, in standard deviations of all."""
        return rise(mean(values), self.first.mean, self.all.std)

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "first": self.first.state(), "all": self.all.state()}

    @staticmethod
    def of(state: Mapping[str, Any]) -> History:
        return History(state["steps"], Running.of(state["first"]), Running.of(state["all"]))


NOTHING = History(), History()


class Watch:
    """p99: of each model's scores on its training data (of a process model's steps), by its name; None where that is
    not known."""

    def __init__(self, cfg: Guards, p99: Mapping[str, float | None]) -> None:
        self.cfg, self.p99 = cfg, dict(p99)
        self.seen = dict.fromkeys(self.p99, NOTHING)  # of each model's scores, and of the verified rewards beside them
        self.streaks = dict.fromkeys(cfg.thresholds, 0)
        self.stopped: str | None = None  # why the run is to end

    def look(self, groups: Sequence[Group], kl: float = math.nan) -> Metrics:
        """The guards of a step, once a step. groups: as LearnedRewards.score gives them. kl: mean nats a token from the
        reference, where that is known. Of several models guard/NAME is the worst one's, and each has its own."""
        scores = [score for group in groups for score in group.scores]
        lengths = torch.tensor([float(len(c.token_ids)) for group in groups for c in group.completions])
        verified = column([score.verdict for score in scores])
        nats = kl * float(lengths.mean()) if len(lengths) else math.nan
        each = {
            name: self._of_model(name, [score.parts[name] for score in scores], verified, lengths, nats)
            for name in self.p99
        }
        guards = {key: worst(key, [own[key] for own in each.values()]) for key in next(iter(each.values()))}
        metrics = {f"guard/{key}": value for key, value in guards.items()}
        if len(each) > 1:
            metrics |= {f"guard/{name}/{key}": value for name, own in each.items() for key, value in own.items()}
        return metrics | self._alarms(guards)

    def _of_model(
        self, name: str, verdicts: Sequence[Verdict], verified: Tensor, lengths: Tensor, nats: float
    ) -> dict[str, float]:
        learned = column(verdicts)
        scored, both = ~learned.isnan(), ~(learned.isnan() | verified.isnan())
        scores, rewards = self.seen[name]
        scores, rewards = scores.add(learned), rewards.add(verified)
        self.seen[name] = scores, rewards
        return {
            "gap": gap(scores.rise(learned), rewards.rise(verified)),
            "correlation": correlation(learned[both], verified[both]),
            "length_correlation": correlation(learned[scored], lengths[scored]),
            "above_p99": share_above([value for verdict in verdicts for value in single(verdict)], self.p99[name]),
            "score_per_kl": score_per_kl(mean(learned) - scores.first.mean, nats),
        }

    def begin_anew(self, name: str) -> None:
        """The model has learnt since, and its scores are another's: rises begin again, its own and the verifier's that
        they are compared with, and how high its training data score is not known any more."""
        self.seen[name], self.p99[name] = NOTHING, None
        self.streaks = dict.fromkeys(self.streaks, 0)

    def _alarms(self, guards: Mapping[str, float]) -> Metrics:
        for name, threshold in self.cfg.thresholds.items():
            if not math.isnan(guards[name]):  # a step that cannot tell changes nothing
                self.streaks[name] = self.streaks[name] + 1 if beyond(name, guards[name], threshold) else 0
        patience = self.cfg.patience
        ringing = {name: past >= patience and not math.isnan(guards[name]) for name, past in self.streaks.items()}
        if self.cfg.stop and any(ringing.values()):
            why = "; ".join(self.explained(name, guards[name]) for name, rings in ringing.items() if rings)
            self.stopped = f"guards.stop=true ends the run: {why}"
        return {
            "guard/alarms": float(sum(ringing.values())),
            **{f"guard/alarm/{name}": float(rings) for name, rings in ringing.items()},
        }

    def explained(self, name: str, value: float) -> str:
        threshold = self.cfg.thresholds[name]
        return f"guard/{name} is {value:.3g}, past guards.{name}={threshold:g} for {self.streaks[name]} steps"

    def state(self) -> dict[str, Any]:
        """All that restore needs, as plain JSON."""
        return {
            "seen": {name: [history.state() for history in both] for name, both in self.seen.items()},
            "p99": dict(self.p99),
            "streaks": dict(self.streaks),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = {name: (History.of(scores), History.of(r)) for name, (scores, r) in state["seen"].items()}
        self.p99 = dict(state["p99"])
        self.streaks = {name: state["streaks"].get(name, 0) for name in self.streaks}


def column(verdicts: Sequence[Verdict]) -> Tensor:
    """(B,) float64, NaN where there is no reward."""
    return torch.tensor([math.nan if v.reward is None else v.reward for v in verdicts], dtype=torch.float64)


def single(verdict: Verdict) -> list[float]:
    """The scores that a model gives one by one: of each step, or of the whole."""
    if verdict.step_rewards:
        return [value for _, value in verdict.step_rewards]
    return [] if verdict.reward is None else [verdict.reward]


def mean(values: Tensor) -> float:
    return float(values.nanmean())


def worst(name: str, values: Sequence[float]) -> float:
    """Of several models; NaN where none can tell."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return min(known) if name in LOWEST else max(known, key=abs if name == "length_correlation" else float)
