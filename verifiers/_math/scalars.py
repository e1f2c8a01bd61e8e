"""Answers of one part: a plain number, a formula with its unit, a number in a base, a ratio, a time of day."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math import evaluate, grammar
from grpo_math.verifiers._math.cut import split
from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.units import split_unit
from grpo_math.verifiers._math.values import Based, Ratio, Scalar, Value, Words

_TIME = re.compile(r"\d{1,2}:[0-5]\d")
_BASED = re.compile(r"([0-9A-Z]+) ?_ ?(?:\{ ?(?:\\text ?\{ ?)?(\d+|[a-z]+) ?\}? ?\}|(\d))(?: ?\\text ?\{ ?base ?\})?")
_BASES = {
    name: base
    for base, name in enumerate(
        ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"], start=2
    )
} | {"sixteen": 16}


def atom(text: str) -> Value:
    if based := _BASED.fullmatch(text):
        return _based(based)
    if ":" in text:
        return _ratio(text)
    return scalar(text)


def _ratio(text: str) -> Value:
    """3:2, but 12:00 is a time of day and means just itself."""
    if _TIME.fullmatch(text):
        return Words(text)
    parts = tuple(scalar(part) for part in split(text, ":"))
    if any(part.node == ("num", 0) for part in parts):
        raise Unreadable("a ratio with 0")
    return Ratio(parts)


def _based(match: re.Match[str]) -> Value:
    digits, name = match[1], match[2] or match[3]
    base = int(name) if name.isdigit() else _BASES.get(name, 0)
    if digits.isalpha():
        return Scalar(grammar.parse(match.group()))  # a variable with an index
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        raise Unreadable(f"{digits} is not a number in base {name}")
    return Based(digits.lstrip("0") or "0", base)


def scalar(text: str) -> Scalar:
    body, unit, scale = split_unit(text.strip())
    if not body:
        raise Unreadable("nothing in front of the unit")
    node = grammar.parse(body)
    if scale:
        node = ("mul", node, ("num", Fraction(10) ** scale))
    number = evaluate.constant(node)
    return Scalar(node if number is None else ("num", number), unit)
