"""A job and what samples -> the prompts to be asked, those that fit, and where their completions are cut."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from grpo_math.evaluation.job import Job
from grpo_math.evaluation.sampler import Asked, Sampler
from grpo_math.types import Sampling, UserError

MAX_TOKENS = 2048  # where nothing is said, and the model's context leaves so much


@dataclass(frozen=True)
class Plan:
    """A job with its prompts, those that fit. sampling: with this task's max_tokens."""

    job: Job
    asked: tuple[Asked, ...]
    sampling: Sampling | None
    too_long: int


def make_plan(job: Job, sampler: Sampler, sampling: Sampling | None, max_tokens: int | None) -> Plan:
    """sampling: None where the completions exist already. max_tokens: None for as many as fit, at most MAX_TOKENS.
    Raises UserError where no prompt fits."""
    asked = [sampler.ask(job.label, number, problem, job.form) for number, problem in enumerate(job.problems)]
    if sampling is None:
        return Plan(job, tuple(asked), None, job.too_long)
    lengths = [len(a.token_ids or ()) for a in asked]
    if max_tokens is None:
        # not what the longest prompt leaves: then another --limit would be another evaluation
        max_tokens = min(MAX_TOKENS, (sampler.context or sys.maxsize) // 2)
    fitting = [a for a, n in zip(asked, lengths, strict=True) if n + max_tokens <= (sampler.context or sys.maxsize)]
    if not fitting:
        raise UserError(
            f"task {job.label}: no prompt fits: the shortest has {min(lengths)} tokens, and with --max-tokens "
            f"{max_tokens} that is more than the model's context of {sampler.context}; lower --max-tokens"
        )
    return Plan(job, tuple(fitting), replace(sampling, max_tokens=max_tokens), len(asked) - len(fitting))
