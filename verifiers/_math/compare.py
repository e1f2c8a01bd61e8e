"""Whether two typed values are the same answer, and what decided it.

Strict where in doubt: a false accept is worse than a false reject. Where graders rightly differ,
conventions.py decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from grpo_math.verifiers._math.conventions import DEFAULT, Conventions
from grpo_math.verifiers._math.evaluate import equal, proportional, same_equation
from grpo_math.verifiers._math.exact import Undecided
from grpo_math.verifiers._math.quantities import same_quantity
from grpo_math.verifiers._math.tree import Node, rename, symbols
from grpo_math.verifiers._math.values import (
    KINDS,
    Based,
    Matrix,
    Opaque,
    Ordered,
    Outcome,
    Ratio,
    Relation,
    Scalar,
    Unordered,
    Value,
    Words,
    point_of,
)

MAX_ITEMS = 64
_ONE_ARGUMENT = re.compile(r"([A-Za-z]) ?\( ?([A-Za-z]) ?\)")


def same(gold: Value, candidate: Value, rules: Conventions = DEFAULT) -> Outcome:
    """Raises Undecided where a formula is beyond the bounds of evaluate.py, or in a notation that is not supported."""
    match gold, candidate:
        case (Opaque(), _) | (_, Opaque()):
            return _opaque(gold, candidate)
        case Scalar(), Scalar():
            return same_quantity(gold, candidate, rules)
        case Words(), Words():
            if not _words(gold.text, candidate.text, rules):
                return Outcome(False, "compared as words")
            if gold.rest is None or candidate.rest is None:
                return Outcome(True, "compared as words")
            return same(gold.rest, candidate.rest, rules)  # (C) 42 is not (C) 43
        case Ordered(), Ordered():
            return _ordered(gold, candidate, rules)
        case Unordered(), Unordered():
            if rules.order == "kept":
                return _in_order(gold.items, candidate.items, rules)
            if gold.distinct or candidate.distinct:
                return _as_sets(gold.items, candidate.items, rules)
            return _in_any_order(gold.items, candidate.items, rules)
        case Matrix(), Matrix():
            if len(gold.rows) != len(candidate.rows):
                return Outcome(False, f"{len(gold.rows)} rows against {len(candidate.rows)}")
            return _all(_in_order(a, b, rules) for a, b in zip(gold.rows, candidate.rows, strict=True))
        case Ratio(), Ratio():
            return _ratios(gold.items, candidate.items, rules)
        case Relation(), Relation():
            if gold.value and candidate.value and _name_the_same(gold.name, candidate.name):
                return same(gold.value, candidate.value, rules)
            if gold.value and candidate.value and (renamed := _renamed(candidate, gold.name)):
                return same(gold.value, renamed, rules)
            if bool(_solved(gold)) != bool(_solved(candidate)):
                return Outcome(False, "an equation that is not solved")
            if gold.operator != candidate.operator:
                return Outcome(False, "relations of different kinds")
            if gold.operator == "=":
                return same_equation(gold.node, candidate.node)
            return proportional(gold.node, candidate.node, positive=gold.operator in "<≤")
        case Based(), Based():
            return Outcome(gold == candidate, "digits and base compared")
        case (Based(), Scalar()) | (Scalar(), Based()):
            return _maybe_based(gold, candidate, rules)
    return _of_two_kinds(gold, candidate, rules)


def _of_two_kinds(gold: Value, candidate: Value, rules: Conventions) -> Outcome:
    """The few pairs of kinds that can be the same: what `x = value` says, points written as equations, sets of one."""
    match gold, candidate:
        case Ordered(), Unordered() if point := point_of(candidate.items):
            return _ordered(gold, point, rules)
        case Unordered(), Ordered() if point := point_of(gold.items):
            return _ordered(point, candidate, rules)
        case (Ordered() | Unordered(), Ordered() | Unordered()) if rules.brackets == "free":
            return _in_any_order(gold.items, candidate.items, rules)
        case Relation(), _:
            return _named(gold, candidate, same(gold.value, candidate, rules) if gold.value else None)
        case _, Relation():
            return _named(candidate, gold, same(gold, candidate.value, rules) if candidate.value else None)
        case _, Words(text=letter, rest=rest) if rest is not None:
            return _choice(letter, gold) or same(gold, rest, rules)
        case Words(text=letter, rest=rest), _ if rest is not None:
            return _choice(letter, candidate) or same(rest, candidate, rules)
        case Words(), Scalar():
            return Outcome(_same_letters(gold.text, candidate.node, rules), "a word against letters")
        case Scalar(), Words():
            return Outcome(_same_letters(candidate.text, gold.node, rules), "letters against a word")
        case (Matrix(), Ordered()) | (Ordered(), Matrix()):
            return _vector(gold, candidate, rules)
        case Unordered(items=(item,)), _:
            return same(item, candidate, rules)
        case _, Unordered(items=(item,)):
            return same(gold, item, rules)
    return Outcome(False, f"{KINDS[type(gold)]} against {KINDS[type(candidate)]}")


def _opaque(gold: Value, candidate: Value) -> Outcome:
    if gold == candidate:
        return Outcome(True, "spelled the same")
    raise Undecided(next(value.why for value in (gold, candidate) if isinstance(value, Opaque)))


def _named(relation: Relation, other: Value, outcome: Outcome | None) -> Outcome:
    if outcome is None:
        return Outcome(False, f"a relation against {KINDS[type(other)]}")
    return Outcome(outcome.same, f"what {relation.name or 'the name'} equals: {outcome.how}")


def _words(gold: str, candidate: str, rules: Conventions) -> bool:
    """Case says nothing in a word, but everything in a letter."""
    if len(gold) == 1 or rules.case == "kept":
        return gold == candidate
    return _plain(gold) == _plain(candidate)


def _plain(words: str) -> str:
    """no solutions is no solution"""
    words = words.casefold().replace(".", "")
    return words[:-1] if len(words) > 4 and words.endswith("s") else words


def _ordered(gold: Ordered, candidate: Ordered, rules: Conventions) -> Outcome:
    if gold.brackets != candidate.brackets and rules.brackets == "kept":
        return Outcome(False, f"brackets {gold.brackets} against {candidate.brackets}")
    if gold.inequality != candidate.inequality and rules.intervals == "distinct":
        return Outcome(False, "an interval against an inequality")
    return _in_order(gold.items, candidate.items, rules)


def _renamed(relation: Relation, name: str) -> Scalar | None:
    """What f(x) is where f(t) is given."""
    ours, theirs = (_ONE_ARGUMENT.fullmatch(text) for text in (name, relation.name))
    value = relation.value
    if not ours or not theirs or ours[1] != theirs[1] or not isinstance(value, Scalar) or ours[2] == theirs[2]:
        return None
    return None if ours[2] in symbols(value.node) else Scalar(rename(value.node, theirs[2], ours[2]), value.unit)


def _solved(relation: Relation) -> Value | None:
    """The 4 of x = 4; None for y = 2x."""
    value = relation.value
    return value if isinstance(value, Scalar) and not symbols(value.node) else None


def _name_the_same(a: str, b: str) -> bool:
    """m and m_{max}; f(x) and y, of which one is a function."""
    if {a == "y", b == "y"} == {True, False} and "(" in a + b:
        return True
    plain, other = (name.partition("_")[0].replace(" ", "") for name in (a, b))
    return (plain == other and ("_" in a) != ("_" in b)) or a.replace(" ", "") == b.replace(" ", "")


def _same_letters(word: str, node: Node, rules: Conventions) -> bool:
    letters = _letters(node)
    return letters == word or (letters.casefold() == word.casefold() and len(word) != 2 and rules.case == "ignored")


def _letters(node: Node) -> str:
    """odd is a word although it was read as o times d times d."""
    factors = node[1:] if node[0] == "mul" else (node,)
    return "".join(f[1] if f[0] in ("sym", "const") and len(f[1]) == 1 else "?" for f in factors)


def _choice(letter: str, value: Value) -> Outcome | None:
    """C for (C) 42."""
    chosen = isinstance(value, Scalar) and value.node == ("sym", letter)
    return Outcome(True, "the letter of a choice") if chosen else None


def _vector(gold: Value, candidate: Value, rules: Conventions) -> Outcome:
    """A column of numbers is the point with these coordinates."""
    matrix, point = (gold, candidate) if isinstance(gold, Matrix) else (candidate, gold)
    assert isinstance(matrix, Matrix)
    assert isinstance(point, Ordered)
    if point.brackets not in ("()", "[]") or any(len(row) > 1 for row in matrix.rows):
        return Outcome(False, "a matrix against a tuple or interval")
    return _in_order([row[0] for row in matrix.rows], point.items, rules)


def _maybe_based(gold: Value, candidate: Value, rules: Conventions) -> Outcome:
    """52 for 52_8, where the task says that the base may be left out."""
    based, plain = (gold, candidate) if isinstance(gold, Based) else (candidate, gold)
    assert isinstance(based, Based)
    assert isinstance(plain, Scalar)
    if rules.base == "required" or not based.digits.isdigit():
        return Outcome(False, f"base {based.base} on one side only")
    return Outcome(plain.node == ("num", Fraction(int(based.digits))), f"digits compared, base {based.base} left out")


def _all(outcomes: Iterable[Outcome]) -> Outcome:
    """The first that is false, else the last."""
    last = Outcome(True, "nothing to compare")
    for outcome in outcomes:
        last = outcome
        if not outcome:
            break
    return last


def _in_order(gold: Sequence[Value], candidate: Sequence[Value], rules: Conventions) -> Outcome:
    if len(gold) != len(candidate):
        return Outcome(False, f"{len(gold)} items against {len(candidate)}")
    return _all(same(a, b, rules) for a, b in zip(gold, candidate, strict=True))


def _in_any_order(gold: Sequence[Value], candidate: Sequence[Value], rules: Conventions) -> Outcome:
    """A pairing of equals. Greedy is right because equality is transitive, but for units that one side leaves out."""
    if len(gold) != len(candidate):
        return Outcome(False, f"{len(gold)} items against {len(candidate)}")
    if len(gold) > MAX_ITEMS:
        if gold == candidate:
            return Outcome(True, "the same items in the same order")
        raise Undecided(f"a list of more than {MAX_ITEMS} items")
    left = list(candidate)
    for number, item in enumerate(gold, 1):
        at = _first(left, lambda other, item=item: same(item, other, rules).same)  # type: ignore[misc]
        if at is None:
            return Outcome(False, f"item {number} is not in the other list")
        del left[at]
    return Outcome(True, "each item has its equal")


def _as_sets(gold: Sequence[Value], candidate: Sequence[Value], rules: Conventions) -> Outcome:
    """Like lists, once repetitions are gone."""
    if len(gold) > MAX_ITEMS or len(candidate) > MAX_ITEMS:
        raise Undecided(f"a set of more than {MAX_ITEMS} items")
    return _in_any_order(_distinct(gold, rules), _distinct(candidate, rules), rules)


def _distinct(values: Sequence[Value], rules: Conventions) -> list[Value]:
    kept: list[Value] = []
    for value in values:
        if value not in kept and _first(kept, lambda other, value=value: same(value, other, rules).same) is None:  # type: ignore[misc]
            kept.append(value)
    return kept


def _first(values: Sequence[Value], condition: Callable[[Value], bool]) -> int | None:
    """Where the condition first holds. Raises Undecided only where it may hold for one that could not be compared."""
    undecided: Undecided | None = None
    for at, value in enumerate(values):
        try:
            if condition(value):
                return at
        except Undecided as e:
            undecided = e
    if undecided is not None:
        raise undecided
    return None


def _ratios(gold: tuple[Scalar, ...], candidate: tuple[Scalar, ...], rules: Conventions) -> Outcome:
    """6:4 is 3:2, by cross products; with 0 in a ratio they would always agree, and `read` refuses it."""
    if len(gold) != len(candidate):
        return Outcome(False, f"{len(gold)} parts against {len(candidate)}")
    first_gold, first = gold[0].node, candidate[0].node
    pairs = zip(gold, candidate, strict=True)
    return _all(equal(("mul", a.node, first), ("mul", b.node, first_gold), rules.tolerance) for a, b in pairs)
