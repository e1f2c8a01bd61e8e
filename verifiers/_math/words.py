"""Answers in words."""

from __future__ import annotations

import re

from grpo_math.verifiers._math.names import DENIALS
from grpo_math.verifiers._math.values import Words

PLAIN_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z.' -]*")
_SHORT_WORDS = {"yes", "no", "odd", "all", "none", "true", "false", "dne"}
_OPENING = re.compile(r"\A(?:the |an? |it is |there (?:is|are) |option |choice |answer )+", re.IGNORECASE)
_CHOICE = re.compile(r"(\\text ?\{ ?)?((?:option|choice|answer) ?)?\(?([A-Za-z])\)? ?[.:]?(?: ?\})?", re.IGNORECASE)
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_DATE = re.compile(r"([a-z]{3,9})\.? (\d{1,2})(?:st|nd|rd|th)?|(\d{1,2})(?:st|nd|rd|th)? (?:of )?([a-z]{3,9})")


def words(text: str) -> Words | None:
    """Whole words, in \\text{} or long enough not to be a product of variables; a date; the letter of a choice."""
    bare = " ".join(PLAIN_TEXT.sub(r" \1 ", text.replace("^{", "").replace("^", "")).replace("}", " ").split())
    if date := _date(bare.casefold()):
        return date
    if not _WORDS.fullmatch(bare):
        return None
    if bare.casefold() in _SHORT_WORDS:
        return Words("does not exist" if bare.casefold() == "dne" else bare)
    in_text = text.startswith(r"\text") and len(bare) > 1
    if not in_text and len(max(re.split("[ -]", bare), key=len)) <= 3:
        return None
    return Words(_OPENING.sub("", bare).rstrip(". "))


def choice(text: str) -> Words | None:
    """\\text{(C)}, (C), C), Option C: the letter. A bare letter is a variable as well, and left to the grammar."""
    match = _CHOICE.fullmatch(text)
    if match is None or len(text) == 1 or not (match[1] or match[2] or match[3].isupper()):
        return None
    return Words(match[3].upper() if match[2] else match[3])


def _date(text: str) -> Words | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    name, day = match[1] or match[4], match[2] or match[3]
    months = [month for month in _MONTHS if month.startswith(name)]
    return Words(f"{months[0]} {int(day)}") if len(months) == 1 else None


def denies(text: str) -> bool:
    """Whether words such as `not` turn round what follows."""
    return not DENIALS.isdisjoint(re.findall("[a-z]+", text.casefold()))
