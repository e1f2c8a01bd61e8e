"""The exact value of a formula: Fractions only, every size bounded before the number is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from grpo_math.verifiers._math.literals import Undecided
from grpo_math.verifiers._math.tree import Node, size

MAX_BITS = 32_000  # 2500! and 2**10000 fit
MAX_FACTORIAL = 2_500
MAX_WORK = 10_000  # nodes evaluated for one sum, at one point


class Budget:
    """Work done since the last reset, in units of about a microsecond: what no bound on sizes alone can hold."""

    def __init__(self, limit: int):
        self.limit, self.spent = limit, 0

    def reset(self) -> None:
        self.spent = 0

    def spend(self, units: int) -> None:
        """Raises Undecided."""
        self.spent += units
        if self.spent > self.limit:
            raise Undecided("too much work")


BUDGET = Budget(400_000)


class NotExact(Exception):
    """The value is not rational, or not by the means of this file."""


class Undefined(Exception):
    """No value at this point, such as 1/0."""


def exact(node: Node, point: Mapping[str, Fraction]) -> Fraction:
    """The value as a Fraction. Raises NotExact, Undefined, Undecided."""
    BUDGET.spend(2)
    kind = node[0]
    if kind == "num":
        literal: Fraction = node[1]
        return literal
    if kind == "sym":
        return point[node[1]]
    if kind in ("sum", "prod"):
        low, high = (exact(bound, point) for bound in node[2:4])
        terms = (exact(node[4], {**point, node[1]: index}) for index in indices(low, high, node[4]))
        return _sum(Fraction(0), *terms) if kind == "sum" else _product(Fraction(1), *terms)
    operation = _EXACT.get(kind)
    if operation is None:
        raise NotExact(kind)
    return _bounded(operation(*(exact(part, point) for part in node[1:])))


def indices(low: Fraction, high: Fraction, term: Node) -> list[Fraction]:
    """The values of the index of a sum or product. Raises Undefined, Undecided."""
    if low.denominator != 1 or high.denominator != 1:
        raise Undefined("a sum between bounds that are not whole")
    count = max(0, int(high - low) + 1)
    if count * size(term) > MAX_WORK:
        raise Undecided(f"a sum of {count} terms")
    return [low + step for step in range(count)]


def _bounded(value: Fraction) -> Fraction:
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    if bits > MAX_BITS:
        raise Undecided("a number of too many digits")
    if bits > 1000:
        BUDGET.spend(bits >> 7)
    return value


def _sum(*terms: Fraction) -> Fraction:
    return functools.reduce(lambda a, b: _bounded(a + b), terms)


def _product(*factors: Fraction) -> Fraction:
    return functools.reduce(lambda a, b: _bounded(a * b), factors)


def _quotient(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise Undefined("a division by zero")
    return top / bottom


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return _root(base, Fraction(2)) if exponent == Fraction(1, 2) else _not_exact()
    if not base:
        if exponent <= 0:
            raise Undefined("zero to a power that is not positive")
        return base
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and abs(exponent) * size > MAX_BITS:
        raise Undecided("a power of too many digits")
    return base ** int(exponent) if abs(base) != 1 else Fraction(base if exponent % 2 else 1)


def _not_exact() -> Fraction:
    raise NotExact("a root")


def _root(value: Fraction, degree: Fraction) -> Fraction:
    """Only square roots of squares: any other root is left to the digits."""
    if degree != 2 or value < 0:
        return _not_exact()
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    return Fraction(top, bottom) if Fraction(top * top, bottom * bottom) == value else _not_exact()


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0:
        return _not_exact()
    if value > MAX_FACTORIAL:
        raise Undecided(f"the factorial of more than {MAX_FACTORIAL}")
    BUDGET.spend(int(value))
    return Fraction(math.factorial(int(value)))


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        return _not_exact()
    if n > MAX_FACTORIAL:
        raise Undecided(f"a binomial of more than {MAX_FACTORIAL}")
    BUDGET.spend(int(n))
    return Fraction(math.comb(int(n), int(k)))


_EXACT: dict[str, Callable[..., Fraction]] = {
    "add": _sum,
    "mul": _product,
    "neg": lambda a: -a,
    "inv": lambda a: _quotient(Fraction(1), a),
    "div": _quotient,
    "pow": _power,
    "root": _root,
    "fact": _factorial,
    "binom": _binomial,
    "abs": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
}
