"""Which tokens of a completion its reward is put down to: all alike, those of its steps, or each by a critic.

    by group    all tokens of a completion alike: how much better than its siblings      advantages.py
    by step     what each step was given, from there on                                  process.py
    by vine     what each step adds to the chance of a right answer                      vine.py, process.py
    by critic   what each token adds to the reward that is expected                      critic.py, returns.py

CREDITS names them. Left out: the rewards themselves (rewards.py, learned/) and the loss (losses.py).
"""

# P prompts, G group size, B completions with a score (rows of the batch), T tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.advantages import ADVANTAGES, group_norm
from grpo_math.backend.base import Metrics, TrainBackend
from grpo_math.batch import Batch
from grpo_math.process import StepRewards, process_advantages
from grpo_math.recipes.parts import Parts, Stopwatch
from grpo_math.returns import to_go
from grpo_math.steps.places import step_tokens, token_ends
from grpo_math.types import Completion, Group, UserError, Verdict


@dataclass(frozen=True)
class Rewards:
    """of_completions: (P, G), NaN where there is no score. penalty: (B, T), what is taken from each token for its
    distance to the reference; None where nothing is."""

    of_completions: Tensor
    penalty: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        """(P, G): which completions have a row in the batch, in the order of the rows."""
        return ~self.of_completions.isnan()

    @property
    def in_all(self) -> Tensor:
        """(P, G): with the penalty of all tokens in it."""
        if self.penalty is None:
            return self.of_completions
        return self.of_completions.masked_scatter(self.scored, self.of_completions[self.scored] - self.penalty.sum(1))


class Credit(Protocol):
    def actor(self, backend: TrainBackend) -> TrainBackend:
        """The back end as the policy's updates use it."""

    def look(self, groups: Sequence[Group], step: int, watch: Stopwatch) -> Metrics:
        """What must be seen while the engine still samples with the weights of this step's completions."""

    def recall(self, batch: Batch, backend: TrainBackend) -> Batch:
        """The batch with the log-probabilities before the step's first update, which its updates compare with."""

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        """The batch with an advantage for each token, and what `learn` needs besides."""

    def learn(self, batch: Batch, step: int) -> Metrics:
        """Update what it knows itself, from the same batch."""

    def save(self, path: Path) -> None: ...

    def load(self, path: Path) -> None: ...

    def close(self) -> None: ...


class Stateless:
    """What a credit that knows nothing of its own need not write."""

    def actor(self, backend: TrainBackend) -> TrainBackend:
        return backend

    def look(self, groups: Sequence[Group], step: int, watch: Stopwatch) -> Metrics:
        return {}

    def recall(self, batch: Batch, backend: TrainBackend) -> Batch:
        return replace(batch, old_logprobs=batch.once(backend.logprobs))

    def learn(self, batch: Batch, step: int) -> Metrics:
        return {}

    def save(self, path: Path) -> None:
        pass

    def load(self, path: Path) -> None:
        pass

    def close(self) -> None:
        pass


class ByGroup(Stateless):
    """One advantage for all tokens of a completion. A penalty is part of the completion's reward; with kl.per_token,
    each token answers for its own and those after it, which no group has a part in."""

    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        assert cfg.advantage in ADVANTAGES
        self.advantage, self.per_token = ADVANTAGES[cfg.advantage], cfg.kl.per_token

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        if rewards.penalty is None or not self.per_token:
            return batch.with_advantages(self.advantage(rewards.in_all)[rewards.scored])
        advantages = self.advantage(rewards.of_completions)[rewards.scored]
        return batch.with_advantages(advantages[:, None] - to_go(rewards.penalty, batch.loss_mask))


class ByStep(Stateless):
    """process.share of the steps' advantages, and what is left of 1 of the completion's. Where several rewards have
    steps, theirs are normalised one by one, and the mean is taken."""

    def __init__(self, cfg: config.GRPO, parts: Parts) -> None:
        self.settings, self.tokenizer = cfg.process, parts.policy.tokenizer

    def assign(self, groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Batch:
        verdicts = [verdict for group in groups for score in group.scores for verdict in score.parts.values()]
        if all(verdict.step_rewards is None for verdict in verdicts):
            raise UserError(
                f"advantage=process, and none of the rewards {', '.join(groups[0].scores[0].parts)} tells of steps: "
                "add a process reward model to rewards ({model: DIR, kind: process}), or a verifier that returns "
                "step_rewards; or set advantage=group_norm"
            )
        outcome = group_norm(rewards.in_all)[rewards.scored][:, None]
        rows = [row for group in groups for row in self.of_group(group)]
        steps = laid_out(rows, groups, rewards, batch)
        share = self.settings.share
        return batch.with_advantages((1 - share) * outcome + share * steps)

    def of_group(self, group: Group) -> list[Tensor]:
        """Each completion's (T,)."""
        names = [name for name in group.scores[0].parts if any(s.parts[name].step_rewards for s in group.scores)]
        lengths = [len(completion.token_ids) for completion in group.completions]
        advantages = [torch.zeros(length) for length in lengths]
        for name in names:
            parts = [score.parts[name] for score in group.scores]
            # one that another verifier failed on is not trained, and is no sibling to be compared with
            trained = [score.reward is not None for score in group.scores]
            steps = [
                self.steps(completion, part) if is_trained else None
                for completion, part, is_trained in zip(group.completions, parts, trained, strict=True)
            ]
            of_steps = process_advantages(steps, lengths, scale=self.settings.scale)
            for total, more in zip(advantages, of_steps, strict=True):
                total += more / len(names)
        return advantages

    def steps(self, completion: Completion, verdict: Verdict) -> StepRewards | None:
        """At which token each step ends, and its reward."""
        if verdict.reward is None or not verdict.step_rewards:
            return None
        ends = tokens_at(self.tokenizer, completion, [end for end, _ in verdict.step_rewards])
        return [(end, reward) for end, (_, reward) in zip(ends, verdict.step_rewards, strict=True)]


def tokens_at(tokenizer: PreTrainedTokenizerBase, completion: Completion, offsets: Sequence[int]) -> list[int]:
    """The token at which each step ends, offsets being in characters of the completion's text. A last step that ends
    with the text has the end-of-sequence token too."""
    ends = token_ends(tokenizer, completion.token_ids)
    tokens = step_tokens(ends, offsets)
    if tokens and offsets[-1] >= len(completion.text.rstrip()):
        tokens[-1] = len(completion.token_ids) - 1
    return tokens


def laid_out(of_completions: Sequence[Tensor], groups: Sequence[Group], rewards: Rewards, batch: Batch) -> Tensor:
    """(T of each completion,) of all P x G, in their order -> (B, T) of the batch's rows, behind their prompts."""
    starts = [len(group.prompt.token_ids) for group in groups for _ in group.completions]
    known = rewards.scored.flatten().tolist()
    rows = [(start, values) for start, values, is_row in zip(starts, of_completions, known, strict=True) if is_row]
    out = torch.zeros(batch.loss_mask.shape)
    for row, (start, values) in enumerate(rows):
        out[row, start : start + len(values)] = values
    return out
