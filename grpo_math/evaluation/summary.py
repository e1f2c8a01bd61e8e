"""Verdicts -> the figures of an evaluation. Pure functions; the estimators themselves are in passk.py.

Left out: how the figures are shown (show.py) and drawn (report/pass_curve.py).
"""

# P problems, n completions of each

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from grpo_math.passk import intervals, majority, pass_at_k
from grpo_math.types import FinishReason, Group, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """A completion, as far as the figures need it. given: false where the sampler could not give one.
    tokens: None where nobody knows, nor then how it ended. scores: of reward models, by name; None where one could
    not score it."""

    verdict: Verdict
    finish_reason: FinishReason
    tokens: int | None
    given: bool = True
    scores: Mapping[str, float | None] = field(default_factory=dict)


def judged(groups: Iterable[Group]) -> list[list[Judged]]:
    return [
        [
            Judged(score.verdict, completion.finish_reason, len(completion.token_ids))
            for completion, score in zip(group.completions, group.scores, strict=True)
        ]
        for group in groups
    ]


def counts_of(problems: Sequence[Sequence[Judged]]) -> list[tuple[int, int]]:
    """(n with a verdict, c of them right) for each problem. A completion that nobody could judge is in neither."""
    counts = []
    for completions in problems:
        verdicts = [c.verdict for c in completions if c.verdict.reward is not None]
        counts.append((len(verdicts), sum(v.reason == "correct" for v in verdicts)))
    return counts


def summarise(problems: Sequence[Sequence[Judged]], ks: Sequence[int]) -> dict[str, Any]:
    """The figures of one task, as plain JSON; None stands for a mean of nothing.

    A completion without a reward (unknown, time-out or error of the verifier, no answer of a server) is left out of its
    problem's count and reported beside it; a problem with fewer than k rewards is left out of pass@k, and counted. A
    program whose own time was up has a reward: it is wrong, and no time-out."""
    counts = counts_of(problems)
    verdicts = [c.verdict for group in problems for c in group]
    given = [c for group in problems for c in group if c.given]
    result: dict[str, Any] = {"problems": len(problems), "completions": len(verdicts)}
    # of each problem first: a completion without a verdict must not make the others of its problem weigh more
    columns = {"accuracy": [c / n for n, c in counts if n]} | {f"pass@{k}": _known(counts, k) for k in ks}
    for name, (mean, bounds) in estimates(columns).items():
        result |= {name: mean, f"{name}_interval": bounds}
        if name != "accuracy":
            result[f"{name}_left_out"] = len(counts) - len(columns[name])
    votes = [m for m in map(_majority, problems) if not math.isnan(m)]
    result["majority"] = _mean(votes)
    result["format_rate"] = _mean([c.verdict.reason != "no_answer" and c.verdict.answer is not None for c in given])
    counted = [(c.tokens, c.finish_reason) for c in given if c.tokens is not None]
    result["truncated"] = _mean([finish_reason == "length" for _, finish_reason in counted])
    result["mean_tokens"] = _mean([tokens for tokens, _ in counted])
    result["unknown"] = sum(v.reason == "unknown" for v in verdicts)
    result["timeouts"] = sum(v.reason == "timeout" and v.failed for v in verdicts)
    result["errors"] = sum(v.reason == "error" for v in verdicts)
    return result


def curve(problems: Sequence[Sequence[Judged]], ks: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """pass@k and its interval for the ks, the powers of two below the largest n, and that n."""
    counts = counts_of(problems)
    most = max((n for n, _ in counts), default=0)
    wanted = sorted({*ks, *(1 << i for i in range(most.bit_length())), most} - {0})
    columns = {str(k): known for k in wanted if (known := _known(counts, k))}
    return {int(k): (mean, *bounds) for k, (mean, bounds) in estimates(columns).items() if mean is not None and bounds}


def estimates(
    columns: Mapping[str, Sequence[float]],
) -> dict[str, tuple[float | None, tuple[float, float] | None]]:
    """(mean, 95 % interval) of each column of values, one a problem; (None, None) of an empty one. Columns of the same
    number of problems are resampled together, which takes as long as one."""
    found: dict[str, tuple[float | None, tuple[float, float] | None]] = dict.fromkeys(columns, (None, None))
    for size in {len(values) for values in columns.values()} - {0}:
        alike = {name: values for name, values in columns.items() if len(values) == size}
        bounds = intervals(np.array(list(alike.values())).T)
        found |= {name: (math.fsum(v) / size, b) for (name, v), b in zip(alike.items(), bounds, strict=True)}
    return found


def _known(counts: Sequence[tuple[int, int]], k: int) -> list[float]:
    return [pass_at_k(n, c, k) for n, c in counts if n >= k]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _majority(completions: Sequence[Judged]) -> float:
    """1 or 0 for a majority that is right or wrong; a verdict that is missing is neither."""
    verdicts = [c.verdict for c in completions]
    right = [None if v.reward is None else float(v.reason == "correct") for v in verdicts]
    return majority([v.answer for v in verdicts], right)
