"""Equations and inequalities: an interval where it is one, a value where the left side only names it."""

from __future__ import annotations

import re

from grpo_math.verifiers._math import evaluate, grammar
from grpo_math.verifiers._math.brackets import REALS, interval_without
from grpo_math.verifiers._math.cut import outside, split
from grpo_math.verifiers._math.literals import Unreadable, Unsupported
from grpo_math.verifiers._math.names import GREEK
from grpo_math.verifiers._math.scalars import scalar
from grpo_math.verifiers._math.tree import Node, symbols
from grpo_math.verifiers._math.values import INFINITY, Ordered, Read, Relation, Scalar, Value
from grpo_math.verifiers._math.words import PLAIN_TEXT, denies, words

SIGNS = "=<>≤≥≠∈∉≈"
_GREEK = "|".join(sorted(GREEK, key=len, reverse=True))
_SUBSCRIPT = r"(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]|\\[A-Za-z]+))?"
_VARIABLE = re.compile(
    rf"(?:[A-Za-z]|[A-Z]{{2,3}}|\\(?:{_GREEK})(?![A-Za-z])|\\text ?\{{ ?[A-Za-z] ?\}}|\{{ ?[A-Za-z] ?\}}"
    rf"|\\(?:vec|overline|overrightarrow|bar|hat|dot|ddot) ?\{{[A-Za-z ]*\}}){_SUBSCRIPT}'*"
)
_CALL = re.compile(rf"\\?[A-Za-z]+{_SUBSCRIPT}'*(?: ?\^ ?\{{ ?-1 ?\}})? ?\([^()]*\)")
_ONE_LETTER_CALL = re.compile(r"[A-Za-z] ?\( ?[A-Za-z] ?\)")
_QUANTITY = re.compile(
    rf"(?:[A-Za-z(){{}}/:| ',]"
    rf"|\\(?:{_GREEK}|frac|overline|overrightarrow|vec|sin|cos|tan|cot|max|min|text)(?![A-Za-z]))+"
)
_SUM = re.compile(r" ?[A-Za-z]'?(?: ?[+-] ?[A-Za-z]'?)+ ?")
_IN_CALL = re.compile(r"(?<=[A-Za-z]) ?\([^()]*\)")
_INDEX = re.compile(r" ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]|\\[A-Za-z]+)")
_NAMES = re.compile(r"\( ?[A-Za-z\\][A-Za-z]*(?: ?, ?[A-Za-z\\][A-Za-z]*)* ?\)")
_ABBREVIATION = re.compile(r"[A-Z]{2,6}")
NEAR = 0.1
_MIRROR = {">": "<", "≥": "≤"}


def relation(text: str, value: Read) -> Value:
    """An equation or inequality; an interval where it is one; the value alone where the left side only names it."""
    parts = [part.strip() for part in split(text, SIGNS)]
    operators = [character for character in outside(text) if character in SIGNS]
    if any(not part for part in parts):
        raise Unreadable("a relation with an empty side")
    if "∉" in operators:
        raise Unsupported("not an element of")
    if "≈" in operators:
        return _approximate(parts, operators, value)
    if "∈" in operators:
        if len(operators) > 1 or not (_is_variable(parts[0]) or _NAMES.fullmatch(parts[0])):
            raise Unreadable("an element that is no variable")
        return value(parts[1])
    if set(operators) == {"="}:
        return _equation(parts, value)
    if len(operators) == 1:
        return _inequality(operators[0], *parts)
    if len(operators) == 2 and (set(operators) <= {"<", "≤"} or set(operators) <= {">", "≥"}):
        low, _, high = parts if operators[0] in "<≤" else parts[::-1]
        first, second = operators if operators[0] in "<≤" else operators[::-1]
        if _is_bounded(parts[1]):
            brackets = ("[" if first in "≤≥" else "(") + ("]" if second in "≤≥" else ")")
            return Ordered((value(low), value(high)), brackets, inequality=True)
    raise Unsupported("a chain of relations")


def _approximate(parts: list[str], operators: list[str], value: Read) -> Value:
    """1/3 ≈ 0.33 is 1/3, and x ≈ 12 is 12."""
    at = operators.index("≈")
    if set(operators[:at]) - {"="} or operators.count("≈") > 1 or at + 1 < len(operators):
        raise Unreadable("an approximation of what is no number")
    last, right = scalar(parts[at]) if at or not words(parts[0]) else None, scalar(parts[at + 1])
    if (
        last
        and not at
        and not symbols(last.node) | symbols(right.node)
        and not evaluate.equal(last.node, right.node, NEAR)
    ):
        raise Unreadable("an approximation that is far off")
    if at:
        return _equation(parts[: at + 1], value)
    return value(parts[1] if _is_variable(parts[0]) or words(parts[0]) else parts[0])


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return _is_variable(text) or (_CALL.fullmatch(text) is not None and not text.startswith((r"\ln", r"\log", r"\exp")))


def _is_quantity(text: str) -> bool:
    """The left side of |AB| = 1, of S_1 : S_2 = 3 : 4, of P(A) = 1/2, of m + n = 7: it names what was asked for."""
    outer = _INDEX.sub("", _IN_CALL.sub("", text))
    if _SUM.fullmatch(outer):
        return not denies(text)
    return _QUANTITY.fullmatch(outer) is not None and re.search("[A-Za-z]", outer) is not None and not denies(text)


def _equation(parts: list[str], value: Read) -> Value:
    left = parts[0]
    if len(set(parts)) < len(parts):
        raise Unreadable("an equation of something with itself")
    plain = [PLAIN_TEXT.sub(r"\1", part).strip() for part in parts]
    if all(_ABBREVIATION.fullmatch(part) for part in plain) and len(parts) == 2:
        return Relation("=", _difference(*(Scalar(("sym", part)) for part in plain)))  # MR = SRMC
    if _NAMES.fullmatch(left) and len(parts) == 2:
        return _in_order_of_names(left, value(parts[1]))
    if words(left) or (":" in left and _is_quantity(left)):
        if denies(left):
            raise Unreadable(f"{left!r} before an equals sign")
        parts = parts[1:]  # \text{total} = 5
    if len(parts) > 2:  # x = y = 6/4 = 3/2: names, and values that are all the same
        values = [scalar(part) for part in parts[:-1] if not _is_name(part) and not _is_quantity(part)]
        last = value(parts[-1])
        if values and not (isinstance(last, Scalar) and all(evaluate.equal(last.node, v.node) for v in values)):
            raise Unreadable("a chain of equations that do not hold")
        return last
    if len(parts) == 1:
        return value(parts[0])
    if _is_variable(parts[1]) and not _is_name(parts[0]) and not symbols(scalar(parts[0]).node):
        parts = parts[::-1]  # 5 = x
    named = value(parts[1]) if _is_name(parts[0]) else None
    if named is not None and not isinstance(named, Scalar):
        return named  # A = (1, 2)
    a, b = _side(parts[0]), scalar(parts[1])
    if not symbols(a.node) and not symbols(b.node):
        if not evaluate.equal(a.node, b.node):
            raise Unreadable("an equation that does not hold")
        return b
    if named is None and not symbols(b.node) and _is_quantity(left):
        return Relation("=", _difference(a, b), b, left)
    letters = symbols(grammar.parse(_head(parts[0]))) if named is not None else set()
    said = named if letters.isdisjoint(symbols(b.node)) else None
    return Relation("=", _difference(a, b), said, parts[0] if said else "")


def _side(text: str) -> Scalar:
    """A side of an equation; a quantity that no grammar reads, such as P(X > 2), is a variable of that name."""
    try:
        return scalar(text)
    except Unreadable:
        if not _is_quantity(text) and not _is_name(text):
            raise
        return Scalar(("sym", text.replace(" ", "")))


def _in_order_of_names(names: str, point: Value) -> Value:
    """(y, x) = (1, 2) is the point (2, 1)."""
    letters = [name.strip() for name in names.strip("() ").split(",")]
    if not isinstance(point, Ordered) or len(letters) != len(point.items) or any(len(name) > 1 for name in letters):
        return point
    if len(set(letters)) < len(letters):
        raise Unreadable("a name twice")
    items = [item for _, item in sorted(zip(letters, point.items, strict=True), key=lambda pair: pair[0])]
    return Ordered(tuple(items), point.brackets)


def _head(name: str) -> str:
    """The f of f(x)."""
    return name.split("(")[0].split("^")[0]


def _difference(a: Scalar, b: Scalar) -> Node:
    return ("add", a.node, ("neg", b.node))


def _inequality(operator: str, left: str, right: str) -> Value:
    """An interval where one variable is bounded by a number, such as x ≤ √2 or 2x > 4."""
    if operator in _MIRROR:
        operator, left, right = _MIRROR[operator], right, left
    a, b = scalar(left), scalar(right)
    closed = operator == "≤"
    if operator == "≠":
        point = b if _is_variable(left) else a if _is_variable(right) else None
        if point is not None and point.node[0] == "num":
            return interval_without(REALS, [point])
        return Relation(operator, _difference(a, b))
    if _is_bounded(left) and not symbols(b.node):
        return _below(b, closed)
    if _is_bounded(right) and not symbols(a.node):
        return _above(a, closed)
    if found := evaluate.line(_difference(a, b)):
        slope, root = found
        return _below(Scalar(("num", root)), closed) if slope > 0 else _above(Scalar(("num", root)), closed)
    return Relation(operator, _difference(a, b))


def _is_bounded(text: str) -> bool:
    """x or f(x), whose range is asked for; the bounds of sin x are none of x."""
    return _is_variable(text) or _ONE_LETTER_CALL.fullmatch(text) is not None


def _below(bound: Scalar, closed: bool) -> Ordered:
    return Ordered((Scalar(("neg", INFINITY)), bound), "(]" if closed else "()", inequality=True)


def _above(bound: Scalar, closed: bool) -> Ordered:
    return Ordered((bound, Scalar(INFINITY)), "[)" if closed else "()", inequality=True)
