"""Samples with their verdicts, of a run or of `grpo-math sample` -> what a reward model learns: each by itself
(judged), or those of a problem against one another (ranked).

A text that a problem has several times counts once, with the mean of what was said of it: a policy that is sure of
itself would otherwise be most of what its reward model learns. Left out: reading the files (filtering/read.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from grpo_math.examples.raw import Kind, RawCompletion, RawExample
from grpo_math.filtering.candidate import Candidate, by_problem
from grpo_math.types import UserError

DIGITS = 6  # of a reward: a run's were float32, and what differs by less is equal (filtering.candidate.NEAR)


def once_each(candidates: Iterable[Candidate], value: Callable[[Candidate], float]) -> list[tuple[Candidate, float]]:
    """Of each problem's equal texts the first, with their mean value. Without those that nobody could judge, and what
    was cut before it said anything."""
    said: dict[tuple[object, ...], list[Candidate]] = {}
    for c in candidates:
        if c.reward is not None and (c.completion or not c.truncated):
            said.setdefault((c.asked, c.completion, c.truncated), []).append(c)
    return [(same[0], round(sum(map(value, same)) / len(same), DIGITS)) for same in said.values()]


def judged_samples(candidates: Sequence[Candidate]) -> list[RawExample]:
    """One example of each, whose label is the verdict: 1 where it is `correct`, else 0. Not the reward, of which a run
    makes a weighted sum, and from which it takes penalties for length."""
    examples = [
        RawExample(c.source, c.prompt, (_completion(c, label),), problem=c.problem, task=c.task)
        for c, label in once_each(candidates, lambda c: float(c.reason == "correct"))
    ]
    if not examples:
        raise UserError(f"none of {len(candidates):,} samples is judged; give samples that a verifier has judged")
    return examples


def ranked_samples(candidates: Sequence[Candidate]) -> list[RawExample]:
    """One example of each problem whose completions differ in reward."""
    reward_of = dict(once_each(candidates, lambda c: c.score))
    examples = []
    for siblings in by_problem(reward_of).values():
        first, rewards = siblings[0], {reward_of[c] for c in siblings}
        if len(rewards) > 1:
            completions = tuple(_completion(c, reward_of[c]) for c in siblings)
            examples.append(RawExample(first.source, first.prompt, completions, problem=first.problem, task=first.task))
    if not examples:
        raise UserError(
            f"{len(candidates):,} samples, and no problem has two whose rewards differ; sample more completions of "
            "each problem (grpo-math sample -n), or problems that are sometimes solved"
        )
    return examples


def dealt(example: RawExample, at_most: int) -> list[RawExample]:
    """A ranked example as several of at most so many completions. They are dealt out in the order of their rewards, so
    that each has of the good and of the bad ones; the one or other may have equal ones alone, and is left out."""
    count = -(-len(example.completions) // at_most)
    if count == 1:
        return [example]
    ordered = sorted(example.completions, key=_reward)
    hands = [tuple(ordered[i::count]) for i in range(count)]
    return [replace(example, completions=hand) for hand in hands if len({_reward(c) for c in hand}) > 1]


FROM_SAMPLES: dict[Kind, Callable[[Sequence[Candidate]], list[RawExample]]] = {
    "judged": judged_samples,
    "ranked": ranked_samples,
}


def _completion(c: Candidate, reward: float) -> RawCompletion:
    return RawCompletion(c.completion, "length" if c.truncated else "stop", reward)


def _reward(completion: RawCompletion) -> float:
    assert completion.reward is not None
    return completion.reward
