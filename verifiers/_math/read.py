"""Answer text -> typed value. Decides what an answer is; compare.py decides whether two are the same.

Plain numbers, which most answers are, take a short way that does not clean, split or parse.
"""

from __future__ import annotations

import functools
import itertools
import re

from grpo_math.verifiers._math import brackets, relations
from grpo_math.verifiers._math.clean import clean
from grpo_math.verifiers._math.cut import outside, split
from grpo_math.verifiers._math.evaluate import less
from grpo_math.verifiers._math.extract import find_boxes, has_box
from grpo_math.verifiers._math.literals import Unreadable, Unsupported, plain_number
from grpo_math.verifiers._math.names import NOT_UNITS
from grpo_math.verifiers._math.scalars import atom
from grpo_math.verifiers._math.values import (
    INFINITE,
    MINUS_INFINITE,
    Opaque,
    Ordered,
    Scalar,
    Unordered,
    Value,
    Words,
    flat,
    point_of,
)
from grpo_math.verifiers._math.words import PLAIN_TEXT, choice, denies, words

MAX_CHARS, MAX_BOXES = 2000, 8

_CONNECTIVE = re.compile(
    r",? ?\\text ?\{ ?,? ?(?:and|or)? ?,? ?\}|,? (?:and|or) |(?<=[\d)\]}])(?:and|or)(?=[\d(\[\\⦃A-Z]|[a-z](?: ?=|\())|;"
)
_ALL_TEXT = re.compile(r"\\text ?\{([^{}]*(?:,|\b(?:and|or)\b)[^{}]*)\}")
_MATRIX = re.compile(
    r"(.{0,80}?)[\[(]? ?\\begin ?\{([bp]?matrix|smallmatrix|array)\} ?(?:\{[lcr| ]*\})?"
    r"((?:(?!\\begin).)*)\\end ?\{\2\} ?[\])]?",
    re.DOTALL,
)
_SYSTEM = re.compile(
    r"(?:⦃ ?\\begin ?\{(array)\}|\\begin ?\{(cases|aligned|align\*?|gathered)\}) ?(?:\{[lcr| ]*\})?"
    r"([^∈<>≤≥≠]*=.*)\\end ?\{(?:\1|\2)\}",
    re.DOTALL,
)
_CHOICE_AND_TEXT = re.compile(
    r"(?:\\text ?\{ ?)?\(?([A-J])(?:\)|\.|:|\) ?[.:])(?: ?\} ?| )(?![^=]*(?<![A-Za-z])[A-J][).])(.+)"
)
_NOUN = re.compile(  # the point (1, 2), P(1, 2)
    r"(?:the )?(?:point|vector|ordered pair|pair|triple|interval|set|line|value)s? (?!of)|[A-Z] ?(?=\([^()]*,[^()]*\)$)"
)
_TEXT_ANSWER = re.compile(r"\\text ?\{ ?((?:¤ ?)?[-+]?\d[^{}]*|[a-z] ?= ?[^{}]*)\}")  # \\text{18 dollars}
_PROSE = re.compile(
    r"\\text ?\{ ?([A-Za-z][A-Za-z ,.']{1,60}(?: is| are| be| equals|:) ?)\} ?(?=[\d¤-]|\\frac)"
)  # \\text{The total is } 5
_QUALIFIER = re.compile(  # what the letters of an answer stand for
    r"""(?<=.)(?:,|;|,?\ ?\\text\ ?\{|\ (?=where|for|with)|(?=\ \()\ )?\ ?\(?\ ?
    (?:for\ [a-z](?:\ ?,\ ?[a-z])*\ ?∈.{1,40}
      |for\ (?:all|any|every)\ ?\}?\ ?(?:real|integer|positive|natural|non-?negative|[a-zA-Z](?![A-Za-z]))[^.=]{0,40}
      |(?:where|with|for)\b[^.=]{0,60}\b(?:integer|constant|arbitrary|real|natural)\b.{0,60}
      |(?:(?<=[,;({])|(?<=[,;({]\ ))[a-z](?:\ ?,\ ?[a-z])*\ ?∈\ ?\\mathbb\ ?
       (?:\{\ ?[ZNQR]\ ?\}|[ZNQR])(?:\ ?[\^_]\ ?(?:\{[^{}]*\}|.))?)
    \ ?[)}]*$""",
    re.VERBOSE,
)
_OR = re.compile(r"\bor\b")
_UPPER, _LOWER = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")


@functools.lru_cache(maxsize=8192)
def read(text: str, decimal_comma: bool = False) -> Value:
    """The value of an answer, bare or in $...$ or \\boxed{}. Raises Unreadable, Undecided."""
    if has_box(text):
        text = _unboxed(text)
    if len(text) > MAX_CHARS:
        raise Unreadable(f"longer than {MAX_CHARS} characters")
    if (plain := plain_number(text)) is not None and not (decimal_comma and "," in text):
        return Scalar(("num", plain))
    cleaned = _balanced(clean(text, decimal_comma))
    cleaned = _without_qualifier(cleaned)
    if not cleaned:
        raise Unreadable("nothing in it")
    try:
        if option := _CHOICE_AND_TEXT.fullmatch(cleaned):
            return Words(option[1], _rest(option[2]))
        return value(cleaned)
    except Unsupported as e:
        return Opaque(cleaned.replace(" ", ""), str(e))


def _unboxed(text: str) -> str:
    """What is in the box that is the whole text."""
    for _ in range(MAX_BOXES):
        text = text.strip(" \n$.")
        boxes, _ = find_boxes(text)
        if len(boxes) != 1 or boxes[0][0] != 0 or boxes[0][2] != len(text):
            raise Unreadable("a box within an answer")
        text = text[boxes[0][1] : -1]
        if not has_box(text):
            return text
    raise Unreadable(f"more than {MAX_BOXES} boxes in one another")


def _without_qualifier(text: str) -> str:
    """2 pi k, where k is an integer"""
    spaced = text.replace(",", ", ").replace(",  ", ", ")
    qualifier = _QUALIFIER.search(spaced)
    return text if qualifier is None or denies(qualifier.group()) else spaced[: qualifier.start()].rstrip(" ,;(")


def _balanced(text: str) -> str:
    """Without a stray brace at the end, which cutting an answer out of its box may leave."""
    return text[:-1].rstrip() if text.endswith("}") and text.count("}") == text.count("{") + 1 else text


def value(text: str) -> Value:
    text = text.strip().lstrip("≈= ")
    if not text:
        raise Unreadable("an empty part")
    if "±" in text or "∓" in text:
        return _plus_minus(text)
    if system := _SYSTEM.fullmatch(text):
        return brackets.system(system[3], value)
    if (matrix := _MATRIX.fullmatch(text)) and not any(sign in relations.SIGNS for sign in matrix[1]):
        return brackets.matrix(matrix[1], matrix[3], value)
    if inner := _ALL_TEXT.fullmatch(text) or _TEXT_ANSWER.fullmatch(text):
        return value(inner[1])
    if noun := _NOUN.match(text):
        return value(text[noun.end() :])
    if (prose := _PROSE.match(text)) and NOT_UNITS.isdisjoint(re.findall("[a-z]+", prose[1].casefold())):
        return value(text[prose.end() :])
    if letter := choice(text):
        return letter
    if named := brackets.NAMED_SETS.get(PLAIN_TEXT.sub(r"\1", text).replace(" ", "").casefold()):
        return named
    if points := _points(text):
        return points
    parts = split(_CONNECTIVE.sub(",", text), ",")
    if len(parts) > 1:
        items = [value(part) for part in parts if part.strip()]
        return (None if _OR.search(text) else _between(items)) or flat(items)
    if said := words(text):
        return said
    if any(sign in relations.SIGNS for sign in outside(text)):
        return relations.relation(text, value)
    if len(sets := split(text, "∪")) > 1:
        union = flat([value(part) for part in sets])
        return Unordered(union.items, distinct=True) if isinstance(union, Unordered) else union
    return brackets.bracketed(text, value) or atom(text)


def _rest(text: str) -> Value | None:
    try:
        return value(text)
    except Unreadable:
        return None


def _between(items: list[Value]) -> Ordered | None:
    """x > 2 and x < 5 is one interval."""
    if len(items) != 2 or not all(isinstance(item, Ordered) and item.inequality for item in items):
        return None
    lower, upper = sorted(
        (item for item in items if isinstance(item, Ordered)), key=lambda item: item.items[1] != INFINITE
    )
    low, high = lower.items[0], upper.items[1]
    if lower.items[1] != INFINITE or upper.items[0] != MINUS_INFINITE or high == INFINITE:
        return None
    if not isinstance(low, Scalar) or not isinstance(high, Scalar) or not less(low.node, high.node):
        return None
    return Ordered((low, high), lower.brackets[0] + upper.brackets[1], inequality=True)


def _points(text: str) -> Unordered | None:
    """x=1, y=2; x=3, y=4 is a list of two points."""
    if "=" not in text:
        return None
    groups = [split(group, ",") for group in split(_CONNECTIVE.sub(";", text), ";") if group.strip()]
    if len(groups) < 2 or any(len(group) < 2 for group in groups):
        return None
    points = [point_of([value(part) for part in group]) for group in groups]
    found = tuple(point for point in points if point is not None)
    return Unordered(found) if len(found) == len(points) else None


def _plus_minus(text: str) -> Value:
    """1 ± 2 is the list 3, -1. Element by element, so that {1±√5, -2} has three."""
    if text[0] == "⦃" and text[-1] == "⦄":
        text = text[1:-1]
    parts = split(_CONNECTIVE.sub(",", text), ",")
    if len(parts) > 1:
        return flat([value(part) for part in parts])
    if text[0] == "(" and text[-1] == ")" and len(outside(text)) == 1 and "∓" not in text:
        items = [[part.translate(signs) for signs in (_UPPER, _LOWER)] for part in split(text[1:-1], ",")]
        if 1 < len(items) <= 4:  # (±3, ±2) are four points
            return flat([value(f"({','.join(point)})") for point in dict.fromkeys(itertools.product(*items))])
    return flat([value(text.translate(_UPPER)), value(text.translate(_LOWER))])
