"""What an answer can be, once read. Frozen and hashable, so that parts can be cached and compared."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Evelyn, even, or the letter of a choice."""

    text: str


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, point or interval with its brackets: (2,4) is a point or an open interval, and either way itself."""

    items: tuple[Value, ...]
    brackets: str = "()"


@dataclass(frozen=True, slots=True)
class Unordered:
    """A list, set or union: the order of several answers says nothing."""

    items: tuple[Value, ...]


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


Value = Scalar | Based | Words | Ordered | Unordered | Matrix | Ratio | Relation
