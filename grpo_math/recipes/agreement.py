"""Does the sampler have the trainer's weights? A sync that did not happen shows here before a step trains on it."""

from __future__ import annotations

from collections.abc import Iterable

from grpo_math import config
from grpo_math.backend.base import TrainBackend
from grpo_math.batch import Batch
from grpo_math.types import Group

GAP_ROWS = 8  # completions re-scored after each weight sync
DEFAULT_GAP = {"float32": 1e-3, "bfloat16": 0.1}  # mean |difference| in nats; float32 agrees to about 1e-6


def largest_gap(cfg: config.Common) -> float:
    """That may be between the two, in nats a token."""
    return cfg.rollout.max_logprob_gap or DEFAULT_GAP[cfg.backend.dtype]


def check_staleness(groups: Iterable[Group], step: int, bound: int) -> float:
    """How many updates the sampling weights were behind on average; more than `bound` (run.staleness) ends the run."""
    versions = [completion.policy_version for group in groups for completion in group.completions]
    behind = [step - 1 - version for version in versions]
    if behind and max(behind) > bound:
        raise RuntimeError(
            f"step {step}: {sum(b > bound for b in behind)} of {len(behind)} completions were sampled with the "
            f"weights of step {min(versions)}, {max(behind)} updates behind, and run.staleness={bound}: the "
            "sampler did not get the weights of the steps between, or did not take them"
        )
    return sum(behind) / max(len(behind), 1)


def check_sampler(backend: TrainBackend, batch: Batch, step: int, max_gap: float) -> float:
    """Mean |sampler logprob - trainer logprob| over a few completions; more than `max_gap` ends the run."""
    some = batch.rows(range(0, len(batch), max(1, len(batch) // GAP_ROWS)))
    gaps = (backend.logprobs(some) - some.sampler_logprobs)[some.loss_mask].abs()
    gap = float(gaps.mean()) if len(gaps) else 0.0
    if not gap <= max_gap:
        raise RuntimeError(
            f"step {step}: the sampler's log-probabilities differ from the trainer's by {gap:.3g} nats on average "
            f"(rollout.max_logprob_gap={max_gap:g}): the sampler has other weights than the trainer, or "
            "another precision. If that gap is expected, raise the limit and set correction=token_truncate"
        )
    return gap
