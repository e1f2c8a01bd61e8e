"""What an evaluation needs of whatever samples: put problems in its own form, and answer them in any order.

Left out: the samplers themselves (hf.py, vllm.py, openai.py, foreign.py, gold.py), and what is done with their
answers (run.py).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from grpo_math.forms import Form
from grpo_math.types import Completion, FinishReason, Problem, Sampling

# Of a log-probability, past the point: float32 has no more below -8, and sampler and trainer differ by a millionth and
# more. Ten digits further would only make the files twice as large.
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """A problem as the model reads it. task: its task's label. number: its place among the task's problems, from 0.

    text: all of what the model reads where the sampler renders it here, chat template included; for a server that does
    so itself the messages as JSON. token_ids: None where the sampler's server makes them. messages: of a chat, where
    the server renders it. stop: a completion ends before the first of these."""

    task: str
    number: int
    problem: Problem
    text: str
    token_ids: tuple[int, ...] | None = None
    messages: tuple[dict[str, str], ...] | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. tokens: how many were sampled, the end-of-sequence token too; None where nobody knows. failed:
    why there is none, where the sampler could not give one for this problem; then text is empty.

    token_ids, logprobs: (tokens,), what was sampled and the sampler's own log-probability of each, in nats, to DIGITS
    digits; None where nobody asked for them, or the sampler cannot tell. A text that ends before a stop string has the
    tokens up to the one that completed it. Arrays, since all samples are held until the end, and in tuples they
    would take five times the memory."""

    text: str
    tokens: int | None
    finish_reason: FinishReason
    failed: str | None = None
    token_ids: array[int] | None = None
    logprobs: array[float] | None = None


def with_tokens(sample: Sample, completion: Completion) -> Sample:
    """The sample with those of the completion's tokens, and their log-probabilities, that it counts."""
    count = sample.tokens
    return replace(
        sample,
        token_ids=array("i", completion.token_ids[:count]),
        logprobs=array("d", (round(value, DIGITS) for value in completion.logprobs[:count])),
    )


def summed(logprobs: Iterable[float]) -> float:
    """The log-probability of a whole completion, in nats, to DIGITS digits."""
    return round(math.fsum(logprobs), DIGITS)


Answered = tuple[int, list[Sample]]  # Asked.number, its sampling.n samples


class Sampler(Protocol):
    context: int | None  # tokens of prompt and completion together; None where nobody says

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked: ...

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        """What is done, as soon as it is; each problem once, in any order. What is drawn for a problem depends on
        sampling.seed and the problem's id, not on the number that is asked for at once."""

    def identity(self) -> dict[str, Any]:
        """All that decides what is sampled, besides the prompts and `Sampling`: for the manifest, as plain JSON."""

    def close(self) -> None:
        """Gives back what it holds; a second call does nothing."""


def until(text: str, stop: Sequence[str]) -> str | None:
    """What comes before the first of `stop`; None where none of them is in it."""
    places = [place for words in stop if (place := text.find(words)) >= 0]
    return text[: min(places)] if places else None
