"""ReST and its kin: sample, keep what the verifier likes, imitate it, repeat. A round, from top to bottom.

    Grow      G completions for each of P problems, by the policy as it is       rounds.py, rollout/
    Improve   for each threshold tau, rising: for `updates` updates minimise
              -sum over completions with r >= tau of  w(r) log pi(y | x) / N     filtering/, losses.py
    measure   pass@1 on held-out problems; a round that falls ends the run       held_out.py

ReST (arXiv:2308.08998) goes on from the policy that it has, and w is 1 (behaviour cloning) or r. ReST-EM
(arXiv:2312.06585) begins each Improve from the base model, so that a round's errors are not learnt on top of the last
one's, and caps the solutions of a problem. Best-of-n imitation is one round of the best completion of each problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_math import checkpoint, config
from grpo_math.backend.base import Metrics
from grpo_math.batch import Batch, pad_rows
from grpo_math.filtering.candidate import NEAR, Candidate, by_problem
from grpo_math.filtering.rules import UNDECIDED, apply, rules_of
from grpo_math.filtering.settings import Settings
from grpo_math.losses import negative_log_likelihood, token_mean
from grpo_math.recipes.held_out import HeldOut
from grpo_math.recipes.parts import Parts, StepResult, Stopwatch, Stream, step_seed
from grpo_math.recipes.records import completion_records, group_metrics
from grpo_math.recipes.rounds import as_candidates, draw, read_groups, sample_round, write_groups
from grpo_math.types import Completion, Group, Prompt, UserError

ROUNDS = "rounds"  # run_dir/rounds/step-N is the model after round N, step-0 the one before the first

Row = tuple[Prompt, Completion, float]  # and its reward


class REST:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.REST, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.between_updates = True
        self.held_out = HeldOut(cfg, parts)
        self.folder = Path(cfg.run_dir) / ROUNDS
        self.groups: list[Group] = []  # of the round
        self.rows: list[Row] = []  # of the Improve step
        self.scores: list[float] = []  # held-out accuracy before the first round and after each

    @property
    def stream(self) -> Stream:
        assert self.parts.stream is not None
        return self.parts.stream

    def step(self, step: int) -> StepResult:
        cfg, watch = self.cfg, Stopwatch(self.parts.watchdog)
        number, within = divmod(step - 1, cfg.steps_per_round)
        improve, update = divmod(within, cfg.updates)
        records: list[dict[str, Any]] = []
        metrics: Metrics = {"round/number": float(number + 1), "round/threshold": cfg.thresholds[improve]}

        if step == 1:
            self.finish_round(0, watch)
        if within == 0:
            self.groups = sample_round(cfg, self.parts, cfg.problems, number, step, watch)
            records = completion_records(step, self.groups, [], None, None)
            metrics |= group_metrics(self.groups, cfg.rewards or [])
            metrics["round/accuracy_before"] = self.scores[-1]
        self.between_updates = False
        if within == 0 and cfg.start == "base" and number > 0:
            with watch("restart"):
                self.parts.backend.load(self.folder / "step-0")
        if update == 0 or not self.rows:
            self.rows = self.chosen(improve)

        with watch("update"):
            places = draw(len(self.rows), cfg.prompts_per_step, update, step_seed(cfg.seed, "improve", number, improve))
            batch = self.batch([self.rows[place] for place in places])
            metrics |= self.parts.backend.step(batch, negative_log_likelihood)
        metrics["round/kept"] = float(len(self.rows))

        finished = False
        if within == cfg.steps_per_round - 1:
            self.sync(step)
            metrics |= self.finish_round(number + 1, watch)
            finished = self.fell()
        return StepResult(metrics | watch.metrics(), records, finished, self.stream.state())

    def chosen(self, improve: int) -> list[Row]:
        """What an Improve step learns from. Raises UserError where nothing is as good as its threshold."""
        cfg, threshold = self.cfg, self.cfg.thresholds[improve]
        pool, _ = apply([UNDECIDED], as_candidates(self.groups))
        settings = Settings(
            "sft",
            min_reward=threshold if cfg.threshold == "reward" else None,
            quantile=threshold if cfg.threshold == "quantile" else None,
            per_problem=cfg.per_problem,
            choose=cfg.choose if cfg.per_problem is not None else None,
            seed=cfg.seed,
        ).resolved()
        kept, _ = apply(rules_of(settings, pool), best_of_each(pool) if cfg.best_only else pool)
        if not kept:
            rewards = [c.score for c in pool] or [float("nan")]
            raise UserError(
                f"thresholds={cfg.thresholds}: none of {len(pool):,} completions has {threshold:g} or more and an end "
                f"(rewards are from {min(rewards):g} to {max(rewards):g}); lower thresholds.{improve}, sample more "
                "(problems, group_size), or start from a model that solves some"
            )
        every = [(g.prompt, c, s.reward) for g in self.groups for c, s in zip(g.completions, g.scores, strict=True)]
        return [(prompt, completion, reward or 0.0) for prompt, completion, reward in (every[c.line] for c in kept)]

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Weights w(r) / N for each of the N trained tokens."""
        batch = pad_rows([row[:2] for row in rows], [True] * len(rows), self.parts.policy.pad_id)
        weights = token_mean(batch.loss_mask, 1)
        if self.cfg.weighting == "reward":
            weights = weights * torch.tensor([reward for *_, reward in rows])[:, None]
        return replace(batch, weights=weights)

    def finish_round(self, number: int, watch: Stopwatch) -> Metrics:
        """Measure and save the model after a round; 0 is before the first."""
        with watch("evaluate"):
            metrics = self.held_out.measure()
        self.scores.append(metrics["eval/accuracy"])
        with watch("checkpoint"):
            keep = self.cfg.rounds + 1
            checkpoint.save(self.folder, number, self.parts.backend.save, keep, ranks=self.parts.ranks)
        return metrics

    def fell(self) -> bool:
        """Whether the round made it worse; then the best round's model is put back, and the run is at its end."""
        best = max(range(len(self.scores)), key=lambda number: self.scores[number])
        tolerated, last = self.cfg.tolerated_fall, len(self.scores) - 1
        if tolerated is None or self.scores[last] >= self.scores[best] - tolerated:
            return False
        print(
            f"round {last}: held-out accuracy fell from {self.scores[best]:.3f} (round {best}) to "
            f"{self.scores[last]:.3f}: the run ends with the model of round {best}"
        )
        self.parts.backend.load(self.folder / f"step-{best}")
        return True

    def sync(self, step: int) -> None:
        self.parts.engine.update_weights(self.parts.backend.weights(), version=step)

    def save(self, path: Path) -> dict[str, Any]:
        if self.parts.ranks.first:
            write_groups(path, self.groups)
        return {"scores": self.scores}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        self.groups, self.scores, self.rows = read_groups(path), state["scores"], []

    def close(self) -> None:
        pass


def best_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have their problem's highest reward: rejection sampling as in Llama 2, arXiv:2307.09288, 3.2.3."""
    best = {asked: max(c.score for c in siblings) for asked, siblings in by_problem(candidates).items()}
    return [c for c in candidates if c.score >= best[c.asked] - NEAR]
