"""Pairs of a better and a worse completion of one prompt, for the DPO family: pure functions, in the table PAIRINGS.

In every pair the chosen reward is higher, by at least --gap, and neither the texts nor the final answers are the same:
such a pair would teach nothing, or a contradiction. Each function yields its pairs best first; --pairs-per-problem cuts
there. They depend on the seed and the problem's completions alone, not on their order.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from grpo_math.filtering.candidate import NEAR, Candidate, by_problem, normalised, shuffled
from grpo_math.filtering.distance import Words, edit_share, words

SHORTLIST = 16  # of `hard`: so many of the nearest length are compared by edit distance, which costs far more


@dataclass(frozen=True)
class Terms:
    """What makes a pair. gap: the least difference of rewards. chosen_from, rejected_to: bounds on either's reward.
    limit: pairs of a problem. temperature, candidates: beta, and how many are accepted, of `rso`."""

    gap: float = 0.0
    chosen_from: float = -math.inf
    rejected_to: float = math.inf
    limit: int | None = None
    temperature: float = 0.5
    candidates: int = 8


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A candidate with what its pairs are refused by. answer: None where the verifier read none; two completions
    without an answer do not have the same one."""

    candidate: Candidate
    text: str
    answer: str | None

    @property
    def reward(self) -> float:
        return self.candidate.score


Pair = tuple[Entry, Entry]
Pairing = Callable[[Sequence[Entry], Terms, random.Random], Iterator[Pair]]


def contrast(chosen: float, rejected: float, terms: Terms) -> bool:
    """Whether two rewards may make a pair."""
    difference = chosen - rejected
    return (
        difference > NEAR
        and difference >= terms.gap - NEAR
        and chosen >= terms.chosen_from - NEAR
        and rejected <= terms.rejected_to + NEAR
    )


def fits(chosen: Entry, rejected: Entry, terms: Terms) -> bool:
    """Whether two completions may make a pair."""
    return (
        contrast(chosen.reward, rejected.reward, terms)
        and chosen.text != rejected.text
        and (chosen.answer is None or chosen.answer != rejected.answer)
    )


def best_worst(entries: Sequence[Entry], terms: Terms, rng: random.Random) -> Iterator[Pair]:
    """The best against the worst, the next best against the next worst, and so on; ties fall by the seed. Each
    completion is in one pair at most.

    The first pair alone is that of many pipelines: Zephyr (arXiv:2310.16944) with a random one for the worst, SimPO
    (arXiv:2405.14734) exactly."""
    return _each_once(entries, terms, lambda chosen, rejected: reversed(rejected))


def hard(entries: Sequence[Entry], terms: Terms, rng: random.Random) -> Iterator[Pair]:
    """Each chosen one, the best first, against the rejected one nearest to it: the smallest edit distance in words, as
    a share of the longer one, among the SHORTLIST nearest in length. Each completion is in one pair at most.

    Such pairs differ where the error is and little else. They are also those with which DPO lowers the chosen one's
    probability too: Smaug, arXiv:2402.13228, which adds a term against it."""
    split = {e: words(e.candidate.completion) for e in entries}

    def nearest_first(chosen: Entry, rejected: Sequence[Entry]) -> Iterator[Entry]:
        mine: Words = split[chosen]
        near = sorted(rejected, key=lambda e: abs(len(split[e]) - len(mine)))[:SHORTLIST]
        return iter(sorted(near, key=lambda e: edit_share(mine, split[e])))

    return _each_once(entries, terms, nearest_first)


def _each_once(
    entries: Sequence[Entry], terms: Terms, prefer: Callable[[Entry, Sequence[Entry]], Iterator[Entry]]
) -> Iterator[Pair]:
    """From the best downwards each completion, unless it is in a pair, with the first that `prefer` names of those
    left which fit it. prefer: (chosen, those which fit, by falling reward) -> those in the order to take them."""
    left = sorted(entries, key=lambda e: -e.reward)
    while left:
        chosen = left.pop(0)
        if not left or not contrast(chosen.reward, left[-1].reward, terms):
            return  # those that follow are no better, and those left no worse
        fitting = [e for e in left if fits(chosen, e, terms)]
        rejected = next(iter(prefer(chosen, fitting)), None) if fitting else None
        if rejected is not None:
            left.remove(rejected)
            yield chosen, rejected


def all_pairs(entries: Sequence[Entry], terms: Terms, rng: random.Random) -> Iterator[Pair]:
    """Every two completions whose rewards are at least the gap apart, in a random order.

    RS-DPO, arXiv:2402.10038, algorithm 1, takes them where sigmoid((r_i - r_j) / tau) > eta, that is where the gap is
    over tau * log(eta / (1 - eta))."""
    ordered = sorted(entries, key=lambda e: e.reward)
    rewards = [e.reward for e in ordered]
    step = max(terms.gap - NEAR, NEAR)
    # of each entry the entries below by the gap are the first `below`: pairs are counted without being made
    below = [bisect_right(rewards, reward - step) for reward in rewards]
    ends = list(accumulate(below))
    for number in _shuffled_range(ends[-1] if ends else 0, rng):
        chosen = bisect_right(ends, number)
        rejected = number - (ends[chosen] - below[chosen])
        if fits(ordered[chosen], ordered[rejected], terms):
            yield ordered[chosen], ordered[rejected]


def _shuffled_range(n: int, rng: random.Random) -> Iterator[int]:
    """The numbers below n in a random order, without a list of them: Fisher and Yates, of which only what has moved is
    held."""
    moved: dict[int, int] = {}
    for i in range(n):
        j = rng.randrange(i, n)
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


def rso(entries: Sequence[Entry], terms: Terms, rng: random.Random) -> Iterator[Pair]:
    """Statistical rejection sampling (RSO), arXiv:2309.06657: `accept`, then disjoint random pairs of the accepted,
    the better of two being chosen (the paper's first-round ranking). Pairs that do not fit are left out."""
    accepted = accept(entries, terms.temperature, terms.candidates, rng)
    rng.shuffle(accepted)
    for first, second in zip(accepted[::2], accepted[1::2], strict=False):
        chosen, rejected = (first, second) if first.reward >= second.reward else (second, first)
        if fits(chosen, rejected, terms):
            yield chosen, rejected


def accept(entries: Sequence[Entry], beta: float, n: int, rng: random.Random) -> list[Entry]:
    """Algorithm 1 of RSO: n of the entries, as if sampled from pi(y) exp(r(y) / beta) / Z, all of them where there are
    no more than n.

    Rounds over those left, each accepted with probability exp((r - r_max) / beta), r_max being the best of the round
    and thereby always accepted, until there are n. beta -> 0 takes the best n, beta -> infinity the first n. The
    entries come in the seed's order, as the paper's come in that of sampling."""
    left = list(entries)
    accepted: list[Entry] = []
    while left and len(accepted) < n:
        best = max(e.reward for e in left)
        again = []
        for e in left:
            if len(accepted) < n and rng.random() < math.exp((e.reward - best) / beta):
                accepted.append(e)
            else:
                again.append(e)
        left = again
    return accepted


PAIRINGS: dict[str, Pairing] = {"best-worst": best_worst, "all": all_pairs, "hard": hard, "rso": rso}


@dataclass(frozen=True)
class Paired:
    """pairs: (chosen, rejected), problem after problem. Of the problems without a pair: flat are those without two
    rewards that could make one, alike those where only equal answers or texts, or the draw, stood in the way."""

    pairs: list[tuple[Candidate, Candidate]]
    problems: int
    flat: int
    alike: int


def pair_up(candidates: Sequence[Candidate], pairing: str, terms: Terms, seed: int) -> Paired:
    """Pairs within each problem as it was asked, by `pairing` of PAIRINGS."""
    pairs: list[tuple[Candidate, Candidate]] = []
    problems = flat = alike = 0
    for siblings in by_problem(candidates).values():
        problems += 1
        rewards = [c.score for c in siblings]
        if not contrast(max(rewards), min(rewards), terms):
            flat += 1
            continue
        ordered, rng = shuffled(siblings, seed)
        entries = [Entry(c, normalised(c.completion), c.answer and normalised(c.answer)) for c in ordered]
        found = [(a.candidate, b.candidate) for a, b in islice(PAIRINGS[pairing](entries, terms, rng), terms.limit)]
        pairs += found
        alike += not found
    return Paired(pairs, problems, flat, alike)
