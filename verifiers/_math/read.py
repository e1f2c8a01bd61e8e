"""Answer text -> typed value. Decides what an answer is; compare.py decides whether two are the same.

Plain numbers, which most answers are, take a short way that does not clean, split or parse.
"""

from __future__ import annotations

import functools
import itertools
import re

from grpo_math.verifiers._math import evaluate, grammar
from grpo_math.verifiers._math.clean import clean
from grpo_math.verifiers._math.cut import OPENING, outside, split
from grpo_math.verifiers._math.extract import find_boxes, has_box
from grpo_math.verifiers._math.literals import Unreadable, Unsupported, plain_number
from grpo_math.verifiers._math.scalars import atom, scalar
from grpo_math.verifiers._math.tree import Node, symbols
from grpo_math.verifiers._math.values import (
    Matrix,
    Opaque,
    Ordered,
    Relation,
    Scalar,
    Unordered,
    Value,
    Words,
    point_of,
)

MAX_CHARS, MAX_BOXES = 2000, 8

_CONNECTIVE = re.compile(
    r",? ?\\text ?\{ ?,? ?(?:and|or) ?\}|,? (?:and|or) |(?<=[\d)\]}])(?:and|or)(?=[\d(\[\\⦃A-Z]|[a-z](?: ?=|\())|;"
)
_MATRIX = re.compile(
    r"[\[(|]? ?\\begin ?\{([bpB]?matrix|smallmatrix|array)\} ?(?:\{[lcr| ]*\})?(.*)\\end ?\{\1\} ?[\])|]?", re.DOTALL
)
_CHOICE = re.compile(r"\\text ?\{ ?\(?([A-Za-z])\)? ?[.:]? ?\}|\(([A-Z])\)")
_CHOICE_AND_TEXT = re.compile(r"(?:\\text ?\{ ?)?\(?([A-J])(?:\)|\.|\) ?[.:]) ?\}? (?![^=]*(?<![A-Za-z])[A-J][).])(.+)")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_NAME = re.compile(
    r"(?:[A-Za-z]|[A-Z]{2,3}|\\[A-Za-z]+)(?:\^ ?\{ ?-1 ?\})?(?: ?_ ?(?:\{[^{}]*\}|[A-Za-z0-9]))?'*(?: ?\([^()]*\))?"
)
_SHORT_WORDS = {"yes", "no", "odd", "all", "none", "true", "false", "dne"}
_ADDS = re.compile(r"[\d+*-]")
_SUBSCRIPT = re.compile(r" ?[\^_] ?(?:\{[^{}]*\}|[A-Za-z0-9]|\\[A-Za-z]+)")
_SET_OPERATION = re.compile(r"\\(?:cap|setminus|backslash)(?![A-Za-z])")
_NAMES = re.compile(r"\( ?[A-Za-z](?: ?, ?[A-Za-z])* ?\)")
_QUALIFIER = re.compile(
    r"(?<=.),? ?(?:\\text ?\{ ?)?(?:\(? ?(?:where|for all|for any|for every|for some|with) .*"
    r"|\(? ?[a-z](?: ?, ?[a-z])* ?∈ ?\\mathbb ?(?:\{ ?[ZNQ] ?\}|[ZNQ])(?: ?[\^_] ?(?:\{[^{}]*\}|.))? ?\)?)$"
)
_BUILDER = re.compile(r" ?([A-Za-z])(?: ?∈ ?\\mathbb ?(?:\{ ?R ?\}|R))? ?[|:] ?(.*)")
_REALS_WITHOUT = re.compile(r"\\mathbb ?(?:\{ ?R ?\}|R) ?\\(?:setminus|backslash) ?⦃(.*)⦄")
_INFINITY: Node = ("inf",)
_REALS = Ordered((Scalar(("neg", _INFINITY)), Scalar(_INFINITY)), "()")
_NAMED_SETS: dict[str, Value] = {
    **dict.fromkeys(
        ("\\mathbb{r}", "\\mathbbr", "\\text{allrealnumbers}", "allrealnumbers", "\\text{allreals}"), _REALS
    ),
    **dict.fromkeys(("\\emptyset", "⦃⦄", "\\text{emptyset}", "\\text{theemptyset}", "emptyset"), Unordered(())),
}
_RELATIONS = "=<>≤≥≠∈≈"
_UPPER, _LOWER = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")
_MIRROR = {">": "<", "≥": "≤"}


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
    if qualifier := _QUALIFIER.search(cleaned):  # 2 pi k, where k is an integer
        cleaned = cleaned[: qualifier.start()].rstrip()
    if not cleaned:
        raise Unreadable("nothing in it")
    try:
        return _value(cleaned)
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


def _balanced(text: str) -> str:
    """Without a stray brace at the end, which cutting an answer out of its box may leave."""
    return text[:-1].rstrip() if text.endswith("}") and text.count("}") == text.count("{") + 1 else text


def _value(text: str) -> Value:
    text = text.strip()
    if not text:
        raise Unreadable("an empty part")
    if "±" in text or "∓" in text:
        return _plus_minus(text)
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[2])
    if choice := _CHOICE.fullmatch(text):
        return Words(choice[1] or choice[2])
    if named := _NAMED_SETS.get(text.replace(" ", "").casefold()):
        return named
    if choice := _CHOICE_AND_TEXT.fullmatch(text):
        return Words(choice[1], _rest(choice[2]))
    if points := _points(text):
        return points
    parts = split(_CONNECTIVE.sub(",", text), ",")
    if len(parts) > 1:
        return _flat([_value(part) for part in parts if part.strip()])
    if words := _words(text):
        return words
    if any(sign in text for sign in _RELATIONS):
        return _relation(text)
    if len(sets := split(text, "∪")) > 1:
        union = _flat([_value(part) for part in sets])
        return Unordered(union.items, distinct=True) if isinstance(union, Unordered) else union
    if _SET_OPERATION.search(text) and not _REALS_WITHOUT.fullmatch(text):
        raise Unsupported("an intersection or difference of sets")
    return _bracketed(text) or atom(text)


def _rest(text: str) -> Value | None:
    try:
        return _value(text)
    except Unreadable:
        return None


def _points(text: str) -> Unordered | None:
    """x=1, y=2; x=3, y=4 is a list of two points."""
    if "=" not in text:
        return None
    groups = [split(group, ",") for group in split(_CONNECTIVE.sub(";", text), ";") if group.strip()]
    if len(groups) < 2 or any(len(group) < 2 for group in groups):
        return None
    points = [point_of([_value(part) for part in group]) for group in groups]
    found = tuple(point for point in points if point is not None)
    return Unordered(found) if len(found) == len(points) else None


def _flat(items: list[Value]) -> Value:
    """A union or list of sets is one set."""
    if not items:
        raise Unreadable("nothing but commas")
    if len(items) == 1:
        return items[0]
    flat: list[Value] = []
    for item in items:
        flat += item.items if isinstance(item, Unordered) else (item,)
    # a list of points lists solutions, and is a set as well
    distinct = all(isinstance(item, Ordered) for item in flat)
    return Unordered(tuple(flat), distinct or any(isinstance(item, Unordered) and item.distinct for item in items))


def _plus_minus(text: str) -> Value:
    """1 ± 2 is the list 3, -1. Element by element, so that {1±√5, -2} has three."""
    if text[0] == "⦃" and text[-1] == "⦄":
        text = text[1:-1]
    parts = split(_CONNECTIVE.sub(",", text), ",")
    if len(parts) > 1:
        return _flat([_value(part) for part in parts])
    return _flat([_value(text.translate(_UPPER)), _value(text.translate(_LOWER))])


def _matrix(body: str) -> Matrix:
    if r"\begin" in body:
        raise Unreadable("a matrix within a matrix")
    rows = [row for row in body.split(r"\\") if row.strip()]
    cells = tuple(tuple(_value(cell) for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) > 1:
        raise Unreadable("a matrix with rows of different lengths")
    return Matrix(cells)


def _words(text: str) -> Words | None:
    """Whole words, in \\text{} or long enough not to be a product of variables."""
    bare = " ".join(_TEXT.sub(r" \1 ", text).split())
    if not _WORDS.fullmatch(bare):
        return None
    if bare.casefold() in _SHORT_WORDS:
        return Words(bare)
    in_text = text.startswith(r"\text") and len(bare) > 1
    return Words(bare) if in_text or len(max(bare.split(), key=len)) > 3 else None


# -------------------------------------------------------------------------------------------------- relations


def _relation(text: str) -> Value:
    """An equation or inequality; an interval where it is one; the value alone where the left side only names it."""
    parts = [part.strip() for part in split(text, _RELATIONS)]
    operators = [character for character in outside(text) if character in _RELATIONS]
    if not operators:
        return _bracketed(text) or atom(text)
    if "≈" in operators:
        at = operators.index("≈")  # 1/3 ≈ 0.33 is 1/3
        return _value(parts[at + 1] if _is_name(parts[at]) else parts[at])
    if operators[0] == "∈" and len(operators) == 1:
        return _value(parts[1])
    if any(not part for part in parts) or "∈" in operators:
        raise Unreadable("a relation with an empty side")
    if set(operators) == {"="}:
        return _equation(parts)
    if len(operators) == 1:
        return _inequality(operators[0], *parts)
    if len(operators) == 2 and (set(operators) <= {"<", "≤"} or set(operators) <= {">", "≥"}):
        low, _, high = parts if operators[0] in "<≤" else parts[::-1]
        first, second = operators if operators[0] in "<≤" else operators[::-1]
        if _is_name(parts[1]):
            brackets = ("[" if first in "≤≥" else "(") + ("]" if second in "≤≥" else ")")
            return Ordered((_value(low), _value(high)), brackets, inequality=True)
    raise Unsupported("a chain of relations")


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_quantity(text: str) -> bool:
    """The left side of |AB| = 1, of S_1 : S_2 = 3 : 4, of P(A) = 1/2: it names what is asked for, and adds nothing."""
    outer = _SUBSCRIPT.sub("", text)
    return not _ADDS.search(outer) and re.search("[A-Za-z]", outer) is not None


def _equation(parts: list[str]) -> Value:
    left = parts[0]
    if len(set(parts)) < len(parts):
        raise Unreadable("an equation of something with itself")
    if _NAMES.fullmatch(left) or _words(left) or (":" in left and _is_quantity(left)):
        parts = parts[1:]  # (x, y) = (1, 2) and \text{total} = 5
    if len(parts) > 2:  # x = 6/4 = 3/2: all the same, or nonsense
        values = [scalar(part) for part in (parts[1:] if _is_name(left) else parts)]
        if not all(evaluate.equal(values[0].node, value.node) for value in values[1:]):
            raise Unreadable("a chain of equations that do not hold")
        return values[-1]
    if len(parts) == 1:
        return _value(parts[0])
    named = _value(parts[1]) if _is_name(parts[0]) else None
    if named is not None and not isinstance(named, Scalar):
        return named  # A = (1, 2)
    a, b = scalar(parts[0]), scalar(parts[1])
    if not symbols(a.node) and not symbols(b.node):
        if not evaluate.equal(a.node, b.node):
            raise Unreadable("an equation that does not hold")
        return b
    if named is None and not symbols(b.node) and _is_quantity(left):
        return Relation("=", _difference(a, b), b, left)
    letters = symbols(grammar.parse(_head(parts[0]))) if named is not None else set()
    value = named if letters.isdisjoint(symbols(b.node)) else None
    return Relation("=", _difference(a, b), value, parts[0] if value else "")


def _head(name: str) -> str:
    """The f of f(x)."""
    return name.split("(")[0]


def _difference(a: Scalar, b: Scalar) -> Node:
    return ("add", a.node, ("neg", b.node))


def _inequality(operator: str, left: str, right: str) -> Value:
    """An interval where one variable is bounded by a number, such as x ≤ √2 or 2x > 4."""
    if operator in _MIRROR:
        operator, left, right = _MIRROR[operator], right, left
    a, b = scalar(left), scalar(right)
    closed = operator == "≤"
    if operator == "≠":
        return Relation(operator, _difference(a, b))
    if _is_name(left) and not symbols(b.node):
        return _below(b, closed)
    if _is_name(right) and not symbols(a.node):
        return _above(a, closed)
    if line := evaluate.line(_difference(a, b)):
        bound = Scalar(("num", line[1]))
        return _below(bound, closed) if line[0] > 0 else _above(bound, closed)
    return Relation(operator, _difference(a, b))


def _below(bound: Scalar, closed: bool) -> Value:
    return Ordered((Scalar(("neg", _INFINITY)), bound), "(]" if closed else "()", inequality=True)


def _above(bound: Scalar, closed: bool) -> Value:
    return Ordered((bound, Scalar(_INFINITY)), "[)" if closed else "()", inequality=True)


def _bracketed(text: str) -> Value | None:
    """A tuple, interval or set that spans the whole text, else None."""
    if without := _REALS_WITHOUT.fullmatch(text):
        return _reals_without([scalar(item) for item in split(without[1], ",")])
    if text[0] not in OPENING or len(outside(text)) > 1:
        return None  # `outside` keeps the closing bracket of a text that is one bracket
    if text[0] == "⦃" and (builder := _BUILDER.fullmatch(text[1:-1])):
        return _value(builder[2])
    brackets, items = text[0] + text[-1], split(text[1:-1], ",")
    if brackets == "⦃⦄" or (brackets == "{}" and len(items) > 1):
        return Unordered(tuple(_value(item) for item in items), distinct=True)
    if len(items) == 1 and ";" in items[0] and brackets[0] in "([":
        items = split(text[1:-1], ";")
    if brackets not in ("()", "[]", "(]", "[)"):
        return None
    if len(items) == 1:
        return _value(items[0])
    return Ordered(tuple(_value(item) for item in items), brackets)


def _reals_without(points: list[Scalar]) -> Value:
    """(-oo, a) u (a, oo)"""
    numbers = [point.node[1] for point in points if point.node[0] == "num"]
    if len(numbers) < len(points):
        raise Unsupported("the reals without points that are not rational")
    ends = [("neg", _INFINITY), *(("num", number) for number in sorted(set(numbers))), _INFINITY]
    return Unordered(tuple(Ordered((Scalar(a), Scalar(b)), "()") for a, b in itertools.pairwise(ends)))
