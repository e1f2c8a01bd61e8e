"""Which of one problem's completions stay where there are more than enough. Pure functions of (siblings, k, seed).

Each gives at most k of them; the same for the same siblings in another order, and ties fall by the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo_math.filtering.candidate import Candidate, shuffled
from grpo_math.filtering.distance import jaccard, phrases, words

Choice = Callable[[Sequence[Candidate], int, int], list[Candidate]]


def at_random(siblings: Sequence[Candidate], k: int, seed: int) -> list[Candidate]:
    """Any k, all sets of k being equally likely; the cap on solutions of a problem in ReST-EM, arXiv:2312.06585, which
    keeps easy problems from filling the data."""
    return shuffled(siblings, seed)[0][:k]


def shortest(siblings: Sequence[Candidate], k: int, seed: int) -> list[Candidate]:
    """Those of the fewest characters. Not tokens: these are only comparable within one tokenizer."""
    return sorted(shuffled(siblings, seed)[0], key=lambda c: len(c.completion))[:k]


def longest(siblings: Sequence[Candidate], k: int, seed: int) -> list[Candidate]:
    """Those of the most characters."""
    return sorted(shuffled(siblings, seed)[0], key=lambda c: -len(c.completion))[:k]


def diverse(siblings: Sequence[Candidate], k: int, seed: int) -> list[Candidate]:
    """Start from one of the highest reward; then, again and again, the one whose nearest chosen one is farthest.

    The distance is Jaccard's between sets of three-word phrases. This greedy choice is within a factor of two of the
    best smallest distance (Gonzalez 1985, doi:10.1016/0304-3975(85)90224-5), and takes n * k comparisons of sets. Its
    use is that of RFT, arXiv:2308.01825: different ways to a right answer teach more than many of the same. RFT keeps
    those with different equations, and of equals the one farthest in edit distance; phrases need no equations.
    """
    rest = shuffled(siblings, seed)[0]
    rest.sort(key=lambda c: -c.score)
    sets = {c: phrases(words(c.completion)) for c in rest}
    chosen = rest[:1]
    gaps = {c: jaccard(sets[c], sets[chosen[0]]) for c in rest[1:]}
    while gaps and len(chosen) < k:
        farthest = max(gaps, key=lambda c: gaps[c])
        del gaps[farthest]
        chosen.append(farthest)
        gaps = {c: min(gap, jaccard(sets[c], sets[farthest])) for c, gap in gaps.items()}
    return chosen


CHOICES: dict[str, Choice] = {"random": at_random, "shortest": shortest, "longest": longest, "diverse": diverse}
