"""Groups scored by verifiers -> the same groups with the scores of the reward models in their reward.

Left out: one model's scores (score.py), and alarms (guards.py, watch.py).
"""

# P prompts, G group size, K reward models

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpo_math.backend.base import Metrics
from grpo_math.config_learned import Combine
from grpo_math.learned.normalise import Running, used
from grpo_math.learned.reading import Asked
from grpo_math.learned.score import RewardModel
from grpo_math.learned.watch import Watch
from grpo_math.ranks import Ranks
from grpo_math.types import Group, Scored, UserError, Verdict


class LearnedRewards:
    """The reward models of a run, on each of its ranks. metrics: of the groups scored last."""

    def __init__(self, models: Sequence[RewardModel], combine: Combine, ranks: Ranks, watch: Watch) -> None:
        self.models, self.combine, self.ranks, self.watch = list(models), combine, ranks, watch
        self.seen = {model.reward.called: Running() for model in models}
        self.metrics: Metrics = {}

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """Each rank scores its share, and gets the scores of all. Adds each model's own verdict to `parts`, as it is,
        and to the reward  sum_k w_k u_k  or  min_k w_k u_k,  where u is normalise.used. A completion that a model of a
        weight other than 0 cannot score has no reward. Raises UserError where a model can score none of them."""
        self.metrics = {}
        if not groups:
            return []
        parts = {model.reward.called: self.verdicts(model, groups) for model in self.models}
        terms = [self.term(model, parts[model.reward.called], groups) for model in self.models]
        return with_learned(groups, parts, combined([t for t in terms if t is not None], self.combine))

    def verdicts(self, model: RewardModel, groups: Sequence[Group]) -> list[Verdict]:
        """In the order of the completions."""
        asked = [Asked.of(group.prompt, completion) for group in groups for completion in group.completions]
        unique = list(dict.fromkeys(asked))
        found = self.ranks.gather(self.ranks.together(lambda: model.verdicts(self.ranks.share(unique))))
        if all(verdict.reward is None for verdict in found):
            raise UserError(
                f"{model.key}.model={model.reward.model} can score none of {len(asked)} completions; the first: "
                f"{found[0].detail}"
            )
        by_text = dict(zip(unique, found, strict=True))
        return [by_text[text] for text in asked]

    def term(self, model: RewardModel, verdicts: Sequence[Verdict], groups: Sequence[Group]) -> Tensor | None:
        """(P, G): what the model adds to the reward; None for a weight of 0, which is only looked at."""
        reward, name = model.reward, model.reward.called
        scores = laid_out([v.reward for v in verdicts], groups)
        lengths = torch.tensor([[len(c.token_ids) for c in group.completions] for group in groups])
        self.seen[name] = self.seen[name].add(scores)
        terms = used(scores, lengths, reward.normalise, self.seen[name], reward.clip, reward.length_penalty)
        known = scores[~scores.isnan()]
        self.metrics |= {
            f"reward/{name}": float(known.mean()),
            f"learned/{name}/std": float(known.std()) if len(known) > 1 else 0.0,
            f"learned/{name}/used": float(reward.weight * terms.nanmean()),
            f"learned/{name}/unscored": 1 - len(known) / scores.numel(),
        }
        if reward.clip is not None:
            free = used(scores, lengths, reward.normalise, self.seen[name], None, 0.0)
            self.metrics[f"learned/{name}/clipped"] = float((free.abs() > reward.clip).double().mean())
        return reward.weight * terms if reward.weight else None

    def state(self) -> dict[str, Any]:
        """All that restore needs, as plain JSON; the same on every rank."""
        return {"seen": {name: seen.state() for name, seen in self.seen.items()}, "watch": self.watch.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = {name: Running.of(state["seen"][name]) for name in self.seen}
        self.watch.restore(state["watch"])

    def close(self) -> None:
        for model in self.models:
            model.model.close()


def combined(terms: Sequence[Tensor], how: Combine) -> Tensor | float:
    """K of (P, G), weights in them -> (P, G): their sum, or the least of them (as Llama 2 has its safety model speak
    where it is the lower one, arXiv:2307.09288, section 3.2.4). NaN where one of them is; 0 where there is none."""
    if not terms:
        return 0.0
    stacked = torch.stack(list(terms))
    return stacked.sum(0) if how == "sum" else stacked.amin(0)


def laid_out(values: Sequence[float | None], groups: Sequence[Group]) -> Tensor:
    """One for each completion -> (P, G) float64, None as NaN."""
    flat = torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float64)
    return flat.reshape(len(groups), -1)


def with_learned(
    groups: Sequence[Group], parts: Mapping[str, Sequence[Verdict]], rewards: Tensor | float
) -> list[Group]:
    """parts: of each model a verdict for each completion, in their order. rewards: (P, G), NaN for none; added to those
    that are there. The first verifier's verdict stays the verdict."""
    count = len(groups[0].completions)

    def scored(p: int, g: int, score: Scored) -> Scored:
        reward = float(rewards[p, g]) if isinstance(rewards, Tensor) else rewards
        whole = None if score.reward is None or reward != reward else score.reward + reward
        mine = {name: verdicts[p * count + g] for name, verdicts in parts.items()}
        return replace(score, reward=whole, parts={**score.parts, **mine})

    return [
        replace(group, scores=tuple(scored(p, g, score) for g, score in enumerate(group.scores)))
        for p, group in enumerate(groups)
    ]
