"""The same problems in two evaluations: pairs, differences and how sure they are. Pure functions.

A difference of two means says little without its interval, and that is narrower than the two means' own intervals
suggest: both models find the same problems hard. So problems are resampled in pairs. Left out: files and what people
read (compare.py).
"""

# P problems that both runs have, n judged samples of one, c of them right

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_math.passk import interval, pass_at_k
from grpo_math.types import UserError

DIGITS = 6  # of what is written: fewer than processors agree on, more than resampling is good for

# what may differ between two runs without a word: the model itself, and what is compared problem by problem
UNSAID = frozenset(
    {
        *("k", "model.name", "model.model", "model.policy_version", "model.files_sha256", "model.file_sha256"),
        *("model.base_url", "model.server", "model.context", "model.max_rows"),
        *("task", "path", "limit", "exclude", "problems", "problems_sha256", "prompts_sha256"),
        *("refused_answers", "prompts_too_long", "sampling.n", "sampling.seed"),
    }
)


@dataclass
class Answers:
    """What a run has of one problem. sampled: the numbers of its samples; n of them were judged, c are right. A sample
    that nobody could judge is in neither. text: a checksum of the completions."""

    prompt: str | None
    gold: object
    sampled: set[int] = field(default_factory=set)
    n: int = 0
    c: int = 0
    answers: list[str | None] = field(default_factory=list)
    text: int = 0


@dataclass(frozen=True)
class Shared:
    """The problems of one task that both runs have with the same gold answer, and how many are left out for not being
    so. other_prompt: how many of the pairs were put in other words."""

    pairs: list[tuple[str, Answers, Answers]]
    only_a: int
    only_b: int
    other_gold: int
    other_prompt: int


@dataclass(frozen=True)
class Difference:
    """pass@k of run A and of run B over the same problems, and B - A with a 95 % interval.

    won, lost, tied: problems whose own pass@k is higher, lower, equal in B. p: of the exact sign test. left_out: pairs
    with fewer than k judged samples in either run; where that leaves none, the means, interval and p are None."""

    k: int
    problems: int
    left_out: int
    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    won: int
    lost: int
    tied: int
    p: float | None


def share(a: Mapping[str, Answers], b: Mapping[str, Answers]) -> Shared:
    """Pairs in the order of run A. A problem with another gold answer is another problem."""
    both = [(id, a[id], b[id]) for id in a if id in b]
    pairs = [(id, x, y) for id, x, y in both if x.gold == y.gold]
    other_prompt = sum(x.prompt != y.prompt for _, x, y in pairs)
    return Shared(pairs, len(a) - len(both), len(b) - len(both), len(both) - len(pairs), other_prompt)


def compare_at(pairs: Sequence[tuple[Answers, Answers]], k: int, seed: int = 0) -> Difference:
    """B - A = mean over problems of d_i = pass@k_i(B) - pass@k_i(A), with a paired bootstrap interval.

    It is the d_i that are resampled, which keeps each problem's pair together (Koehn 2004, for two systems on one test
    set): what makes a problem hard for both cancels. The resampling is that of passk.interval with the ends -1 and 1,
    which covers what it says where nearly all problems are ties too, as the percentile bootstrap does not. The same
    samples twice differ by exactly 0, in [0, 0]. p is the chance that fair coins fall as unevenly as won and lost."""
    known = [(x, y) for x, y in pairs if x.n >= k and y.n >= k]
    signs = [sign(x, y, k) for x, y in known]
    won, lost = signs.count(1), signs.count(-1)
    problems, left_out = len(known), len(pairs) - len(known)
    if not known:
        return Difference(k, 0, left_out, None, None, None, None, 0, 0, 0, None)
    in_a = [pass_at_k(x.n, x.c, k) for x, _ in known]
    in_b = [pass_at_k(y.n, y.c, k) for _, y in known]
    # an exact zero where the counts say so: 1/2 of 2 samples and 2/4 of 4 may differ in the last bit
    differences = [(y - x) * abs(way) for x, y, way in zip(in_a, in_b, signs, strict=True)]
    same = all(x == y for x, y in known)
    low, high = (0.0, 0.0) if same else interval_of_differences(differences, seed)
    a, b, difference = map(_mean, (in_a, in_b, differences))
    tied, p = problems - won - lost, sign_test(won, lost)
    return Difference(k, problems, left_out, a, b, difference, (low, high), won, lost, tied, p)


def interval_of_differences(differences: Sequence[float], seed: int) -> tuple[float, float]:
    """95 %, of the mean of values within -1..1; exactly mirrored for B - A and A - B, though resampled at random."""
    values, mirrored = sorted(differences), sorted(-d for d in differences)
    if values < mirrored:
        low, high = interval(mirrored, support=(-1.0, 1.0), seed=seed)
        low, high = -high, -low
    else:
        low, high = interval(values, support=(-1.0, 1.0), seed=seed)
    return _rounded(low), _rounded(high)


def sign(a: Answers, b: Answers, k: int) -> int:
    """Whether pass@k is higher (1), equal (0) or lower (-1) in b. In whole numbers: its complement is
    C(n - c, k) / C(n, k)."""
    fails_a = math.comb(a.n - a.c, k) * math.comb(b.n, k)
    fails_b = math.comb(b.n - b.c, k) * math.comb(a.n, k)
    return (fails_a > fails_b) - (fails_a < fails_b)


def sign_test(won: int, lost: int) -> float:
    """min(1, 2 P(X <= min(won, lost))) for X ~ Binomial(won + lost, 1/2): exact and two-sided; ties say nothing."""
    trials, term, total = won + lost, 1, 1
    for i in range(min(won, lost)):
        term = term * (trials - i) // (i + 1)  # C(trials, i + 1)
        total += term
    return min(1.0, 2 * total / (1 << trials))


def ks_for(a: Mapping[str, Answers], b: Mapping[str, Answers], k: Sequence[int] | None, task: str) -> list[int]:
    """The k to compare at: those asked for, or else 1 and as many as both runs have samples. Raises UserError."""
    most = min(max(len(x.sampled) for x in run.values()) for run in (a, b))
    wanted = sorted(set(k or (1, most)))
    if wanted[0] < 1 or wanted[-1] > most:
        bad = wanted[0] if wanted[0] < 1 else wanted[-1]
        raise UserError(f"--k {bad}: of task {task} both runs have {most} samples a problem; give k within 1..{most}")
    return wanted


def settings_that_differ(a: Mapping[str, Any], b: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, list[Any]]:
    """Key of the manifests -> its values in both, for all that is neither the model nor which problems there are."""
    differing = _differing({k: v for k, v in a.items() if k != "tasks"}, {k: v for k, v in b.items() if k != "tasks"})
    for task in tasks:
        of_a, of_b = (m.get("tasks", {}).get(task, {}) for m in (a, b))
        differing |= {f"{task}.{key}": values for key, values in _differing(of_a, of_b).items()}
    return differing


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    flat_a, flat_b = dict(_leaves(a)), dict(_leaves(b))
    keys = [key for key in {**flat_a, **flat_b} if key not in UNSAID]
    return {key: [flat_a.get(key), flat_b.get(key)] for key in keys if flat_a.get(key) != flat_b.get(key)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _mean(values: Sequence[float]) -> float:
    return _rounded(math.fsum(values) / len(values))


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # no -0.0
