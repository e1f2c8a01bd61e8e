"""GRPO and its family: sample groups, score them, compare siblings, update the policy. One step, from top to bottom.

    1. sample    G completions for each of P prompts                       sampling.py, rollout/
    2. score     a reward for each from programs that check it             scoring.py, rewards.py
                 or from models that have learnt to                        learned/
    3. compare   A = how much better than its siblings; or its steps,      advantages.py, credit.py
                 or each token, than was expected
    4. update    minimise  sum_t w_t (-surrogate(ratio_t, A) + beta KL_t)  losses.py, kl.py, batch.py
    5. sync      the sampler gets the new weights, and must agree with them

Which advantage, loss, KL and correction is chosen once, in __init__, from the config. Left out: what surrounds a step
(run folder, checkpoints, evaluation, signals), which is the same for every recipe and lives in loop.py, and that there
may be several processes, which only the engine, the scorer and the backend know.
"""

# P prompts, G group size, B completions with a score (rows of the batch), T tokens

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import Metrics
from grpo_math.batch import Batch, make_batch
from grpo_math.kl import KLS, adapt
from grpo_math.losses import REDUCTIONS, make_loss, resolve
from grpo_math.recipes.agreement import check_sampler, check_staleness, largest_gap
from grpo_math.recipes.credit import ByGroup, ByStep, Credit, Rewards
from grpo_math.recipes.critic import by_critic
from grpo_math.recipes.imitation import Imitation
from grpo_math.recipes.parts import Parts, StepResult, Stopwatch, Stream
from grpo_math.recipes.records import completion_records, group_metrics, mean_of
from grpo_math.recipes.reward_models import reward_models
from grpo_math.recipes.sampling import make_sampler
from grpo_math.recipes.vine import ByVine
from grpo_math.returns import whiten
from grpo_math.rewards import group_rewards
from grpo_math.types import Group


class GRPO:
    """The state of a run between steps, and `step`, which takes it one step on."""

    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.sampler = make_sampler(cfg, parts)
        self.between_updates = True
        self.models = reward_models(cfg, parts)
        self.credit = CREDITS.get(cfg.advantage, ByGroup)(cfg, parts)
        self.backend = self.credit.actor(parts.backend)
        self.pretraining = None if cfg.pretraining is None else Imitation(cfg, parts, cfg.pretraining)
        self.reduction = REDUCTIONS[resolve(cfg.loss)[2]]
        self.loss = make_loss(cfg.loss, cfg.kl, cfg.correction)
        self.penalty_buffer = int(cfg.overlong.penalty_buffer * cfg.sampling.max_tokens)
        self.kl_coefficient = cfg.kl.coefficient
        # off means off: with a coefficient of 0 no reference is loaded
        self.reference = self.backend.reference(cfg.kl) if cfg.kl.coefficient else None
        self.updates = cfg.updates_per_step * cfg.passes
        # the first update of a step has the sampling weights: old and new log-probabilities are then one and the same
        self.needs_old = self.updates > 1 or cfg.correction.name != "none" or self._kl_in_reward
        self.every_row_counts = (
            bool(cfg.loss.entropy_bonus) or cfg.critic.shared or (cfg.kl.coefficient > 0 and not self._kl_in_reward)
        )
        # older weights differ, and that they are no older than allowed is checked by their version
        differ = cfg.run.staleness > 0 and cfg.rollout.max_logprob_gap is None
        self.max_gap = math.inf if differ else largest_gap(cfg)

    @property
    def stream(self) -> Stream:
        assert self.parts.stream is not None
        return self.parts.stream

    @property
    def _kl_in_reward(self) -> bool:
        return self.cfg.kl.coefficient > 0 and self.cfg.kl.where == "reward"

    def step(self, step: int) -> StepResult:
        cfg, parts, watch = self.cfg, self.parts, Stopwatch(self.parts.watchdog)

        sampled = self.sampler.take(step)
        groups, filtered = sampled.groups, sampled.filtered
        metrics = group_metrics([*groups, *filtered], cfg.rewards or [])
        metrics["groups/filtered"] = float(len(filtered))
        metrics["sampler/staleness"] = check_staleness([*groups, *filtered], step, cfg.run.staleness)
        metrics |= self.credit.look(groups, step, watch)
        parts.engine.sleep()
        groups, learned = self.models.score(groups, watch)
        metrics |= learned
        if not any(score.reward is not None for group in groups for score in group.scores):
            self.move_reference_and_coefficient(metrics, step)
            metrics["groups/no_signal"] = 1.0
            metrics |= self.models.look(groups, step, math.nan, watch) | watch.metrics(sampled.seconds)
            records = completion_records(step, groups, filtered, None, None, temperature=cfg.sampling.temperature)
            return StepResult(metrics, records, stream=sampled.stream)

        self.between_updates = False
        with watch("update"):
            batch = make_batch(
                groups,
                self.reduction,
                constant_length=cfg.loss.constant_length or cfg.sampling.max_tokens,
                pad_id=parts.policy.pad_id,
                mask_truncated=cfg.overlong.mask,
            )
            metrics["sampler/gap"] = check_sampler(self.backend, batch, step, self.max_gap)
            batch = self.with_old_and_reference(batch)

            rewards, measured = self.rewards_of(groups, batch)
            metrics |= measured

            batch = self.credit.assign(groups, rewards, batch)
            if cfg.whiten:
                batch = batch.with_advantages(whiten(batch.advantages, batch.loss_mask))
            advantages = of_completions(batch, rewards)
            metrics["groups/no_signal"] = without_signal(batch, rewards, len(filtered))
            if step > cfg.critic.warmup_steps:
                metrics |= self.update(batch, step)
                self.move_reference_and_coefficient(metrics, step)
            metrics |= self.credit.learn(batch, step)

        metrics |= self.models.look(groups, step, metrics.get("kl/ref", math.nan), watch)
        metrics |= watch.metrics(sampled.seconds)
        records = completion_records(
            step, groups, filtered, rewards.in_all, advantages, temperature=cfg.sampling.temperature
        )
        return StepResult(metrics, records, stopped=self.models.stopped, stream=sampled.stream)

    def samples_in(self, step: int) -> bool:
        return True

    def sync(self, step: int) -> None:
        """Without this the next step would be sampled with old weights."""
        self.sampler.rest()
        self.parts.engine.update_weights(self.backend.weights(), version=step)

    def with_old_and_reference(self, batch: Batch) -> Batch:
        """The log-probabilities that the updates compare with, taken before the first of them."""
        if self.needs_old:
            batch = self.credit.recall(batch, self.backend)
        ref = None if self.reference is None else batch.once(self.reference.logprobs)
        return replace(batch, ref_logprobs=ref)

    def rewards_of(self, groups: Sequence[Group], batch: Batch) -> tuple[Rewards, Metrics]:
        """What training goes by: the scores, shaped by length and by the distance to the reference."""
        cfg, metrics = self.cfg, {}
        scores = group_rewards(groups, cfg.sampling.max_tokens, self.penalty_buffer, cfg.overlong.penalty)
        rewards = Rewards(scores)
        if self.penalty_buffer:
            metrics["reward/overlong"] = mean_of(scores) - mean_of(group_rewards(groups, 0, 0, 0.0))
        if self._kl_in_reward:
            penalty, metrics["kl/ref"] = self.kl_penalty(batch)
            metrics["reward/kl"] = -float(penalty.sum(1).mean())
            rewards = replace(rewards, penalty=penalty)
        known = rewards.in_all[rewards.scored]
        return rewards, metrics | {"reward/mean": float(known.mean()), "reward/std": float(known.std())}

    def kl_penalty(self, batch: Batch) -> tuple[Tensor, float]:
        """beta * k_t of each token (B, T), to be taken from its reward, and the mean k per token."""
        assert batch.old_logprobs is not None
        assert batch.ref_logprobs is not None
        distance = KLS[self.cfg.kl.estimator](batch.old_logprobs, batch.ref_logprobs) * batch.loss_mask
        return self.kl_coefficient * distance, float(distance.sum() / batch.loss_mask.sum().clamp(min=1))

    def update(self, batch: Batch, step: int) -> Metrics:
        """updates_per_step optimizer updates per pass, each on its share of the rows; metrics are means over them."""
        shares = self.shares(batch)
        results = [
            self.backend.step(
                share,
                lambda logprobs, entropy, part: self.loss(logprobs, entropy, part, self.kl_coefficient),
                with_entropy=bool(self.cfg.loss.entropy_bonus),
                also=() if self.pretraining is None else [self.pretraining.term()],
            )
            for _ in range(self.cfg.passes)
            for share in shares
        ]
        names = dict.fromkeys(name for result in results for name in result)
        return {name: sum(r[name] for r in results if name in r) / sum(name in r for r in results) for name in names}

    def shares(self, batch: Batch) -> list[Batch]:
        """The rows of each update, in the order of the groups. The weights are those of the whole step, times the
        number of updates, so a token weighs the same in whichever update it lands."""
        count = self.cfg.updates_per_step
        shares = [share.scale_weights(count) for share in batch.shares(count)]
        if not self.every_row_counts:
            # an advantage of exactly 0 has exactly no gradient: skipping the row changes the time alone. A share
            # without any signal moves no weight at all, not even by AdamW's momentum and weight decay
            shares = [share.rows(share.advantages.abs().sum(1).nonzero().squeeze(1)) for share in shares]
        return [share.merge_copies() for share in shares]

    def move_reference_and_coefficient(self, metrics: Metrics, step: int) -> None:
        if self.reference is None:
            return
        metrics["kl/coefficient"] = self.kl_coefficient
        if self.cfg.kl.target and "kl/ref" in metrics:  # absent where every completion of the step was masked
            self.kl_coefficient = adapt(self.kl_coefficient, metrics["kl/ref"], self.cfg.kl.target)
        if self.cfg.kl.reference != "fixed":
            self.reference.follow(self.backend.weights(), step)

    def save(self, path: Path) -> dict[str, Any]:
        if self.reference is not None:
            self.reference.save(path)
        self.credit.save(path)
        return {
            "kl_coefficient": self.kl_coefficient,
            "models": self.models.save(path),
            "pretraining": None if self.pretraining is None else self.pretraining.state(),
        }

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        self.kl_coefficient = state["kl_coefficient"]
        if self.reference is not None:
            self.reference.load(path)
        self.credit.load(path)
        self.models.load(path, state["models"])
        if self.pretraining is not None:
            self.pretraining.restore(state["pretraining"])

    def close(self) -> None:
        self.sampler.close()
        self.credit.close()
        self.models.close()


def of_completions(batch: Batch, rewards: Rewards) -> Tensor:
    """(P, G): the mean advantage of each completion's tokens, NaN where it has no row."""
    means = batch.advantages.sum(1) / batch.loss_mask.sum(1).clamp(min=1)
    out = torch.full(rewards.scored.shape, float("nan"))
    return out.masked_scatter(rewards.scored, means)


def without_signal(batch: Batch, rewards: Rewards, filtered: int) -> float:
    """Share of the step's groups from which nothing can be learned: no token has an advantage, or dynamic sampling has
    left them out."""
    heard = batch.advantages.any(1).float()
    of_groups = torch.zeros(rewards.scored.shape).masked_scatter(rewards.scored, heard).any(1)
    return (filtered + int((~of_groups).sum())) / (filtered + len(of_groups))


CREDITS: dict[str, Callable[[config.GRPO, Parts], Credit]] = {"process": ByStep, "vine": ByVine, "gae": by_critic}
