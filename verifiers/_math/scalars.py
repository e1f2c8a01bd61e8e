"""Answers of one part: a plain number, a formula with its unit, a number in a base, a ratio, a time of day."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math import evaluate, grammar
from grpo_math.verifiers._math.cut import split
from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.tree import Node
from grpo_math.verifiers._math.units import split_unit
from grpo_math.verifiers._math.values import Based, Ratio, Scalar, Value, Words

_ZERO: Node = ("num", Fraction(0))
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::00)? ?(?:(?:\\text ?\{)? ?([AaPp])\.? ?[Mm]\.? ?\}?)?")
_BASED = re.compile(  # 52_8, 52_{\text{eight}}, (52)_{(8)}, 52 base 8, 52 \text{ (base 8)}
    r"""[({]?\ ?(?:\\text\ ?\{\ ?)?([0-9]{0,64}(?:\\text\ ?\{\ ?)?[0-9A-Z]{1,64})(?:\ ?\})?\ ?[)}]?\ ?
    (?:_\ ?(?:\{?\ ?\(?\ ?(?:\\text\ ?\{\ ?(?:base\ ?\}?\ ?)?)?\(?\ ?(\d+|[a-z]+)\ ?\)?\ ?\}?\ ?\)?\ ?\}?|(\d))
        (?:\ ?\\text\ ?\{\ ?base\ ?\})?
      |(?:\\text\ ?\{)?\ ?\(?\ ?(?:in\ )?base\ ?\}?\ ?(\d+|[a-z]+)\ ?\)?\ ?\}?)""",
    re.VERBOSE,
)
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
        time = _TIME.fullmatch(text)
        return _ratio(text) if time is None else _time(time, text)
    return scalar(text)


def _time(match: re.Match[str], text: str) -> Value:
    """12:00 is a time of day and means just itself; 12:15 can be a ratio as well."""
    if match[3]:
        return Words(f"{int(match[1])}:{match[2]} {match[3].lower()}m")
    ratio = _ratio(text) if int(match[1]) and int(match[2]) and text.count(":") == 1 else None
    return Words(f"{int(match[1])}:{match[2]}", ratio)


def _ratio(text: str) -> Ratio:
    """3:2"""
    parts = tuple(scalar(part) for part in split(text, ":"))
    if any(evaluate.equal(part.node, _ZERO) for part in parts):
        raise Unreadable("a ratio with 0")
    return Ratio(parts)


def _based(match: re.Match[str]) -> Value:
    digits, name = grammar.MARKUP.sub("", match[1]), match[2] or match[3] or match[4]
    base = int(name) if name.isdigit() else _BASES.get(name, 0)
    if digits.isalpha():
        return scalar(match.group())  # a variable with an index
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        raise Unreadable(f"{digits} is not a number in base {name}")
    return Based(digits.lstrip("0") or "0", base)


def scalar(text: str) -> Scalar:
    body, unit, factor = split_unit(text.strip())
    if not body:
        raise Unreadable("nothing in front of the unit")
    node = grammar.parse(body)
    if factor != 1:
        node = ("mul", node, ("num", Fraction(factor)))
    number = evaluate.constant(node)
    return Scalar(node if number is None else ("num", number), unit)
