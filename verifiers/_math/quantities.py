"""Whether two numbers or formulas are the same, each with the unit behind it."""

from __future__ import annotations

import re
from fractions import Fraction

from grpo_math.verifiers._math.conventions import Conventions
from grpo_math.verifiers._math.evaluate import equal
from grpo_math.verifiers._math.tree import Node, rename, spelling, symbols
from grpo_math.verifiers._math.units import as_letters, in_base_units
from grpo_math.verifiers._math.values import Outcome, Scalar

_PERCENT: Node = ("num", Fraction(1, 100))
_DEGREE: Node = ("degree", ("num", Fraction(1)))
_CONSTANT = re.compile("[cCkK](_[01])?")
_INTEGER = re.compile("[cCkK](_[01])?|[klmn]")
_PI = "(const pi)"


def same_quantity(gold: Scalar, candidate: Scalar, rules: Conventions) -> Outcome:
    """Raises Undecided."""
    numbers = equal(gold.node, candidate.node, rules.tolerance)
    if not numbers and (renamed := _with_our_constant(gold.node, candidate.node)):
        numbers = equal(gold.node, renamed, rules.tolerance)
    units = {gold.unit, candidate.unit}
    if len(units) == 1 or rules.units == "ignored":
        return numbers
    if "%" in units:
        return _percent(numbers, gold, candidate, rules)
    if units == {"°", "rad"} or (units == {"°", ""} and (not numbers or _in_pi(gold, candidate))):
        return _scaled("in radians", "°", _DEGREE, gold, candidate, rules)  # 90° is pi/2
    if "" not in units:
        return _converted(gold, candidate, rules)
    unit = gold.unit or candidate.unit
    if not numbers and (letters := as_letters(unit)):  # 6 m, where m is a number
        return _scaled(f"{unit} as a factor", unit, letters, gold, candidate, rules)
    if rules.units == "required":
        return Outcome(False, f"the unit {unit} on one side only")
    return numbers


def _with_our_constant(gold: Node, candidate: Node) -> Node | None:
    """x^2 + C for x^2 + c: the only letter that differs may be an arbitrary constant, or the integer of 2 pi k."""
    ours, theirs = symbols(gold) - symbols(candidate), symbols(candidate) - symbols(gold)
    arbitrary = _INTEGER if _PI in spelling(gold) else _CONSTANT
    if gold[0] == "sym" or len(ours) != 1 or len(theirs) != 1 or not all(map(arbitrary.fullmatch, ours | theirs)):
        return None
    return rename(candidate, theirs.pop(), ours.pop())


def _percent(numbers: Outcome, gold: Scalar, candidate: Scalar, rules: Conventions) -> Outcome:
    """15% is 15, and 0.15."""
    if {gold.unit, candidate.unit} != {"%", ""}:
        return Outcome(False, f"different units: {gold.unit} and {candidate.unit}")
    if rules.percent == "number" or (numbers and rules.percent == "either"):
        return numbers
    return _scaled("percent as a fraction", "%", _PERCENT, gold, candidate, rules)


def _in_pi(gold: Scalar, candidate: Scalar) -> bool:
    """Whether the number without a unit is written with pi: an angle in radians."""
    return _PI in spelling((candidate if gold.unit else gold).node)


def _scaled(how: str, unit: str, factor: Node, gold: Scalar, candidate: Scalar, rules: Conventions) -> Outcome:
    """Compare with the factor in the place of the unit."""
    a, b = (("mul", value.node, factor) if value.unit == unit else value.node for value in (gold, candidate))
    outcome = equal(a, b, rules.tolerance)
    return Outcome(outcome.same, f"{how}: {outcome.how}")


def _converted(gold: Scalar, candidate: Scalar, rules: Conventions) -> Outcome:
    """100 cm is 1 m."""
    a, b = in_base_units(gold.unit), in_base_units(candidate.unit)
    if a is None or b is None or a[0] != b[0]:
        return Outcome(False, f"different units: {gold.unit} and {candidate.unit}")
    x, y = ("mul", gold.node, ("num", a[1])), ("mul", candidate.node, ("num", b[1]))
    outcome = equal(x, y, rules.tolerance)
    return Outcome(outcome.same, f"{candidate.unit} converted to {gold.unit}: {outcome.how}")
