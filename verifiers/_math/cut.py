"""Cut an answer at what stands outside its brackets. All kinds count as one, since [2, 3) has brackets of two kinds."""

from __future__ import annotations

from grpo_math.verifiers._math.literals import Unreadable

OPENING, CLOSING = frozenset("([{⦃"), frozenset(")]}⦄")
MAX_DEPTH = 40


def split(text: str, separators: str) -> list[str]:
    """Cut at the separators that stand outside all brackets. Raises Unreadable where brackets do not match up."""
    parts, start, depth = [], 0, 0
    for at, character in enumerate(text):
        if character in OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"nested deeper than {MAX_DEPTH}")
        elif character in CLOSING:
            depth -= 1
            if depth < 0:
                raise Unreadable(f"{character!r} closes nothing")
        elif depth == 0 and character in separators:
            parts.append(text[start:at])
            start = at + 1
    if depth:
        raise Unreadable("a bracket is not closed")
    return [*parts, text[start:]]


def outside(text: str) -> str:
    """The characters outside all brackets."""
    kept, depth = [], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        if depth == 0:
            kept.append(character)
    return "".join(kept)
