"""What brackets and environments hold: tuples, intervals, sets, matrices, systems."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction

from grpo_math.verifiers._math.cut import OPENING, outside, split
from grpo_math.verifiers._math.literals import Unreadable, Unsupported
from grpo_math.verifiers._math.scalars import scalar
from grpo_math.verifiers._math.tree import Node
from grpo_math.verifiers._math.values import INFINITY, Matrix, Ordered, Read, Scalar, Unordered, Value, flat

_SET_OPERATION = re.compile(r"\\(?:cap|setminus|backslash)(?![A-Za-z])")
_BUILDER = re.compile(r" ?([A-Za-z])(?: ?∈ ?\\mathbb ?(?:\{ ?R ?\}|R))? ?[|:] ?(.*)")
_WITHOUT = re.compile(r"([^⦃]*?) ?\\(?:setminus|backslash)(?![A-Za-z]) ?(⦃.*⦄|[(\[].*[)\]])")
_FLIPPED = {"(": "]", "[": ")", ")": "[", "]": "("}
REALS = Ordered((Scalar(("neg", INFINITY)), Scalar(INFINITY)), "()")
NAMED_SETS: dict[str, Value] = {
    **dict.fromkeys(("\\mathbb{r}", "\\mathbbr", "allrealnumbers", "allreals"), REALS),
    **dict.fromkeys(
        (
            "\\emptyset",
            "⦃⦄",
            "emptyset",
            "theemptyset",
            "nosolution",
            "nosolutions",
            "thereisnosolution",
            "therearenosolutions",
        ),
        Unordered(()),
    ),
}


def bracketed(text: str, value: Read) -> Value | None:
    """A tuple, interval or set that spans the whole text, else None."""
    if without := _WITHOUT.fullmatch(text):
        return _without(value(without[1]), value(without[2]))
    if _SET_OPERATION.search(text):
        raise Unsupported("an intersection or difference of sets")
    if text[0] not in OPENING or len(outside(text)) > 1:
        return None  # `outside` keeps the closing bracket of a text that is one bracket
    if text[0] == "⦃" and (builder := _BUILDER.fullmatch(text[1:-1])):
        return value(builder[2])
    brackets, items = text[0] + text[-1], split(text[1:-1], ",")
    if brackets == "⦃⦄" or (brackets == "{}" and len(items) > 1):
        return Unordered(tuple(value(item) for item in items), distinct=True)
    if len(items) == 1 and ";" in items[0] and brackets[0] in "([":
        items = split(text[1:-1], ";")
    if brackets not in ("()", "[]", "(]", "[)"):
        return None
    if len(items) == 1:
        return value(items[0])
    return Ordered(tuple(value(item) for item in items), brackets)


def _without(whole: Value, removed: Value) -> Value:
    """(0, 5) without {3} is (0, 3) u (3, 5); the reals without [2, 3] are (-oo, 2) u (3, oo)."""
    if not isinstance(whole, Ordered) or len(whole.items) != 2:
        raise Unsupported("a difference of sets")
    if isinstance(removed, Ordered) and len(removed.items) == 2:
        left = Ordered((whole.items[0], removed.items[0]), whole.brackets[0] + _FLIPPED[removed.brackets[0]])
        right = Ordered((removed.items[1], whole.items[1]), _FLIPPED[removed.brackets[1]] + whole.brackets[1])
        return Unordered((left, right), distinct=True)
    return interval_without(whole, removed.items if isinstance(removed, Unordered) else (removed,))


def interval_without(whole: Ordered, points: Sequence[Value]) -> Value:
    """The open pieces between the points, which are rational."""
    numbers = {point.node[1] for point in points if isinstance(point, Scalar) and point.node[0] == "num"}
    if len(numbers) < len(points):
        raise Unsupported("an interval without points that are not rational")
    ends = [whole.items[0], *(Scalar(("num", number)) for number in sorted(numbers)), whole.items[1]]
    last = len(numbers)
    pieces = [
        Ordered(pair, (whole.brackets[0] if at == 0 else "(") + (whole.brackets[1] if at == last else ")"))
        for at, pair in enumerate(itertools.pairwise(ends))
    ]
    return Unordered(tuple(pieces), distinct=True)


def system(body: str, value: Read) -> Value:
    """Equations one below the other are a list of them."""
    if r"\text" in body or r"\begin" in body:
        raise Unsupported("a function by cases")
    rows = [row.replace("&", "").strip(" ,;") for row in body.split("\\\\")]
    return flat([value(row) for row in rows if row])


def matrix(coefficient: str, body: str, value: Read) -> Matrix:
    """The rows of the environment; a number before it multiplies each cell."""
    rows = [row for row in body.split(r"\\") if row.strip()]
    cells = tuple(tuple(value(cell) for cell in row.split("&")) for row in rows)
    if not cells or len({len(row) for row in cells}) > 1:
        raise Unreadable("a matrix with rows of different lengths")
    if coefficient := coefficient.strip(" *"):
        factor = ("neg", ("num", Fraction(1))) if coefficient == "-" else scalar(coefficient).node
        cells = tuple(tuple(_times(factor, cell) for cell in row) for row in cells)
    return Matrix(cells)


def _times(factor: Node, cell: Value) -> Scalar:
    if not isinstance(cell, Scalar):
        raise Unreadable("a number times a cell that is none")
    return Scalar(("mul", factor, cell.node), cell.unit)
