"""How far two completions are from each other, in words: edits between them, or the phrases they do not share.

A word is a run of letters and digits; every other visible character is a word by itself, as operators should be.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence, Set
from itertools import pairwise

_WORD = re.compile(r"\w+|[^\w\s]")

Words = tuple[str, ...]


def words(text: str) -> Words:
    return tuple(_WORD.findall(text))


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that make `a` of `b`.

    A column of the table of distances is kept as the bits of two whole numbers, up[i] and down[i]: whether the entry i
    is one more or one less than the entry above. Each item of the shorter sequence is then a dozen operations on
    numbers of len(longer) bits. Myers 1999, doi:10.1145/316542.316550, with Hyyro's simplification (2003).
    """
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    if not shorter:
        return len(longer)
    places: dict[Hashable, int] = {}
    for i, item in enumerate(longer):
        places[item] = places.get(item, 0) | 1 << i
    full, last = (1 << len(longer)) - 1, 1 << (len(longer) - 1)
    up, down, distance = full, 0, len(longer)
    for item in shorter:
        match = places.get(item, 0)
        diagonal = (((match & up) + up) ^ up) | match | down  # where the entry equals its upper left neighbour
        right_up = (down | ~(diagonal | up)) & full
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        up = (right_down << 1 | ~(diagonal | right_up)) & full
        down = right_up & diagonal & full
    return distance


def edit_share(a: Words, b: Words) -> float:
    """edit_distance / the longer one's length: 0 for equal ones, 1 for those that share nothing."""
    return edit_distance(a, b) / max(len(a), len(b), 1)


def phrases(some: Words) -> frozenset[Words]:
    """All runs of three words; of a shorter text, the whole."""
    if len(some) < 3:
        return frozenset([some])
    return frozenset((first, *rest) for first, rest in zip(some, pairwise(some[1:]), strict=False))


def jaccard(a: Set[Words], b: Set[Words]) -> float:
    """1 - |a & b| / |a | b|, from 0 for equal sets to 1 for disjoint ones; Broder 1997's resemblance of documents."""
    shared = len(a & b)
    union = len(a) + len(b) - shared
    return 1 - shared / union if union else 0.0
