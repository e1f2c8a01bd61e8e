"""What brackets and environments hold: tuples, intervals, sets, matrices, systems."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from grpo_math.verifiers._math.cut import OPENING, outside, split
from grpo_math.verifiers._math.literals import Unreadable, Unsupported
from grpo_math.verifiers._math.scalars import scalar
from grpo_math.verifiers._math.tree import Node
from grpo_math.verifiers._math.values import INFINITY, Matrix, Ordered, Scalar, Unordered, Value, flat

Read = Callable[[str], Value]  # read.value, for what stands inside

_SET_OPERATION = re.compile(r"\\(?:cap|setminus|backslash)(?![A-Za-z])")
_BUILDER = re.compile(r" ?([A-Za-z])(?: ?∈ ?\\mathbb ?(?:\{ ?R ?\}|R))? ?[|:] ?(.*)")
_REALS_WITHOUT = re.compile(r"\\mathbb ?(?:\{ ?R ?\}|R) ?\\(?:setminus|backslash) ?⦃(.*)⦄")
_REALS = Ordered((Scalar(("neg", INFINITY)), Scalar(INFINITY)), "()")
NAMED_SETS: dict[str, Value] = {
    **dict.fromkeys(("\\mathbb{r}", "\\mathbbr", "allrealnumbers", "allreals"), _REALS),
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
    if without := _REALS_WITHOUT.fullmatch(text):
        return reals_without([scalar(item) for item in split(without[1], ",")])
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


def reals_without(points: list[Scalar]) -> Value:
    """(-oo, a) u (a, oo)"""
    numbers = [point.node[1] for point in points if point.node[0] == "num"]
    if len(numbers) < len(points):
        raise Unsupported("the reals without points that are not rational")
    ends = [("neg", INFINITY), *(("num", number) for number in sorted(set(numbers))), INFINITY]
    return Unordered(tuple(Ordered((Scalar(a), Scalar(b)), "()") for a, b in itertools.pairwise(ends)))


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
