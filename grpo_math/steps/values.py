"""Monte-Carlo values of a solution's beginnings: how often a policy that goes on from there gets it right.

    V(prefix) = right / drawn     of n continuations; Math-Shepherd, arXiv:2312.08935, section 3.3

Pure about who continues and who judges. `estimate` asks every prefix, `first_wrong` only those that a binary search
needs. Left out: where steps end (split.py, places.py), and the policy.
"""

# K steps of a solution; prefix k is the prompt and its first k steps, k = 1..K; n continuations of each that is asked

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from grpo_math.types import Prompt, Verdict

UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Solution:
    """A completion of K >= 1 steps. prefixes: K - 1, prefix k as its k-th; what the engine goes on from. verdict: of
    the whole, which needs no continuation."""

    prefixes: tuple[Prompt, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Value:
    """Of `drawn` continuations with a score `right` are correct; `lost` have none, and say nothing."""

    right: int
    drawn: int
    lost: int = 0

    @property
    def share(self) -> float | None:
        """V, the share that is right (soft estimation); None where no continuation has a score."""
        return self.right / self.drawn if self.drawn else None

    @property
    def hit(self) -> float | None:
        """1 where any is right, else 0 (hard estimation); None where no continuation has a score."""
        return float(self.right > 0) if self.drawn else None


Values = tuple[Value | None, ...]  # of steps 1..K; None: not asked


class Continue(Protocol):
    def __call__(self, prefixes: list[Prompt], n: int, seed: int) -> list[list[Verdict]]:
        """The verdicts on n continuations of each prefix, judged together with the prefix, as one completion."""


@dataclass(frozen=True, slots=True)
class Search:
    """What a binary search found out. The first `right` steps are right; step `wrong`, counted from 1, and all after it
    are wrong; None where none is, or nobody knows. values: of the prefixes that it asked. stuck: it ended early."""

    right: int
    wrong: int | None
    values: Values
    stuck: bool = False

    @property
    def middle(self) -> int | None:
        """The prefix to ask next; None where there is none."""
        if self.stuck or self.wrong is None or self.wrong == self.right + 1:
            return None
        return (self.right + self.wrong) // 2

    @property
    def first_wrong(self) -> int | None:
        """Which step is the first wrong one, from 0; None where none is, or where the search did not come so far."""
        return self.wrong - 1 if self.wrong is not None and self.wrong == self.right + 1 else None

    @property
    def labels(self) -> tuple[float | None, ...]:
        """1 for a right step, 0 for a wrong one, None where nobody knows."""
        steps = range(1, len(self.values) + 1)
        wrong = self.wrong or len(self.values) + 1
        return tuple(1.0 if k <= self.right else 0.0 if k >= wrong else None for k in steps)


def soft(values: Values) -> tuple[float | None, ...]:
    return tuple(None if value is None else value.share for value in values)


def hard(values: Values) -> tuple[float | None, ...]:
    return tuple(None if value is None else value.hit for value in values)


LABELS: dict[str, Callable[[Values], tuple[float | None, ...]]] = {"soft": soft, "hard": hard}


def prefixes_of(prompt: Prompt, token_ids: Sequence[int], ends: Sequence[int]) -> tuple[Prompt, ...]:
    """Of a sampled completion, in its own tokens. ends: the index of the token at which each of its K steps ends
    (places.step_tokens). Returns K - 1 prompts; their text is for people, and stays the problem's."""
    return tuple(Prompt(prompt.problem, (*prompt.token_ids, *token_ids[: end + 1]), prompt.text) for end in ends[:-1])


def estimate(
    solutions: Sequence[Solution], n: int, continue_: Continue, seed: int, budget: int | None = None
) -> list[Values]:
    """The value of every prefix of every solution; VinePPO, arXiv:2410.01679, section 4, with one call in all.

    budget: of continuations for each problem; prefixes that it leaves no n for, the last ones, are not asked. Equal
    prefixes of a problem are asked once, and have one value."""
    purse = Purse(budget)
    asked: dict[Key, Prompt] = {}
    for prefix in (prefix for solution in solutions for prefix in solution.prefixes):
        if _key(prefix) not in asked and purse.pays(prefix, n):
            asked[_key(prefix)] = prefix
    known = _ask(asked, n, continue_, seed)
    return [(*(known.get(_key(prefix)) for prefix in s.prefixes), value_of([s.verdict])) for s in solutions]


def first_wrong(
    solutions: Sequence[Solution], n: int, continue_: Continue, seed: int, budget: int | None = None
) -> list[Search]:
    """The first prefix from which none of n continuations is right, by binary search: log2(K) prefixes instead of K;
    OmegaPRM, arXiv:2406.06592, section 3.2.

    A wrong solution is taken to be right up to some step and wrong from it on: the empty prefix is right, the whole
    wrong. Where a continuation of the middle is right the search goes on behind it, else before. A right solution needs
    no search: it is itself a right continuation of each of its prefixes. A search ends early where the whole has no
    score, the middle has none, or the problem's budget leaves no n. All searches ask together: log2 of the largest K
    calls."""
    purse = Purse(budget)
    searches = [_begin(solution) for solution in solutions]
    known: dict[Key, Value | None] = {}
    while middles := {i: search.middle for i, search in enumerate(searches) if search.middle is not None}:
        prefixes = {i: solutions[i].prefixes[k - 1] for i, k in middles.items()}
        asked: dict[Key, Prompt] = {}
        for prefix in prefixes.values():
            key = _key(prefix)
            if key not in known and key not in asked:
                if purse.pays(prefix, n):
                    asked[key] = prefix
                else:
                    known[key] = None
        known |= _ask(asked, n, continue_, seed)
        for i, prefix in prefixes.items():
            searches[i] = _narrowed(searches[i], middles[i], known[_key(prefix)])
    return searches


def value_of(verdicts: Sequence[Verdict]) -> Value:
    judged = [verdict for verdict in verdicts if verdict.reward is not None]
    return Value(sum(v.reason == "correct" for v in judged), len(judged), len(verdicts) - len(judged))


Key = tuple[str, str, tuple[int, ...], str]  # of a prefix: task, problem, tokens, text


def _key(prefix: Prompt) -> Key:
    return prefix.problem.task, prefix.problem.id, prefix.token_ids, prefix.text


class Purse:
    """What is left of each problem's budget of continuations; None is no limit."""

    def __init__(self, budget: int | None) -> None:
        self.budget = UNLIMITED if budget is None else budget
        self.left: dict[tuple[str, str], int] = {}

    def pays(self, prefix: Prompt, n: int) -> bool:
        """Takes n for it, if there are so many."""
        problem = prefix.problem.task, prefix.problem.id
        left = self.left.setdefault(problem, self.budget)
        if left < n:
            return False
        self.left[problem] = left - n
        return True


def _ask(prefixes: dict[Key, Prompt], n: int, continue_: Continue, seed: int) -> dict[Key, Value]:
    if not prefixes:
        return {}
    answers = continue_(list(prefixes.values()), n, seed)
    return {key: value_of(verdicts) for key, verdicts in zip(prefixes, answers, strict=True)}


def _begin(solution: Solution) -> Search:
    steps = len(solution.prefixes) + 1
    whole = value_of([solution.verdict])
    values = (*[None] * (steps - 1), whole)
    if not whole.drawn:
        return Search(0, None, values)
    return Search(steps, None, values) if whole.right else Search(0, steps, values)


def _narrowed(search: Search, k: int, value: Value | None) -> Search:
    """Once prefix k has been asked."""
    values = (*search.values[: k - 1], value, *search.values[k:])
    if value is None or value.hit is None:
        return replace(search, values=values, stuck=True)
    if value.right:
        return replace(search, values=values, right=k)
    return replace(search, values=values, wrong=k)
