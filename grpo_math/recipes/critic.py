"""The critic of PPO: a value for each token, the advantages that follow from them, and its own updates.

    A = GAE(r, V)      R = A + V      then minimise  sum_t w_t max((V - R)^2, (clip(V) - R)^2) / 2

ByCritic has a model of its own, with an optimizer; BySharedCritic is a head on the policy's network, whose loss is a
term of the policy's. Left out: the equations (returns.py), the networks (value_model.py, actor_critic.py), and the
policy's loss (grpo.py).
"""

# B completions, T tokens

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from grpo_math import config
from grpo_math.backend.base import LossFn, Metrics, TrainBackend
from grpo_math.backend.make import make_backend, value_model_of, with_optimizer_of
from grpo_math.batch import Batch
from grpo_math.losses import token_mean
from grpo_math.recipes.credit import Credit, Rewards, Stateless
from grpo_math.recipes.parts import Parts
from grpo_math.reference import Reference
from grpo_math.returns import explained_variance, gae, token_rewards, value_loss
from grpo_math.types import Group, UserError
from grpo_math.value_model import ValueModel

FOLDER = "critic"  # in a checkpoint: a model of its own, with its optimizer


def by_critic(cfg: config.GRPO, parts: Parts) -> Credit:
    return BySharedCritic(cfg, parts) if cfg.critic.shared else ByCritic(cfg, parts)


class ByCritic(Stateless):
    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.cfg, self.settings = cfg, cfg.critic
        key = "model.path" if cfg.critic.path is None else "critic.path"
        model = value_model_of(cfg, cfg.critic.path or cfg.model.path, "critic", key)
        check_tokenizer(model, parts, cfg)
        self.backend = critic_backend(cfg, model, parts)

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        return with_values(batch, rewards, batch.once(self.backend.logprobs), self.settings)

    def learn(self, batch: Batch, step: int) -> Metrics:
        """The same passes over the same shares of the rows as the policy's, all rows of them: what it should have
        expected is news even where the advantage is 0."""
        count = self.cfg.updates_per_step
        weighed = replace(batch, weights=token_mean(batch.loss_mask, 1) * count)
        results = [
            self.backend.step(share.merge_copies(), self.loss)
            for _ in range(self.cfg.passes)
            for share in weighed.shares(count)
        ]
        metrics = figures(batch) | {"critic/lr": results[-1]["optim/lr"]}
        for name in ("loss/total", "optim/grad_norm", "optim/skipped", "critic/clip"):
            mean = sum(result.get(name, 0.0) for result in results) / len(results)
            metrics[f"critic/{name.rpartition('/')[2].replace('total', 'loss')}"] = mean
        return metrics

    def loss(self, values: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return weighed_loss(values, part, self.settings.clip)

    def save(self, path: Path) -> None:
        (path / FOLDER).mkdir(exist_ok=True)
        self.backend.save(path / FOLDER)

    def load(self, path: Path) -> None:
        self.backend.load(path / FOLDER)

    def close(self) -> None:
        self.backend.close()


class BySharedCritic(Stateless):
    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.settings, self.network = cfg.critic, parts.backend

    def actor(self, backend: TrainBackend) -> TrainBackend:
        return Actor(backend, self.settings)

    def recall(self, batch: Batch, backend: TrainBackend) -> Batch:
        """One pass gives both."""
        logprobs, values = batch.once(self.network.logprobs).unbind(-1)
        return replace(batch, old_logprobs=logprobs, old_values=values)

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        values = batch.old_values
        if values is None:  # no update compares log-probabilities
            values = batch.once(self.network.logprobs)[..., 1]
        return with_values(batch, rewards, values, self.settings)

    def learn(self, batch: Batch, step: int) -> Metrics:
        """It has, in the policy's updates."""
        return figures(batch)


class Actor:
    """The back end of a network of two outputs (actor_critic.py), as one of the policy alone: its losses are of
    log-probabilities, and the value's is added to each."""

    def __init__(self, network: TrainBackend, settings: config.Critic) -> None:
        self.network, self.settings = network, settings

    def logprobs(self, batch: Batch) -> Tensor:
        return self.network.logprobs(batch)[..., 0]

    def step(
        self, batch: Batch, loss: LossFn, with_entropy: bool = False, also: Sequence[tuple[Batch, LossFn]] = ()
    ) -> Metrics:
        terms = [(rows, policy_alone(loss_of)) for rows, loss_of in also]
        return self.network.step(batch, self.joint(loss), with_entropy, terms)

    def joint(self, loss: LossFn) -> LossFn:
        """loss + coefficient * the value's."""

        def both(outputs: Tensor, entropy: Tensor | None, part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            policy, metrics = loss(outputs[..., 0], entropy, part)
            value, more = weighed_loss(outputs[..., 1], part, self.settings.clip)
            return policy + self.settings.coefficient * value, metrics | more | {"critic/loss": value.detach()}

        return both

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        return self.network.weights()

    def reference(self, kl: config.KL) -> Reference:
        return self.network.reference(kl)

    def save(self, path: Path) -> None:
        self.network.save(path)

    def load(self, path: Path) -> None:
        self.network.load(path)

    def close(self) -> None:
        self.network.close()


def with_values(batch: Batch, rewards: Rewards, values: Tensor, settings: config.Critic) -> Batch:
    """The batch with advantages, and with what the critic said and should have said. values: (B, T)."""
    mask = batch.loss_mask
    penalty = torch.zeros(mask.shape) if rewards.penalty is None else rewards.penalty
    given = token_rewards(rewards.of_completions[rewards.scored], penalty, mask)
    advantages = gae(given, values, mask, settings.gamma, settings.lam)
    return replace(batch.with_advantages(advantages), old_values=values, returns=(advantages + values) * mask)


def weighed_loss(values: Tensor, part: Batch, clip: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """sum_t w_t of the value's loss, and how many tokens had moved past the clip."""
    assert part.old_values is not None
    assert part.returns is not None
    per_token = value_loss(values, part.old_values, part.returns, clip)
    moved = (values.detach() - part.old_values).abs()
    clipped = torch.zeros_like(moved) if clip is None else (moved > clip).float()
    return (per_token * part.weights).sum(), {"critic/clip": clipped}


def policy_alone(loss: LossFn) -> LossFn:
    return lambda outputs, entropy, part: loss(outputs[..., 0], entropy, part)


def figures(batch: Batch) -> Metrics:
    """What the critic had expected of the step, and what came of it: means over the tokens."""
    assert batch.old_values is not None
    assert batch.returns is not None
    mask = batch.loss_mask
    return {
        "critic/explained_variance": explained_variance(batch.old_values, batch.returns, mask),
        "critic/value": float(batch.old_values[mask].mean()),
        "critic/return": float(batch.returns[mask].mean()),
    }


def critic_backend(cfg: config.GRPO, model: ValueModel, parts: Parts) -> TrainBackend:
    """A back end like the policy's, with the critic's optimizer."""
    return make_backend(
        with_optimizer_of(cfg, cfg.critic), model, cfg.steps * cfg.updates_per_step * cfg.passes, parts.ranks
    )


def check_tokenizer(model: ValueModel, parts: Parts, cfg: config.GRPO) -> None:
    """It reads the very tokens that the policy has sampled."""
    if model.tokenizer.get_vocab() != parts.policy.tokenizer.get_vocab():
        raise UserError(
            f"critic.path={cfg.critic.path}: its tokenizer is not that of model.path={cfg.model.path}, whose tokens it "
            "is to judge; give a model of the same family, or leave critic.path out"
        )
    if model.context < parts.policy.context:
        raise UserError(
            f"critic.path={cfg.critic.path} reads {model.context} tokens, and the policy {parts.policy.context}; give "
            "one that reads as many, or leave critic.path out"
        )
