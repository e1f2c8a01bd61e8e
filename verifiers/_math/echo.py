"""Is an answer just the question's own formula, not worked out? `2+3*4` is 14, but no answer to "What is 2+3*4?".

Formulas are compared up to the order of terms and factors. Leaves out any other way of not answering.
"""

from __future__ import annotations

import functools
import re

from grpo_math.verifiers._math.clean import clean
from grpo_math.verifiers._math.grammar import parse
from grpo_math.verifiers._math.literals import Unreadable
from grpo_math.verifiers._math.tree import Node, spelling

_MATH = re.compile(r"\$+([^$]{1,300})\$+|\\[(\[](.{1,300}?)\\[)\]]", re.DOTALL)
_RUN = re.compile(r"[\d(][\d\s+\-*/^().×÷]{1,200}[\d)]")
_SIMPLE = ("num", "sym", "const", "inf")
MAX_QUESTION = 4000


def is_echo(question: str, gold: str, candidate: str) -> bool:
    """Whether the candidate is a formula of the question's that the gold answer writes in another way."""
    form = _form(candidate)
    return form is not None and form != _form(gold) and form in _formulas(question[:MAX_QUESTION])


def _form(text: str) -> str | None:
    """The spelling of the text's formula with terms and factors in one order; None for a number or no formula."""
    try:
        node = parse(clean(text))
    except Unreadable:
        return None  # a list or words, and of a question most is prose
    return None if node[0] in _SIMPLE else _sorted(node)


@functools.lru_cache(maxsize=4096)
def _formulas(question: str) -> frozenset[str | None]:
    texts = [a or b for a, b in _MATH.findall(question)] + _RUN.findall(question)
    return frozenset(_form(side) for text in texts for side in text.split("="))


def _sorted(node: Node) -> str:
    if node[0] in _SIMPLE:
        return spelling(node)
    parts = [_sorted(part) if isinstance(part, tuple) else str(part) for part in node[1:]]
    return f"({node[0]} {' '.join(sorted(parts) if node[0] in ('add', 'mul') else parts)})"
