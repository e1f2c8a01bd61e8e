"""Probabilities of a few labels (1 to 10; 1 or 2) from those of tokens, and labels read from a text. Pure functions.

A label may come as several tokens that differ in white space, " 7" and "7", whose probabilities are added up. And
"10" is one token to some tokenizers and two to others, to which the token "1" then is the beginning of both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from grpo_math.judging.question import Unreadable

Top = Sequence[tuple[str, float]]  # (token's text, log-probability in nats)

TOP = 20  # what OpenAI and vLLM tell at most
SPLIT = 0.01  # less probability of a "1" that may begin a "10" changes a score by under 0.1: not worth a question
SHOWN = 5
MARKS = "▁"  # SentencePiece's blank, where a server shows tokens as they are stored


def label_masses(top: Top, labels: Iterable[str]) -> dict[str, float]:
    """The probability of each label that is the whole of one of the tokens, white space aside."""
    masses = dict.fromkeys(labels, 0.0)
    for token, logprob in top:
        if (label := token.replace(MARKS, " ").strip()) in masses:
            masses[label] += math.exp(logprob)
    return masses


def split_label(masses: Mapping[str, float]) -> str | None:
    """The label whose token may be the beginning of a longer label, and weighs enough to ask: "1" where "10" has no
    token of its own among the likeliest. None where there is none."""
    for label, mass in masses.items():
        longer = [other for other in masses if other != label and other.startswith(label)]
        if mass > SPLIT and longer and not any(masses[other] for other in longer):
            return label
    return None


def resolved(masses: Mapping[str, float], label: str, after: Top) -> dict[str, float]:
    """p(10) = p("1") p("0" | "1"), and p(1) = p("1") (1 - p(a digit | "1")): `label` is where a number ends.

    after: the likeliest tokens behind `label`."""
    found, mass = dict(masses), masses[label]
    following = [(token, math.exp(logprob)) for token, logprob in after]
    for other in masses:
        if other != label and other.startswith(label):
            found[other] = mass * sum(p for token, p in following if token.rstrip() == other[len(label) :])
    found[label] = mass * max(0.0, 1.0 - sum(p for token, p in following if token[:1].isdigit()))
    return found


def normalised(masses: Mapping[str, float], top: Top, least: float) -> dict[str, float]:
    """Probabilities given that it is one of the labels. Raises Unreadable where all labels together have less than
    `least`: such a model was about to say something else, and its digits mean nothing."""
    total = math.fsum(masses.values())
    if not total >= least or total <= 0.0:
        likeliest = ", ".join(f"{token!r} {math.exp(p):.3f}" for token, p in sorted(top, key=lambda t: -t[1])[:SHOWN])
        raise Unreadable(
            f"the labels {', '.join(masses)} have a probability of {total:.3g} together, less than {least:g}; the "
            f"likeliest tokens are {likeliest or 'not told'}"
        )
    return {label: mass / total for label, mass in masses.items()}


def expected(probabilities: Mapping[str, float]) -> float:
    """sum_i i p(i) / sum_i p(i), i being the labels' numbers; d-RLAIF, arXiv:2309.00267, section 2.2.2."""
    return math.fsum(int(label) * p for label, p in probabilities.items()) / math.fsum(probabilities.values())


def stated(text: str, word: str, labels: Sequence[str], highest: str | None = None) -> str:
    """The label of the last "word: LABEL" in a text; `Score: 7`, `**Score:** 7` and, of a scale up to 10, `Score: 7/10`
    are read. Strict: where the last one has no label behind it, an earlier one does not stand in for it.

    Raises Unreadable."""
    places = list(re.finditer(rf"(?<![a-z]){word}[*_]*\s*[:=][*_]*", text, re.IGNORECASE))
    if not places:
        raise Unreadable(f'there is no "{word}: ..." in the answer {_end(text)}')
    rest = text[places[-1].end() :]
    found = re.match(r"\s*[*_\[(]*([a-z]+|\d+)(?:\s*/\s*(\d+))?(?![\w/%]|[.,]\d)", rest, re.IGNORECASE)
    label = found[1].lower() if found else ""
    if not found or label not in labels or found[2] not in (None, highest):
        raise Unreadable(f'behind its last "{word}:" is {rest.strip()[:40]!r}, which is none of {", ".join(labels)}')
    return label


def _end(text: str) -> str:
    return repr(text if len(text) <= 80 else "..." + text[-80:])
