"""The value of a formula to 500 digits, for what exact.py cannot say: roots, pi, e, i, sines, logarithms.

Two values are the same where they agree to 350 digits. No intermediate value may be above 1e110 or below 1e-110, so
that nothing a short formula can write hides below the comparison, and no operation can run long; a formula that leaves
this range is Undecided. Principal branches, except that an odd root of a negative number is real.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from grpo_math.verifiers._math.exact import BUDGET, NotExact, Undecided, Undefined, exact, indices
from grpo_math.verifiers._math.tree import Node, symbols

DIGITS, AGREE, NOISE, RANGE = 500, 350, 400, 110
MAX_DEGREE = 1000  # of a root
NOISY = {"add", "log", "floor", "ceil", "sum"}
COST = {"num": 5, "sym": 5, "root": 60, "pow": 150, "log": 300, "fact": 100, "binom": 300} | {
    f"call:{name}": 250 for name in ("ln", "log", "exp", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh")
}  # microseconds, about
_BITS = 3.3219280948873626  # per decimal digit

Value = Any  # mpmath's mpf or mpc


@functools.cache
def context() -> Any:
    """mpmath with our precision and nobody else's; imported here because most answers never need it."""
    import mpmath  # type: ignore[import-untyped]

    mp = mpmath.mp.clone()
    mp.dps = DIGITS
    return mp


def value(node: Node, point: Mapping[str, Fraction]) -> Value:
    """The value at `point`, real or complex. Raises Undefined, Undecided."""
    mp = context()
    kind = node[0]
    BUDGET.spend(COST.get(kind, 20))
    if kind == "num" or kind == "sym":
        return _bounded(as_mpf(node[1] if kind == "num" else point[node[1]]))
    if kind == "const":
        return {"pi": +mp.pi, "e": +mp.e, "i": mp.j}[node[1]]
    if kind in ("sum", "prod"):
        low, high = _bounds(node, point)
        terms = [value(node[4], {**point, node[1]: index}) for index in indices(low, high, node[4])]
        return _bounded(
            mp.fsum(terms) if kind == "sum" else functools.reduce(_times, terms, mp.one), noisy=kind == "sum"
        )
    operation = _OPERATIONS.get(kind)
    if operation is None:
        raise Undefined(f"no value for {kind}")
    if kind == "pow" and (odd := _odd_root(node[2])):
        return _bounded(_real_power(mp, value(node[1], point), odd))
    parts = [value(part, point) for part in node[1:]]
    try:
        return _bounded(operation(mp, *parts), noisy=kind in NOISY or kind.startswith("call:"))
    except (ZeroDivisionError, ValueError) as e:  # mpmath's words for a pole
        raise Undefined(f"{kind}: {e}") from e


def _bounds(node: Node, point: Mapping[str, Fraction]) -> tuple[Fraction, Fraction]:
    try:
        return exact(node[2], point), exact(node[3], point)
    except NotExact as e:
        raise Undefined(f"the bounds of a {node[0]}: {e}") from e


def same(a: Value | Fraction, b: Value | Fraction) -> bool:
    """Whether two values agree to AGREE digits, or are both nothing but rounding noise."""
    mp = context()
    a, b = (as_mpf(x) if isinstance(x, Fraction) else x for x in (a, b))
    if _far_apart(complex(a), complex(b)):
        return False
    size = max(abs(a), abs(b))
    return bool(size < mp.mpf(10) ** -NOISE or abs(a - b) <= size * mp.mpf(10) ** -AGREE)


def _far_apart(a: complex, b: complex) -> bool:
    """Sixteen digits are enough to tell most values apart. Nothing is said of those too large or small for that."""
    size = max(abs(a), abs(b))
    return 1e-200 < size < 1e200 and abs(a - b) > 1e-9 * size


def near(a: Value | Fraction, b: Value | Fraction, tolerance: float) -> bool:
    """Whether b differs from a by at most this share of a."""
    a, b = (as_mpf(x) if isinstance(x, Fraction) else x for x in (a, b))
    return bool(abs(a - b) <= tolerance * abs(a))


def less(a: Value | Fraction, b: Value | Fraction) -> bool:
    """Whether both are real, and a is the smaller one."""
    mp = context()
    a, b = (as_mpf(x) if isinstance(x, Fraction) else x for x in (a, b))
    return not mp.im(a) and not mp.im(b) and bool(mp.re(a) < mp.re(b))


def as_mpf(number: Fraction) -> Value:
    return context().mpf(number.numerator) / number.denominator


def _bounded(number: Value, noisy: bool = False) -> Value:
    """noisy: whether the operation can leave rounding error where the true value is 0, as a difference does."""
    mp = context()
    if not mp.isfinite(number):
        raise Undefined("no finite value")
    magnitude = mp.mag(number)  # about log2 |number|; -inf for 0
    if number == 0 or (noisy and magnitude < -NOISE * _BITS):
        return mp.zero
    if abs(magnitude) > RANGE * _BITS:
        raise Undecided("a value over the bounds")
    return number


def _times(a: Value, b: Value) -> Value:
    return _bounded(a * b)


def _power(mp: Any, base: Value, exponent: Value) -> Value:
    if base == 0:
        if mp.re(exponent) <= 0:
            raise Undefined("zero to a power that is not positive")
        return mp.zero
    if abs(exponent) * (abs(mp.mag(base)) + 2) > 4 * RANGE * _BITS:
        raise Undecided("a power over the bounds")
    return mp.power(base, exponent)


def _odd_root(exponent: Node) -> Fraction | None:
    """p/q with an odd q above 1: the power of a negative number that is real, as in (-8)^{1/3} = -2."""
    try:
        number = exact(exponent, {}) if not symbols(exponent) else Fraction(0)
    except (NotExact, Undefined):
        return None
    return number if number.denominator % 2 and 1 < number.denominator <= MAX_DEGREE else None


def _real_power(mp: Any, base: Value, exponent: Fraction) -> Value:
    if mp.im(base) == 0 and mp.re(base) < 0:
        return (-1) ** exponent.numerator * _power(mp, -base, as_mpf(exponent))
    return _power(mp, base, as_mpf(exponent))


def _root(mp: Any, radicand: Value, degree: Value) -> Value:
    if degree == 2:
        return mp.sqrt(radicand)
    if mp.im(degree):
        raise Undefined("a root of a complex degree")
    degree = mp.re(degree)
    if not mp.isint(degree) or not 1 <= degree <= MAX_DEGREE:
        return _power(mp, radicand, 1 / degree)
    if degree % 2 and mp.im(radicand) == 0 and mp.re(radicand) < 0:
        return -mp.root(-radicand, int(degree))
    return mp.root(radicand, int(degree))


def _log(mp: Any, number: Value, base: Value | None = None) -> Value:
    if number == 0:
        raise Undefined("the logarithm of 0")
    return mp.log(number) if base is None else mp.log(number) / mp.log(base)


def _factorial(mp: Any, number: Value) -> Value:
    real = mp.re(number)
    if mp.im(number) or not mp.isint(real) or not 0 <= real <= RANGE:
        raise Undecided("a factorial of what is no small whole number")
    return mp.factorial(int(real))


def _binomial(mp: Any, n: Value, k: Value) -> Value:
    return _factorial(mp, n) / (_factorial(mp, k) * _factorial(mp, n - k))


def _floor(mp: Any, number: Value) -> Value:
    """Rounding noise must not take floor(log2 8) below 3."""
    if mp.im(number):
        raise Undefined("the floor of a complex number")
    return mp.floor(mp.re(number) + mp.mpf(10) ** -AGREE)


_ELEMENTARY = [
    "exp", "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "asin", "acos", "atan", "asinh", "acosh",
    "atanh", "coth", "sech", "csch", "acot", "asec", "acsc",
]  # fmt: skip


def _elementary(name: str, mp: Any, number: Value) -> Value:
    if abs(number) > 3 * RANGE:  # its exponential, of a real or imaginary number, would leave the range
        raise Undecided("an argument over the bounds")
    return getattr(mp, name)(number)


_OPERATIONS: dict[str, Callable[..., Value]] = {
    "add": lambda mp, *terms: functools.reduce(lambda a, b: a + b, terms),
    "mul": lambda mp, *factors: functools.reduce(_times, factors),
    "neg": lambda mp, a: -a,
    "inv": lambda mp, a: 1 / a,
    "div": lambda mp, a, b: a / b,
    "pow": _power,
    "root": _root,
    "fact": _factorial,
    "binom": _binomial,
    "abs": lambda mp, a: abs(a),
    "floor": _floor,
    "ceil": lambda mp, a: -_floor(mp, -a),
    "degree": lambda mp, a: a * mp.pi / 180,
    "log": _log,
    "call:ln": _log,
    "call:log": _log,
    **{f"call:{name}": functools.partial(_elementary, name) for name in _ELEMENTARY},
}
