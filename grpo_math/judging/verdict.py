"""The two verdicts of a judge, as talks: a score, and which of two completions is better.

Either is read from the probabilities of one token, or from a text. Both can be asked for after a chain of thought.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo_math.judging.labels import TOP, expected, label_masses, normalised, resolved, split_label, stated
from grpo_math.judging.question import Message, Question, Reply, Talk, Unreadable, ask, said
from grpo_math.judging.template import Template

Read = Literal["logprobs", "text"]
FIRST, SECOND, TIE = "1", "2", "tie"
SCORE_WORD, PREFERENCE_WORD = "score", "better"


@dataclass(frozen=True)
class Reading:
    """How a verdict is read. read: from the probabilities of its token, or from a text. reason: after a chain of
    thought. max_tokens, temperature, seed: of texts; probabilities are those at temperature 1. min_mass: the least
    probability that the labels must have together."""

    read: Read = "logprobs"
    reason: bool = False
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    min_mass: float = 0.1


@dataclass(frozen=True)
class Score:
    """value: from the scale's lowest to its highest; None where there is no verdict, and why says why not."""

    value: float | None
    why: str = ""


@dataclass(frozen=True)
class Preference:
    """probability: that the first is better, the mean over both orders. orders: that of the first, shown first and
    shown second. None where an order has no verdict, and why says why not."""

    probability: float | None
    orders: tuple[float, float] | None = None
    why: str = ""


def score(template: Template, values: Mapping[str, str], reading: Reading) -> Talk[Score]:
    """E = sum_i i p(i) / sum_i p(i) over the scores, arXiv:2309.00267 (d-RLAIF); or the score that the text states."""
    low, high = template.scale
    labels = [str(i) for i in range(low, high + 1)]
    values = {**values, "rubric": template.rubric, "lowest": str(low), "highest": str(high)}
    try:
        return Score(expected((yield from _verdict(template, values, reading, labels, SCORE_WORD))))
    except Unreadable as error:
        return Score(None, str(error))


def prefer(template: Template, values: Mapping[str, str], a: str, b: str, reading: Reading) -> Talk[Preference]:
    """P(a better than b) = (p(1 | a, b) + p(2 | b, a)) / 2: asked in both orders and averaged against the bias for a
    position, as RLAIF does (arXiv:2309.00267, section 2.1)."""
    try:
        first = yield from _first_is_better(template, values, a, b, reading)
        second = yield from _first_is_better(template, values, b, a, reading)
    except Unreadable as error:
        return Preference(None, None, str(error))
    return Preference((first + 1.0 - second) / 2, (first, 1.0 - second))


def _first_is_better(
    template: Template, values: Mapping[str, str], first: str, second: str, reading: Reading
) -> Talk[float]:
    """p(1) / (p(1) + p(2)); from a text 1, 0, or 1/2 for a tie."""
    shown = {**values, "completion_a": first, "completion_b": second, "rubric": template.rubric}
    labels = [FIRST, SECOND] if reading.read == "logprobs" else [FIRST, SECOND, TIE]
    found = yield from _verdict(template, shown, reading, labels, PREFERENCE_WORD)
    return found[FIRST] + found.get(TIE, 0.0) / 2


def _verdict(
    template: Template, values: Mapping[str, str], reading: Reading, labels: Sequence[str], word: str
) -> Talk[dict[str, float]]:
    """The probability of each label, given that it is one of them. Raises Unreadable."""
    words = {key: template.fill(key, values) for key in ("system", "prompt", "reason", "verdict", "text")}
    system: tuple[Message, ...] = ({"role": "system", "content": words["system"]},) if words["system"] else ()

    def asked(*keys: str) -> tuple[Message, ...]:
        return (*system, {"role": "user", "content": "\n\n".join(words[key] for key in keys)})

    if reading.read == "text":
        last = ("reason", "text") if reading.reason else ("text",)
        reply = yield from ask(_text(asked("prompt", *last), reading))
        label = _stated(reply, word, labels)
        return {each: float(each == label) for each in labels}
    if not reading.reason:
        return (yield from probabilities(asked("prompt", "verdict"), labels, reading.min_mass))
    thought = said((yield from ask(_text(asked("prompt", "reason"), reading))).text)
    if not thought:
        raise Unreadable("the judge gave no reasons, only white space or thoughts that it did not end")
    talk = (*asked("prompt", "reason"), {"role": "assistant", "content": thought})
    return (yield from probabilities((*talk, {"role": "user", "content": words["verdict"]}), labels, reading.min_mass))


def probabilities(messages: tuple[Message, ...], labels: Sequence[str], min_mass: float) -> Talk[dict[str, float]]:
    """Of each label, given that it is one of them. Raises Unreadable."""
    reply = yield from ask(Question(messages, top=TOP))
    masses = label_masses(reply.top, labels)
    if (label := split_label(masses)) is not None:
        after = yield from ask(Question(messages, top=TOP, begins=label))
        masses = resolved(masses, label, after.top)
    return normalised(masses, reply.top, min_mass)


def _text(messages: tuple[Message, ...], reading: Reading) -> Question:
    return Question(messages, reading.max_tokens, reading.temperature, reading.seed)


def _stated(reply: Reply, word: str, labels: Sequence[str]) -> str:
    highest = labels[-1] if labels[-1].isdigit() else None
    try:
        return stated(said(reply.text), word, labels, highest)
    except Unreadable as error:
        if reply.cut:
            raise Unreadable(f"it was cut at its limit of tokens; {error}") from None
        raise
