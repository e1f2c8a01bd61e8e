"""Whether two typed values are the same answer. Strict where in doubt: a false accept is worse than a false reject.

The conventions, where graders differ: a unit that one side leaves out is forgiven, two different units are not; 15%
is 15 and is 0.15; lists and sets have no order, tuples have; open and closed ends, the base of a number and the case of
a letter count; decimals are exact (0.33 is not 1/3).
"""

from __future__ import annotations

from fractions import Fraction

from grpo_math.verifiers._math.evaluate import equal, proportional
from grpo_math.verifiers._math.exact import Undecided
from grpo_math.verifiers._math.values import Matrix, Ordered, Ratio, Relation, Scalar, Unordered, Value, Words

MAX_ITEMS = 64


def same(gold: Value, candidate: Value) -> bool:
    """Raises Undecided where a formula is beyond the bounds of evaluate.py."""
    match gold, candidate:
        case Scalar(), Scalar():
            return _scalars(gold, candidate)
        case Words(), Words():
            return _words(gold.text, candidate.text)
        case Ordered(), Ordered():
            return gold.brackets == candidate.brackets and _in_order(gold.items, candidate.items)
        case Unordered(), Unordered():
            return _in_any_order(gold.items, candidate.items)
        case Matrix(), Matrix():
            return len(gold.rows) == len(candidate.rows) and all(map(_in_order, gold.rows, candidate.rows))
        case Ratio(), Ratio():
            return _ratios(gold.items, candidate.items)
        case Relation(), Relation():
            both = gold.operator == candidate.operator
            return both and proportional(gold.node, candidate.node, positive=gold.operator in "<≤")
        # the right side of `x = value`, a letter in or out of \\text{}, a set of one
        case Relation(), _:
            return gold.value is not None and same(gold.value, candidate)
        case _, Relation():
            return candidate.value is not None and same(gold, candidate.value)
        case Words(), Scalar():
            return candidate.node == ("sym", gold.text)
        case Scalar(), Words():
            return gold.node == ("sym", candidate.text)
        case Unordered(items=(item,)), _:
            return same(item, candidate)
        case _, Unordered(items=(item,)):
            return same(gold, item)
    return gold == candidate


def _scalars(gold: Scalar, candidate: Scalar) -> bool:
    units = {gold.unit, candidate.unit} - {""}
    if len(units) > 1:
        return False
    if equal(gold.node, candidate.node):
        return True
    if "%" not in units or gold.unit == candidate.unit:
        return False
    percent, plain = (gold, candidate) if gold.unit == "%" else (candidate, gold)
    return equal(("mul", percent.node, ("num", Fraction(1, 100))), plain.node)


def _words(gold: str, candidate: str) -> bool:
    """Case says nothing in a word, but everything in a letter."""
    if len(gold) == 1:
        return gold == candidate
    return gold.casefold() == candidate.casefold()


def _in_order(gold: tuple[Value, ...], candidate: tuple[Value, ...]) -> bool:
    return len(gold) == len(candidate) and all(map(same, gold, candidate))


def _in_any_order(gold: tuple[Value, ...], candidate: tuple[Value, ...]) -> bool:
    """A pairing of equals. Greedy is right because equality is transitive, but for units that one side leaves out."""
    if len(gold) != len(candidate) or len(gold) > MAX_ITEMS:
        return False
    left = list(candidate)
    for item in gold:
        at = _index(item, left)
        if at is None:
            return False
        del left[at]
    return True


def _index(item: Value, candidates: list[Value]) -> int | None:
    """Where `item` is. Raises Undecided only where it may be one that could not be compared."""
    undecided: Undecided | None = None
    for at, candidate in enumerate(candidates):
        try:
            if same(item, candidate):
                return at
        except Undecided as e:
            undecided = e
    if undecided is not None:
        raise undecided
    return None


def _ratios(gold: tuple[Scalar, ...], candidate: tuple[Scalar, ...]) -> bool:
    """6:4 is 3:2; that all cross products agree also holds for 0:0, which `read` refuses."""
    pairs = [(a.node, b.node) for a, b in zip(gold, candidate, strict=False)]
    first_gold, first = pairs[0]
    return len(gold) == len(candidate) and all(equal(("mul", a, first), ("mul", b, first_gold)) for a, b in pairs)
