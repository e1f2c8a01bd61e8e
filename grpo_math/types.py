"""What flows through a run: Problem -> Prompt -> Completion -> Verdict -> Group -> (batch.py) Batch.

Plain frozen dataclasses, free of torch, so that a verifier's worker process starts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
Reason = Literal[
    "correct", "wrong", "no_answer", "truncated", "unknown", "timeout", "error",
    "memory", "output_limit", "crashed", "forbidden",  # how a judged program ended
]  # fmt: skip


class UserError(ValueError):
    """Something the user can mend. The message names the key or file, the value and the remedy."""


class EngineError(RuntimeError):
    """Nothing is left that samples. The run saves what it has and ends."""


class PeerFailed(RuntimeError):
    """Another rank failed, and has said why."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What to solve, and what is needed to check it."""

    id: str
    task: str
    question: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly what the engine sees. `token_ids` are authoritative; `text` is for people."""

    problem: Problem
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    `logprobs[t]` is the sampler's own log-probability of `token_ids[t]` at the sampling temperature, in nats. The
    end-of-sequence token, where one was sampled, is the last token. `text` is what the verifier reads: decoded once,
    without special tokens, and never tokenised again.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion.

    reward: None where the verifier failed (`timeout`, `error`) or cannot tell (`unknown`): a missing score is no zero.
    reason: `timeout` with a reward says that the judged program's time was up, without one that the verifier's was.
    answer: what the verifier read as the final answer, for majority votes and for people.
    step_rewards: for process supervision, (end of the step as a character offset in the text, reward) per step.
    tests: where programs are judged, per test `passed`, or why not.
    """

    reward: float | None
    reason: Reason
    detail: str = ""
    answer: str | None = None
    step_rewards: tuple[tuple[int, float], ...] | None = None
    tests: tuple[str, ...] | None = None

    @property
    def failed(self) -> bool:
        """Whether the verifier itself failed. `unknown` is no failure: it says that the answer is beyond judging."""
        return self.reward is None and self.reason in ("timeout", "error")


class RunAlone(Exception):
    """Raised by a verifier whose verdict may owe to the machine's load: it is asked again with nothing else running,
    and this verdict stands if it raises it again."""

    def __init__(self, verdict: Verdict):
        super().__init__(verdict)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class Scored:
    """One completion's verdicts, a verifier each, and the reward that training uses.

    reward is the weighted sum of the parts, None as soon as one of them has a weight and no score. verdict is that of
    the first verifier, the task's own: dynamic sampling and accuracy look at it alone.
    """

    reward: float | None
    verdict: Verdict
    parts: Mapping[str, Verdict]


@dataclass(frozen=True, slots=True)
class Group:
    """The G sibling completions of one prompt, and their scores."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    scores: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw completions. temperature 0 is greedy; top_p 1 and top_k 0 are off; seed fixes every token.

    stop: a completion ends once one of these is in its text, which stays in it.

    The trainer can follow temperature exactly. top_p and top_k cut the distribution at a place that moves with the
    weights, so that even an unchanged policy would have ratios other than 1: training refuses them. stop is for
    evaluation too.
    """

    n: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
