"""Is an answer just the question's own formula, not worked out? `2+3*4` is 14, but no answer to "What is 2+3*4?".

Formulas are compared up to the order of terms and factors, and a number that the question asks to work out is found
inside a larger formula as well. Where a number was asked for, sums and products of the question's numbers are not
worked out either. Leaves out every other way of not answering.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from grpo_math.verifiers._math.clean import clean
from grpo_math.verifiers._math.cut import outside, split
from grpo_math.verifiers._math.grammar import parse
from grpo_math.verifiers._math.literals import Unreadable, plain_number
from grpo_math.verifiers._math.relations import SIGNS
from grpo_math.verifiers._math.tree import Node, literals, operations, spelling, symbols
from grpo_math.verifiers._math.units import split_unit
from grpo_math.verifiers._math.words import words

_MATH = re.compile(r"\$+([^$]{1,300})\$+|\\[(\[](.{1,300}?)\\[)\]]", re.DOTALL)
_RUN = re.compile(r"[\d(][\d\s+\-*/^().×÷]{1,200}[\d)]")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_ARITHMETIC = {"num", "add", "mul", "div", "inv", "neg", "abs", "floor"}
_SIMPLE = ("num", "sym", "const", "inf")
MAX_QUESTION = 4000

Forms = frozenset[str]


def is_echo(question: str, gold: str, candidate: str) -> bool:
    """Whether the candidate is a formula or relation of the question's that the gold answer writes in another way."""
    question = question[:MAX_QUESTION]
    if plain_number(gold) is not None and _is_arithmetic(candidate, question):
        return True
    asked = _asked(question)
    whole, inner = _forms(candidate)
    gold_whole, gold_inner = _forms(gold)
    return bool((asked & whole) - gold_whole - gold_inner) or bool((asked & inner) - gold_inner)


def _is_arithmetic(candidate: str, question: str) -> bool:
    """Whether the candidate adds and multiplies numbers of the question, where a number was asked for."""
    try:
        node = _tree(re.split(f"[{SIGNS}]", clean(candidate[:MAX_QUESTION]).strip("⦃⦄ "))[-1])
    except Unreadable:
        return False
    if node[0] in _SIMPLE or _is_literal(node) or _is_fraction(node) or not operations(node) <= _ARITHMETIC:
        return False
    given = {plain_number(number) for number in _NUMBER.findall(question)} | {Fraction(0), Fraction(1)}
    return all(abs(number) in given for number in literals(node))


@functools.lru_cache(maxsize=4096)
def _asked(question: str) -> Forms:
    """The formulas and relations of a question, and the sides of the relations."""
    texts = [a or b for a, b in _MATH.findall(question)] + _RUN.findall(question)
    return frozenset(form for text in texts for form in _forms(text)[0])


@functools.lru_cache(maxsize=4096)
def _forms(text: str) -> tuple[Forms, Forms]:
    """(the relation, or the formula and what `x =` is put before; every number in it that is not worked out)."""
    try:
        cleaned = clean(text[:MAX_QUESTION]).strip("⦃⦄ ")
        sides = [_tree(side) for side in split(cleaned, SIGNS)]
    except Unreadable:
        return frozenset(), frozenset()  # a list or words, and of a question most is prose
    inner = frozenset(form for side in sides for form in _numbers(side))
    if len(sides) == 1:
        return _named(sides[0]), inner
    sign = next(character for character in outside(cleaned) if character in SIGNS)
    forms = [_sorted(side) for side in sides]
    relation = f"{sign} {' '.join(sorted(forms) if sign == '=' else forms)}"
    return frozenset([relation]) | (_named(sides[-1]) if sides[0][0] == "sym" else frozenset()), inner


def _tree(text: str) -> Node:
    """The formula; the name of something, such as \\text{total}, is a letter."""
    try:
        return _quotients(parse(split_unit(text.strip())[0]))
    except Unreadable:
        if not words(text):
            raise
        return ("sym", text)


def _quotients(node: Node) -> Node:
    """24/36 is \\frac{24}{36}"""
    if node[0] in _SIMPLE:
        return node
    node = (node[0], *(_quotients(part) if isinstance(part, tuple) else part for part in node[1:]))
    return ("div", node[1], node[2][1]) if node[0] == "mul" and len(node) == 3 and node[2][0] == "inv" else node


def _named(node: Node) -> Forms:
    return frozenset() if node[0] in _SIMPLE else frozenset([_sorted(node)])


def _numbers(node: Node) -> list[str]:
    """The spelling of each part without letters that is no literal, where a reduced fraction is one."""
    if node[0] in _SIMPLE or _is_literal(node):
        return []
    found = [form for part in node[1:] if isinstance(part, tuple) for form in _numbers(part)]
    return found if symbols(node) else [*found, _sorted(node), *_sub_sums(node)]


def _sub_sums(node: Node) -> list[str]:
    """2+3*4 is in 2+3*4+0."""
    if node[0] not in ("add", "mul") or len(node) > 8:
        return []
    return [_sorted((node[0], *node[1:at], *node[at + 1 :])) for at in range(1, len(node)) if len(node) > 3]


def _is_fraction(node: Node) -> bool:
    """25/100: not reduced, but a number unless the question asks for it as it stands."""
    return node[0] == "div" and node[1][0] == "num" and node[2][0] == "num"


def _is_literal(node: Node) -> bool:
    if node[0] == "neg":
        return node[1][0] == "num" or _is_literal(node[1])
    if node[0] != "div" or node[1][0] != "num" or node[2][0] != "num" or not node[2][1]:
        return False
    return bool(Fraction(node[1][1], node[2][1]).denominator == node[2][1])


def _sorted(node: Node) -> str:
    """The spelling with terms and factors in one order."""
    if node[0] in _SIMPLE:
        return spelling(node)
    parts = [_sorted(part) if isinstance(part, tuple) else str(part) for part in node[1:]]
    return f"({node[0]} {' '.join(sorted(parts) if node[0] in ('add', 'mul') else parts)})"
