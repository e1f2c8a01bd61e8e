"""Groups -> what is logged of them: one JSON record per sampled completion, and the step's metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from grpo_math import config
from grpo_math.config_learned import RESERVED
from grpo_math.evaluation.sampler import summed
from grpo_math.rewards import has_signal
from grpo_math.types import Group, Reason, Scored


def completion_records(
    step: int,
    groups: Sequence[Group],
    filtered: Sequence[Group],
    rewards: Tensor | None,
    advantages: Tensor | None,
    *,
    temperature: float = 1.0,
) -> list[dict[str, Any]]:
    """Every completion that was sampled. rewards and advantages: (P, G) of `groups`, which were trained on.
    temperature: of sampling. At another than 1 the sampler's log-probabilities are not those of the policy itself, and
    `logprob` is null.

    The names are those of `grpo-math sample` wherever both know the fact, so that `grpo-math filter` takes either file.
    What is the same for the whole run (model, sampling) is in its config.yaml, and token_ids and logprobs are left out:
    they would make the log of a long run several times as large, and no step needs them again."""
    records = []
    for p, group in enumerate([*groups, *filtered]):
        trained = p < len(groups) and rewards is not None and advantages is not None
        for g, (completion, score) in enumerate(zip(group.completions, group.scores, strict=True)):
            used = trained and score.reward is not None
            records.append(
                {
                    "step": step,
                    "task": group.prompt.problem.task,
                    "problem": group.prompt.problem.id,
                    "sample": g,
                    "prompt": group.prompt.text,
                    "completion": completion.text,
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    "gold": group.prompt.problem.answer,
                    "answer": score.verdict.answer,
                    "reason": score.verdict.reason,
                    "detail": score.verdict.detail,
                    "reward": float(rewards[p, g]) if used and rewards is not None else score.reward,
                    "verifier": next(iter(score.parts), None),  # the first one's is the verdict
                    "parts": {name: verdict.reward for name, verdict in score.parts.items()},
                    "advantage": float(advantages[p, g]) if used and advantages is not None else None,
                    "filtered": p >= len(groups),
                    "policy_version": completion.policy_version,
                    "logprob": summed(completion.logprobs) if temperature == 1.0 else None,
                }
            )
    return records


def group_metrics(groups: Sequence[Group], rewards: Sequence[config.AnyReward]) -> dict[str, float]:
    """Means over all that was sampled, the filtered too: what the policy does, not what it trains on. rewards: of which
    the reward models' are left to learned/, for they score what is trained on alone."""
    completions = [c for group in groups for c in group.completions]
    scores = [s for group in groups for s in group.scores]
    reasons = Counter(score.verdict.reason for score in scores)
    tokens = sum(len(c.token_ids) for c in completions)
    metrics = {
        "reward/accuracy": accuracy(scores),
        "groups/no_signal": sum(not has_signal(group) for group in groups) / max(len(groups), 1),
        # -mean log p of sampled tokens is an unbiased estimate of the entropy, and free
        "policy/entropy": -sum(sum(c.logprobs) for c in completions) / max(tokens, 1),
        "completion/length": tokens / max(len(completions), 1),
        "completion/truncated": sum(c.finish_reason == "length" for c in completions) / max(len(completions), 1),
        "completion/count": float(len(completions)),
    }
    metrics |= {f"verdict/{name}": reasons[name] / max(len(scores), 1) for name in get_args(Reason)}
    # apart, since `timeout` is also the reason of programs that took too long, which is no failure of the verifier
    metrics["verdict/failed"] = sum(score.verdict.failed for score in scores) / max(len(scores), 1)
    for reward in config.verifiers_in(rewards):
        values = [s.parts[reward.verifier].reward for s in scores]
        known = [v for v in values if v is not None]
        metrics[f"reward/{reward_name(reward)}"] = sum(known) / len(known) if known else float("nan")
    return metrics


def reward_name(reward: config.Reward) -> str:
    """math for math, mine for ./mine.py, and kl.py where the name is a metric's already."""
    path = Path(reward.verifier)
    return path.stem if path.suffix == ".py" and path.stem not in RESERVED else path.name


def accuracy(scores: Sequence[Scored]) -> float:
    """Share of correct completions among those with a verdict."""
    judged = [s for s in scores if s.verdict.reward is not None]
    return sum(s.verdict.reason == "correct" for s in judged) / len(judged) if judged else float("nan")


def mean_of(values: Tensor) -> float:
    """Mean of the entries that are not NaN."""
    return float(values[~values.isnan()].mean())
