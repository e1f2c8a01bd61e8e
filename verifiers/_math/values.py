"""What an answer can be, once read, and what comes of comparing two. Frozen and hashable: reading is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.tree import Node


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number or formula, with the unit written behind it ("" for none, "%" and "°" included)."""

    node: Node
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Based:
    """52_8: digits in a base. The base is part of the answer."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Words:
    """Evelyn, even, or the letter of a choice; `rest` is what stands behind the letter, as in (C) 42."""

    text: str
    rest: Value | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, point or interval with its brackets: (2,4) is a point or an open interval, and either way itself."""

    items: tuple[Value, ...]
    brackets: str = "()"
    inequality: bool = field(default=False, compare=False)  # whether it was written as 2 < x < 4


@dataclass(frozen=True, slots=True)
class Unordered:
    """A list, set or union: the order of several answers says nothing. distinct: in a set, repeating says nothing."""

    items: tuple[Value, ...]
    distinct: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """3:2, none of its parts 0."""

    items: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """`node operator 0` with operator one of = < ≤ ≠; `value` is the right side of `x = value` and `f(x) = value`."""

    operator: str
    node: Node
    value: Value | None = None
    name: str = ""  # the x of `x = value`


@dataclass(frozen=True, slots=True)
class Opaque:
    """Mathematics that grammar.py knows of but does not read, such as an integral: equal to its own spelling only."""

    spelling: str
    why: str = field(compare=False)


Value = Scalar | Based | Words | Ordered | Unordered | Matrix | Ratio | Relation | Opaque

Read = Callable[[str], Value]  # read.value, which the rooms that it calls need for the parts of an answer

INFINITY: Node = ("inf",)
INFINITE, MINUS_INFINITE = Scalar(INFINITY), Scalar(("neg", INFINITY))

KINDS = {
    Scalar: "formula",
    Based: "number in a base",
    Words: "words",
    Ordered: "tuple or interval",
    Unordered: "list or set",
    Matrix: "matrix",
    Ratio: "ratio",
    Relation: "relation",
    Opaque: "unsupported notation",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether two answers are the same, and what decided it, in words. True or false as a condition."""

    same: bool
    how: str

    def __bool__(self) -> bool:
        return self.same


def point_of(items: Sequence[Value]) -> Ordered | None:
    """x = 1, y = 2 is the point (1, 2): the names in the order of the alphabet."""
    values = {item.name: item.value for item in items if isinstance(item, Relation) and item.value and item.name}
    if not 2 <= len(values) == len(items):
        return None
    return Ordered(tuple(value for _, value in sorted(values.items()) if value is not None))


def flat(items: Sequence[Value]) -> Value:
    """A union or list of sets is one set."""
    if not items:
        raise Unreadable("nothing but commas")
    if len(items) == 1:
        return items[0]
    parts: list[Value] = []
    for item in items:
        parts += item.items if isinstance(item, Unordered) else (item,)
    # a list of points lists solutions, and is a set as well
    distinct = all(isinstance(item, Ordered) for item in parts)
    return Unordered(tuple(parts), distinct or any(isinstance(item, Unordered) and item.distinct for item in items))
