"""Answers in words."""

from __future__ import annotations

import re

from grpo_math.verifiers._math.values import Words

_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_SHORT_WORDS = {"yes", "no", "odd", "all", "none", "true", "false", "dne"}


def words(text: str) -> Words | None:
    """Whole words, in \\text{} or long enough not to be a product of variables."""
    bare = " ".join(_TEXT.sub(r" \1 ", text).split())
    if not _WORDS.fullmatch(bare):
        return None
    if bare.casefold() in _SHORT_WORDS:
        return Words(bare)
    in_text = text.startswith(r"\text") and len(bare) > 1
    return Words(bare) if in_text or len(max(bare.split(), key=len)) > 3 else None
