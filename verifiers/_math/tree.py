"""The tree of a formula, and what can be asked of it without evaluating it.

A node is ("num", Fraction), ("sym", name), ("const", "pi" | "e" | "i"), ("inf",), or (operation, node, ...) with the
operations add mul inv div pow neg root fact binom abs floor ceil degree log call:NAME, or ("sum" | "prod", name of
the index, first, last, term). Tuples are equal by content: two equal trees are the same formula, spelled the same way.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

Node = tuple[Any, ...]


def symbols(node: Node) -> set[str]:
    """Names of the free variables."""
    if node[0] == "sym":
        return {node[1]}
    if node[0] in ("sum", "prod"):
        return symbols(node[2]) | symbols(node[3]) | (symbols(node[4]) - {node[1]})
    return {name for part in node[1:] if isinstance(part, tuple) for name in symbols(part)}


def spelling(node: Node) -> str:
    """The tree as text, numbers in hexadecimal: decimal digits of a big integer cost more, and are limited."""
    parts = (
        spelling(part)
        if isinstance(part, tuple)
        else part
        if isinstance(part, str)
        else f"{part.numerator:x}/{part.denominator:x}"
        for part in node
    )
    return f"({' '.join(parts)})"


def operations(node: Node) -> set[str]:
    """Every kind of node in the tree."""
    return {node[0]} | {kind for part in node[1:] if isinstance(part, tuple) for kind in operations(part)}


def size(node: Node) -> int:
    """How many nodes the tree has."""
    return 1 + sum(size(part) for part in node[1:] if isinstance(part, tuple))


def literals(node: Node) -> list[Fraction]:
    """The numbers in the tree."""
    if node[0] == "num":
        return [node[1]]
    return [number for part in node[1:] if isinstance(part, tuple) for number in literals(part)]


def rename(node: Node, old: str, new: str) -> Node:
    """The tree with another letter."""
    if node == ("sym", old):
        return ("sym", new)
    return tuple(rename(part, old, new) if isinstance(part, tuple) else part for part in node)
