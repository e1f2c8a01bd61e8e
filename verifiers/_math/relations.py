"""Equations and inequalities: an interval where it is one, a value where the left side only names it."""

from __future__ import annotations

import re
from collections.abc import Callable

from grpo_math.verifiers._math import evaluate, grammar
from grpo_math.verifiers._math.cut import outside, split
from grpo_math.verifiers._math.literals import Unreadable, Unsupported
from grpo_math.verifiers._math.scalars import scalar
from grpo_math.verifiers._math.tree import Node, symbols
from grpo_math.verifiers._math.values import INFINITY, Ordered, Relation, Scalar, Value
from grpo_math.verifiers._math.words import words

Read = Callable[[str], Value]  # read.value, for what stands on a side

SIGNS = "=<>≤≥≠∈≈"
_NAME = re.compile(
    r"(?:[A-Za-z]|[A-Z]{2,3}|\\[A-Za-z]+)(?:\^ ?\{ ?-1 ?\})?(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]))?'*(?: ?\([^()]*\))?"
)
_NAMES = re.compile(r"\( ?[A-Za-z](?: ?, ?[A-Za-z])* ?\)")
_ADDS = re.compile(r"[\d+*-]")
_SUBSCRIPT = re.compile(r" ?[\^_] ?(?:\{[^{}]*\}|[A-Za-z0-9]|\\[A-Za-z]+)")
_MIRROR = {">": "<", "≥": "≤"}


def relation(text: str, value: Read) -> Value:
    """An equation or inequality; an interval where it is one; the value alone where the left side only names it."""
    parts = [part.strip() for part in split(text, SIGNS)]
    operators = [character for character in outside(text) if character in SIGNS]
    if "≈" in operators:
        at = operators.index("≈")  # 1/3 ≈ 0.33 is 1/3
        return value(parts[at + 1] if _is_name(parts[at]) else parts[at])
    if operators[0] == "∈" and len(operators) == 1:
        return value(parts[1])
    if any(not part for part in parts) or "∈" in operators:
        raise Unreadable("a relation with an empty side")
    if set(operators) == {"="}:
        return _equation(parts, value)
    if len(operators) == 1:
        return _inequality(operators[0], *parts)
    if len(operators) == 2 and (set(operators) <= {"<", "≤"} or set(operators) <= {">", "≥"}):
        low, _, high = parts if operators[0] in "<≤" else parts[::-1]
        first, second = operators if operators[0] in "<≤" else operators[::-1]
        if _is_name(parts[1]):
            brackets = ("[" if first in "≤≥" else "(") + ("]" if second in "≤≥" else ")")
            return Ordered((value(low), value(high)), brackets, inequality=True)
    raise Unsupported("a chain of relations")


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_quantity(text: str) -> bool:
    """The left side of |AB| = 1, of S_1 : S_2 = 3 : 4, of P(A) = 1/2: it names what is asked for, and adds nothing."""
    outer = _SUBSCRIPT.sub("", text)
    return not _ADDS.search(outer) and re.search("[A-Za-z]", outer) is not None


def _equation(parts: list[str], value: Read) -> Value:
    left = parts[0]
    if len(set(parts)) < len(parts):
        raise Unreadable("an equation of something with itself")
    if _NAMES.fullmatch(left) or words(left) or (":" in left and _is_quantity(left)):
        parts = parts[1:]  # (x, y) = (1, 2) and \text{total} = 5
    if len(parts) > 2:  # x = 6/4 = 3/2: all the same, or nonsense
        values = [scalar(part) for part in (parts[1:] if _is_name(left) else parts)]
        if not all(evaluate.equal(values[0].node, value.node) for value in values[1:]):
            raise Unreadable("a chain of equations that do not hold")
        return values[-1]
    if len(parts) == 1:
        return value(parts[0])
    named = value(parts[1]) if _is_name(parts[0]) else None
    if named is not None and not isinstance(named, Scalar):
        return named  # A = (1, 2)
    a, b = scalar(parts[0]), scalar(parts[1])
    if not symbols(a.node) and not symbols(b.node):
        if not evaluate.equal(a.node, b.node):
            raise Unreadable("an equation that does not hold")
        return b
    if named is None and not symbols(b.node) and _is_quantity(left):
        return Relation("=", _difference(a, b), b, left)
    letters = symbols(grammar.parse(_head(parts[0]))) if named is not None else set()
    said = named if letters.isdisjoint(symbols(b.node)) else None
    return Relation("=", _difference(a, b), said, parts[0] if said else "")


def _head(name: str) -> str:
    """The f of f(x)."""
    return name.split("(")[0]


def _difference(a: Scalar, b: Scalar) -> Node:
    return ("add", a.node, ("neg", b.node))


def _inequality(operator: str, left: str, right: str) -> Value:
    """An interval where one variable is bounded by a number, such as x ≤ √2 or 2x > 4."""
    if operator in _MIRROR:
        operator, left, right = _MIRROR[operator], right, left
    a, b = scalar(left), scalar(right)
    closed = operator == "≤"
    if operator == "≠":
        return Relation(operator, _difference(a, b))
    if _is_name(left) and not symbols(b.node):
        return _below(b, closed)
    if _is_name(right) and not symbols(a.node):
        return _above(a, closed)
    if line := evaluate.line(_difference(a, b)):
        bound = Scalar(("num", line[1]))
        return _below(bound, closed) if line[0] > 0 else _above(bound, closed)
    return Relation(operator, _difference(a, b))


def _below(bound: Scalar, closed: bool) -> Value:
    return Ordered((Scalar(("neg", INFINITY)), bound), "(]" if closed else "()", inequality=True)


def _above(bound: Scalar, closed: bool) -> Value:
    return Ordered((bound, Scalar(INFINITY)), "[)" if closed else "()", inequality=True)
