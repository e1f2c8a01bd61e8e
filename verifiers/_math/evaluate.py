"""Are two formulas equal? Decided by their values at points drawn for this pair: exact rationals, else 500 digits.

Exact: two rational functions that agree at several random rational points are the same function (Schwartz and Zippel).
Numeric, for roots, pi, sines and the like: see numeric.py. There is no simplifier, whose running time nobody can bound.

The points depend on the pair (a seeded generator), so a verdict is repeatable and no answer can aim at the points.
"""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from grpo_math.verifiers._math import numeric
from grpo_math.verifiers._math.exact import NotExact, Undecided, Undefined, exact
from grpo_math.verifiers._math.tree import Node, literals, operations, spelling, symbols
from grpo_math.verifiers._math.values import Outcome

WHOLE = frozenset({"fact", "binom", "floor", "ceil", "sum", "prod"})  # formulas about integers are compared at integers
# Operations that give a fraction at a fraction, or may (a power, with a whole exponent).
RATIONAL = WHOLE | {"num", "sym", "add", "mul", "neg", "inv", "div", "pow", "abs"}
MAX_KEPT_BITS = 2_000
WHOLE_POINTS = 14
POINTS = 4  # all positive; as many again have every sign, or lie far out
NEAR, FAR = (Fraction(1, 10), Fraction(4)), ((Fraction(4), Fraction(200)), (Fraction(100), Fraction(4000)))

_ANY_SIGN = frozenset("abcdefghijklmnopqrstuvwxyz")
_SMOOTH = {"add", "mul", "neg", "inv", "div", "degree"} | {
    f"call:{name}" for name in ("exp", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
}
_MINUS_ONES = (("neg", ("num", Fraction(1))), ("num", Fraction(-1)))
_INTEGERS = frozenset("ijklmnpqrNMK")

Value = Any  # Fraction, or mpmath's mpf or mpc
Pair = tuple[Value | None, Value | None]


def equal(a: Node, b: Node, tolerance: float = 0.0) -> Outcome:
    """Whether the two formulas are equal wherever both are defined. Raises Undecided.

    tolerance: a share of a's value, by which b may differ where neither has a variable."""
    if a == b:
        return Outcome(True, "the same number" if a[0] == "num" else "the same formula")
    if a[0] == b[0] == "num":
        near = tolerance > 0 and _near(a[1], b[1], tolerance)
        return Outcome(near, f"{a[1]} and {b[1]}"[:60] + (" are near enough" if near else " are different numbers"))
    if "inf" in operations(a) | operations(b):
        return Outcome(False, "infinity")  # it equals itself only, and is written in one way
    pairs = []
    for left, right in samples(a, b):
        pairs.append((left, right))
        if not same(left, right):
            rounded = tolerance > 0 and None not in (left, right) and not symbols(a) | symbols(b)
            return Outcome(rounded and _near(left, right, tolerance), _how(pairs))
    return Outcome(True, _how(pairs))


def _near(a: Value, b: Value, tolerance: float) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return abs(a - b) <= Fraction(tolerance) * abs(a)
    return numeric.near(a, b, tolerance)


def _how(pairs: Sequence[tuple[Value, Value]]) -> str:
    exactly = all(isinstance(value, Fraction) for pair in pairs for value in pair)
    points = f" at {len(pairs)} random points" if len(pairs) > 1 else ""
    return f"exact values{points}" if exactly else f"values to {numeric.AGREE} digits{points}"


def proportional(a: Node, b: Node, positive: bool) -> Outcome:
    """Whether a = c b with one constant c other than 0 (above 0 where `positive`). Raises Undecided."""
    found = list(samples(a, b))
    pairs = [(left, right) for left, right in found if left is not None and right is not None]
    if len(pairs) < len(found):
        return Outcome(False, "one has no value where the other has")
    left, right = pairs[0]
    if same(left, Fraction(0)) or same(right, Fraction(0)):
        return Outcome(False, "0 = 0 says nothing")
    if positive and not _positive(left / right):
        return Outcome(False, "the inequality the other way round")
    return Outcome(all(same(x * right, y * left) for x, y in pairs), f"as multiples of each other, {_how(pairs)}")


def same_equation(a: Node, b: Node) -> Outcome:
    """Whether a = 0 and b = 0 have the same solutions: multiples of each other, or with the same value for every letter
    that both are linear in, as m v' + b v = f and v' = (f - b v) / m are. Raises Undecided."""
    outcome = proportional(a, b, positive=False)
    names = symbols(a)
    if outcome or names != symbols(b):
        return outcome
    rng = random.Random(0)
    solved = 0
    for name in sorted(names):
        for _ in range(3):
            point = {other: Fraction(rng.randint(1, 10**6), 10**5) for other in names}
            roots = _root(a, name, point), _root(b, name, point)
            if None in roots:
                break
            if not same(*roots):
                return outcome
            solved += 1
    return Outcome(solved > 0, "solved for each letter in turn") if solved else outcome


def _root(node: Node, name: str, point: Mapping[str, Fraction]) -> Value | None:
    """The value of a letter at which a formula that is linear in it is 0, or None where it is not linear."""
    places = (Fraction(1, 3), Fraction(7, 5), Fraction(-11, 7))
    try:
        pairs = [_values(node, node, {**point, name: place})[0] for place in places]
    except (Undefined, Undecided):
        return None
    if None in pairs:
        return None
    (x, y, z), (at_x, at_y, at_z) = places, (pair for pair in pairs if pair is not None)
    slope = (at_y - at_x) / _number(y - x, at_x)
    if same(slope, Fraction(0)) or not same(at_z - at_x, slope * _number(z - x, at_x)):
        return None
    return _number(x, at_x) - at_x / slope


def _number(fraction: Fraction, like: Value) -> Value:
    return fraction if isinstance(like, Fraction) else numeric.as_mpf(fraction)


def constant(node: Node) -> Fraction | None:
    """The rational value of a formula without variables, or None; large ones are left as they are written, for what is
    read is kept. Raises Undecided."""
    if symbols(node):
        return None
    try:
        number = exact(node, {})
    except (NotExact, Undefined):
        return None
    return number if number.numerator.bit_length() + number.denominator.bit_length() <= MAX_KEPT_BITS else None


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


def less(a: Node, b: Node) -> bool:
    """Whether both are real numbers, and a is the smaller one."""
    try:
        left, right = _values(a, b, {}) if not symbols(a) | symbols(b) else (None, None)
    except (Undefined, Undecided):
        return False
    if left is None or right is None:
        return False
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left < right
    return numeric.less(left, right)


def samples(a: Node, b: Node) -> Iterator[Pair]:
    """Values of both formulas at the same points, None where only one of them has no value.

    Raises Undecided where too few points give both a value.
    """
    kinds = operations(a) | operations(b)
    if "inf" in kinds:
        raise Undecided("infinity in a formula")
    names = sorted(symbols(a) | symbols(b))
    if not names:
        try:
            yield _values(a, b, {})
        except Undefined as e:
            raise Undecided(str(e)) from e
        return
    whole = _whole(a, b)
    exactly = kinds <= RATIONAL
    rng = random.Random(zlib.crc32(f"{spelling(a)} {spelling(b)}".encode("utf-8", "surrogatepass")))
    found = 0
    smooth = _is_smooth(a) and _is_smooth(b)
    for point in _points(rng, names, whole, [] if smooth else [*literals(a), *literals(b)], smooth):
        try:
            left, right = _values(a, b, point, exactly)
        except (Undefined, Undecided):
            continue
        if left is None or right is None:
            if whole:
                continue  # a pole at an integer, which one of the spellings has cancelled
        else:
            found += 1
        yield left, right
    if found < POINTS // 2:
        raise Undecided("no value, or values over the bounds, at too many points")


def _points(
    rng: random.Random, names: Sequence[str], whole: set[str], constants: Sequence[Fraction], smooth: bool
) -> Iterator[dict[str, Fraction]]:
    """Positive ones, every pattern of signs that tells two letters apart, and some far out and beyond the constants.

    Letters that are whole get integers, small at first. Small Latin letters get any sign, all others (indexed, Greek,
    capital) are taken for positive quantities. Smooth formulas, which agree everywhere once they agree anywhere, need
    few.
    """
    signed = [name for name in names if name in _ANY_SIGN and name not in whole]
    bits = [[-1 if at >> bit & 1 else 1 for at in range(len(signed))] for bit in range((len(signed) - 1).bit_length())]
    negative = [-1] * len(signed)
    anyhow = [[rng.choice((-1, 1)) for _ in signed] for _ in range(4)]
    beyond = sorted({abs(c) for c in constants if 2 < abs(c) <= 10**6}, reverse=True)[:3]
    plan: list[tuple[list[int], tuple[Fraction, Fraction]]] = [([], NEAR)] * POINTS
    if signed:
        plan += [(signs, NEAR) for signs in ([negative] if smooth else [negative, *bits, *anyhow[:2]])]
    if whole or not smooth:
        plan += zip(anyhow[2:], FAR, strict=True)
        plan += [(signs, (c, 2 * c)) for c in beyond for signs in ([], negative)]
    if whole:  # floors of n differ at some residues only
        plan += [([], NEAR)] * WHOLE_POINTS
    for attempt, (signs, (low, high)) in enumerate(plan):
        minus = {name for name, sign in zip(signed, signs, strict=False) if sign < 0}  # no signs: all positive
        point = {}
        for name in names:
            size = low + (high - low) * Fraction(rng.randint(1, 10**6), 10**6)
            point[name] = -size if name in minus else size
            if name in whole:
                point[name] = Fraction(rng.randint(1, 4 + 2 * attempt))
        yield point


def _is_smooth(node: Node) -> bool:
    """Whether it is made of sums, products, whole powers, exponentials and sines: one formula from end to end, without
    the branches of a modulus, a floor, a root or a logarithm."""
    if node[0] == "pow":
        base, exponent = node[1:]
        whole = exponent[0] == "num" and exponent[1].denominator == 1
        return (whole and _is_smooth(base)) or (base[0] in ("const", "num") and _is_smooth(exponent))
    if node[0] in ("num", "sym", "const"):
        return True
    return node[0] in _SMOOTH and all(_is_smooth(part) for part in node[1:])


def _whole(a: Node, b: Node) -> set[str]:
    """Letters that stand for integers: inside factorials, floors and the like of both formulas, or of one of them where
    the letter is one that is used for integers."""
    inside_a, inside_b = _inside(a), _inside(b)
    return (inside_a & inside_b) | {name for name in inside_a | inside_b if name[0] in _INTEGERS}


def _inside(node: Node, within: bool = False) -> set[str]:
    if node[0] == "sym":
        return {node[1]} if within else set()
    within = within or node[0] in WHOLE or (node[0] == "pow" and node[1] in _MINUS_ONES)  # (-1)^n
    found = {name for part in node[1:] if isinstance(part, tuple) for name in _inside(part, within)}
    return found - {node[1]} if node[0] in ("sum", "prod") else found


def _values(a: Node, b: Node, point: Mapping[str, Fraction], exactly: bool = True) -> Pair:
    """exactly: whether to try with fractions first. Raises Undefined where neither has a value, Undecided."""
    evaluate = _value if point else _constant
    try:
        if not exactly:
            raise NotExact
        left, right = evaluate(exact, a, point), evaluate(exact, b, point)
    except NotExact:
        left, right = evaluate(numeric.value, a, point), evaluate(numeric.value, b, point)
    if left is None and right is None:
        raise Undefined("no value")
    return left, right


def _constant(evaluate: Callable[..., Value], node: Node, _: Mapping[str, Fraction]) -> Value | None:
    return _cached_constant(evaluate, node)


@functools.lru_cache(maxsize=1024)
def _cached_constant(evaluate: Callable[..., Value], node: Node) -> Value | None:
    """A list is compared item by item, so each item comes often."""
    return _value(evaluate, node, {})


def _value(evaluate: Callable[..., Value], node: Node, point: Mapping[str, Fraction]) -> Value | None:
    try:
        return evaluate(node, point)
    except Undefined:
        return None


def same(a: Value | None, b: Value | None) -> bool:
    """Exactly equal, or to the digits that numeric.py answers for."""
    if a is None or b is None:
        return False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return numeric.same(a, b)


def _positive(ratio: Value) -> bool:
    return ratio > 0 if isinstance(ratio, Fraction) else bool(ratio.real > 0)
