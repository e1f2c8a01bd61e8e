"""Are two formulas equal? Decided by their values at points drawn for this pair: exact rationals, else 500 digits.

Exact: two rational functions that agree at several random rational points are the same function (Schwartz and Zippel).
Numeric, for roots, pi, sines and the like: see numeric.py. There is no simplifier, whose running time nobody can bound.

The points depend on the pair (a seeded generator), so a verdict is repeatable and no answer can aim at the points.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from grpo_math.verifiers._math import numeric
from grpo_math.verifiers._math.exact import NotExact, Undecided, Undefined, exact
from grpo_math.verifiers._math.tree import Node, operations, spelling, symbols
from grpo_math.verifiers._math.values import Outcome

POINTS, TRIES = 6, 40
WHOLE = frozenset({"fact", "binom", "floor", "ceil", "sum", "prod"})  # formulas about integers are compared at integers

Value = Any  # Fraction, or mpmath's mpf or mpc


def equal(a: Node, b: Node, tolerance: float = 0.0) -> Outcome:
    """Whether the two formulas are equal wherever both are defined. Raises Undecided.

    tolerance: a share of a's value, by which b may differ where neither has a variable."""
    if a == b:
        return Outcome(True, "the same number" if a[0] == "num" else "the same formula")
    if a[0] == b[0] == "num":
        return Outcome(tolerance > 0 and _near(a[1], b[1], tolerance), "numbers compared")
    if "inf" in operations(a) | operations(b):
        return Outcome(False, "infinity")  # it equals itself only, and is written in one way
    pairs = []
    for left, right in samples(a, b):
        pairs.append((left, right))
        if not same(left, right):
            near = tolerance > 0 and not symbols(a) | symbols(b) and _near(left, right, tolerance)
            return Outcome(near, _how(pairs))
    return Outcome(True, _how(pairs))


def _near(a: Value, b: Value, tolerance: float) -> bool:
    return (
        bool(abs(a - b) <= Fraction(tolerance) * abs(a))
        if isinstance(a, Fraction) and isinstance(b, Fraction)
        else numeric.near(a, b, tolerance)
    )


def _how(pairs: Sequence[tuple[Value, Value]]) -> str:
    exactly = all(isinstance(value, Fraction) for pair in pairs for value in pair)
    points = f" at {len(pairs)} random points" if len(pairs) > 1 else ""
    return f"exact values{points}" if exactly else f"values to {numeric.AGREE} digits{points}"


def proportional(a: Node, b: Node, positive: bool) -> Outcome:
    """Whether a = c b with one constant c other than 0 (above 0 where `positive`). Raises Undecided."""
    pairs = list(samples(a, b))
    left, right = pairs[0]
    if same(left, Fraction(0)) or same(right, Fraction(0)):
        return Outcome(False, "0 = 0 says nothing")
    if positive and not _positive(left / right):
        return Outcome(False, "the inequality the other way round")
    return Outcome(all(same(x * right, y * left) for x, y in pairs), f"as multiples of each other, {_how(pairs)}")


def constant(node: Node) -> Fraction | None:
    """The rational value of a formula without variables, or None. Raises Undecided."""
    if symbols(node):
        return None
    try:
        return exact(node, {})
    except (NotExact, Undefined):
        return None


def line(node: Node) -> tuple[Fraction, Fraction] | None:
    """(slope, root) of a linear function of one variable with rational coefficients, else None."""
    names = symbols(node)
    if len(names) != 1:
        return None
    name = names.pop()
    try:
        at_0, at_1, *others = (exact(node, {name: Fraction(x)}) for x in (0, 1, -2, 7, 31))
    except (NotExact, Undefined):
        return None
    slope = at_1 - at_0
    if not slope or any(y != at_0 + slope * x for x, y in zip((-2, 7, 31), others, strict=True)):
        return None
    return slope, -at_0 / slope


def samples(a: Node, b: Node) -> Iterator[tuple[Value, Value]]:
    """Values of both formulas at the same points. Raises Undecided where too few points give both a value."""
    names = sorted(symbols(a) | symbols(b))
    kinds = operations(a) | operations(b)
    if "inf" in kinds:
        raise Undecided("infinity in a formula")
    whole = not WHOLE.isdisjoint(kinds)
    wanted = 1 if not names else 3 * POINTS if whole else POINTS
    rng = random.Random(f"{spelling(a)} {spelling(b)}" if names else 0)
    found = 0
    for attempt in range(TRIES if names else 1):
        point = {name: _coordinate(rng, attempt, whole) for name in names}
        try:
            pair = _values(a, b, point)
        except (Undefined, Undecided):
            continue
        found += 1
        yield pair
        if found == wanted:
            return
    raise Undecided("no value, or values over the bounds, at too many points")


def _values(a: Node, b: Node, point: Mapping[str, Fraction]) -> tuple[Value, Value]:
    try:
        return exact(a, point), exact(b, point)
    except NotExact:
        return numeric.value(a, point), numeric.value(b, point)


def _coordinate(rng: random.Random, attempt: int, whole: bool) -> Fraction:
    """Integers, small at first, where the formula asks for them; else rationals in (0.1, 10), at first positive."""
    if whole:
        return Fraction(rng.randint(1, 4 + 2 * attempt))
    size = Fraction(rng.randint(10**5, 10**6), rng.randint(10**5, 10**6))
    return size if attempt < POINTS // 2 or rng.random() < 0.3 else -size


def same(a: Value, b: Value) -> bool:
    """Exactly equal, or to the digits that numeric.py answers for."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return numeric.same(a, b)


def _positive(ratio: Value) -> bool:
    return ratio > 0 if isinstance(ratio, Fraction) else bool(ratio.real > 0)
