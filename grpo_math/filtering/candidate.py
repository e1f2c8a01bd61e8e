"""One verified completion as the rules see it, and what "equal" means among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

# Rewards are sums of floats, and those of a training run were float32: 0.7 reads 0.699999988 there. What is nearer than
# this is equal.
NEAR = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A line of the input, without what no rule needs. Equal to itself alone, so that a set of them is cheap.

    reward: None where the verdict is undecided. gold: the problem's right answer. gold, tokens, policy_version: None
    where the file does not say. task, model, finish_reason: "" where it does not say. truncated: cut at its token
    limit, and so without an end-of-sequence token. logprob: of the whole completion, in nats, under the policy that
    sampled it; None where the file does not say. reshaped: the file's is of another distribution (temperature, top_p,
    top_k), and logprob None. file, line: where it stands.
    """

    file: str
    line: int
    task: str
    problem: str
    prompt: str
    completion: str
    reward: float | None
    reason: str
    answer: str | None = None
    gold: str | None = None
    tokens: int | None = None
    truncated: bool = False
    model: str = ""
    policy_version: int | None = None
    finish_reason: str = ""
    logprob: float | None = None
    reshaped: bool = False

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def asked(self) -> tuple[str, str, str]:
        """What makes two completions siblings. The prompt is part of it: the same problem asked in other words is
        another problem to the model, and a pair must have one prompt."""
        return self.task, self.problem, self.prompt

    @property
    def score(self) -> float:
        """The reward, once the undecided are gone."""
        assert self.reward is not None
        return self.reward


def grouped(candidates: Iterable[Candidate], key: Callable[[Candidate], Key]) -> dict[Key, list[Candidate]]:
    """In the order of their first appearance."""
    groups: dict[Key, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(key(candidate), []).append(candidate)
    return groups


def by_problem(candidates: Iterable[Candidate]) -> dict[tuple[str, str, str], list[Candidate]]:
    return grouped(candidates, lambda c: c.asked)


def normalised(text: str) -> str:
    """Without what only white space tells apart."""
    return " ".join(text.split())


def in_order(siblings: Iterable[Candidate]) -> list[Candidate]:
    """An order that does not depend on the input's: what is chosen from it is the same in a shuffled file."""
    return sorted(siblings, key=lambda c: (c.completion, -c.score, c.file, c.line))


def shuffled(siblings: Iterable[Candidate], seed: int) -> tuple[list[Candidate], random.Random]:
    """One problem's candidates in a random order of their own, and the generator to go on with. It depends on the seed
    and the problem alone: other problems in the file, or another order of it, change nothing."""
    ordered = in_order(siblings)
    rng = random.Random("\0".join((str(seed), *ordered[0].asked)))
    rng.shuffle(ordered)
    return ordered, rng
