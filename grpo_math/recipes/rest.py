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

import math
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
from grpo_math.recipes.rounds import ROUNDS, as_candidates, completions_of, draw, read_round, sample_round
from grpo_math.types import Completion, Group, Prompt, UserError

Row = tuple[Prompt, Completion, float]  # and its reward


class REST:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.REST, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.between_updates = True
        self.held_out = HeldOut(cfg, parts)
        self.folder = Path(cfg.run_dir) / ROUNDS
        self.groups: list[Group] = []  # of the round
        self.rows: list[Row] | None = None  # of the Improve step
        self.synced = -1  # the step whose weights the engine has
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
            records = completion_records(step, self.groups, [], None, None, temperature=cfg.sampling.temperature)
            metrics |= group_metrics(self.groups, cfg.rewards or [])
            metrics["round/accuracy_before"] = self.scores[-1]
        self.between_updates = False
        if within == 0 and cfg.start == "base" and number > 0:
            with watch("restart"):
                self.restore(0)
        if update == 0 or self.rows is None:
            self.rows = self.chosen(number, improve)

        if self.rows:
            with watch("update"):
                seed = step_seed(cfg.seed, "improve", number, improve)
                places = draw(len(self.rows), cfg.prompts_per_step, update, seed)
                batch = self.batch([self.rows[place] for place in places])
                metrics |= self.parts.backend.step(batch, negative_log_likelihood)
        metrics["round/kept"] = float(len(self.rows))

        finished, last = False, within == cfg.steps_per_round - 1
        if last:
            self.sync(step)
            metrics |= self.finish_round(number + 1, watch)
            finished = self.fell()
        return StepResult(metrics | watch.metrics(), records, finished, worth_saving=last, stream=self.stream.state())

    def samples_in(self, step: int) -> bool:
        return (step - 1) % self.cfg.steps_per_round == 0

    def chosen(self, number: int, improve: int) -> list[Row]:
        """What an Improve step learns from. Where nothing is as good as its threshold it learns nothing; where that is
        the run's first, UserError."""
        cfg, threshold = self.cfg, self.cfg.thresholds[improve]
        if not self.groups:  # the run goes on in the middle of a round
            self.groups = read_round(cfg, cfg.problems, number)
        pool, counts = apply([UNDECIDED], as_candidates(self.groups))
        settings = Settings(
            "sft",
            min_reward=threshold if cfg.threshold == "reward" else None,
            quantile=threshold if cfg.threshold == "quantile" else None,
            per_problem=cfg.per_problem,
            choose=cfg.choose,
            seed=cfg.seed,
        ).resolved()
        kept: list[Candidate] = []
        if pool:
            kept, more = apply(rules_of(settings, pool), best_of_each(pool) if cfg.best_only else pool)
            counts += more
        if not kept:
            dropped = ", ".join(f"{count.rule}: {count.dropped:,}" for count in counts)
            what = f"round {number + 1}, thresholds={cfg.thresholds}: {threshold:g} leaves nothing to learn from"
            if (number, improve) == (0, 0):
                raise UserError(
                    f"{what} ({dropped}); lower thresholds.0, sample more (problems, group_size, sampling.max_tokens), "
                    "or start from a model that solves some"
                )
            print(f"{what} ({dropped}); this Improve step is passed over")
        every = completions_of(self.groups)
        return [(group.prompt, said, score.reward or 0.0) for group, said, score in (every[c.line] for c in kept)]

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
            # one that is saved again after a kill must not take the later ones for newer
            checkpoint.save(self.folder, number, self.parts.backend.save, number + 1, ranks=self.parts.ranks)
        return metrics

    def restore(self, number: int) -> None:
        """Back to the model after that round, with its optimizer."""
        path = self.folder / f"step-{number}"
        if damage := self.parts.ranks.tell(lambda: checkpoint.damage(path)):
            raise UserError(
                f"{path}, which the run goes back to, is damaged ({damage}); put a good copy there, or use --fresh to "
                "start over"
            )
        self.parts.backend.load(path)

    def fell(self) -> bool:
        """Whether the round made it worse; then the best round's model is put back, and the run is at its end."""
        measured = [score if score == score else -math.inf for score in self.scores]  # NaN where nothing was judged
        best = measured.index(max(measured))
        tolerated, last = self.cfg.tolerated_fall, len(self.scores) - 1
        if tolerated is None or not self.scores[last] < self.scores[best] - tolerated:
            return False
        print(
            f"round {last}: held-out accuracy fell from {self.scores[best]:.3f} (round {best}) to "
            f"{self.scores[last]:.3f}: the run ends with the model of round {best}"
        )
        self.restore(best)
        return True

    def sync(self, step: int) -> None:
        if step != self.synced:  # at the end of a round it is measured first, and then sampled from
            self.parts.engine.update_weights(self.parts.backend.weights(), version=step)
            self.synced = step

    def save(self, path: Path) -> dict[str, Any]:
        return {"scores": self.scores}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        self.scores = state["scores"]

    def close(self) -> None:
        pass


def best_of_each(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have their problem's highest reward: rejection sampling as in Llama 2, arXiv:2307.09288, 3.2.3."""
    best = {asked: max(c.score for c in siblings) for asked, siblings in by_problem(candidates).items()}
    return [c for c in candidates if c.score >= best[c.asked] - NEAR]
