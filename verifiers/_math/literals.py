"""Numbers as they are written: 18, .5, 4.5e33, 0.\\overline{3}, 3\\frac{1}{2} -> Fraction, the digits counted first."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS, MAX_EXPONENT = 400, 400

_NUMBER = re.compile(r"(\d+)?(?:\.(\d*))?(?:[eE]([+-]?\d{1,6})(?![\d.]))?")
_PLAIN = re.compile(r"([+-]?) ?([0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,300})?(\.[0-9]{0,300})?")
_REPEATING = re.compile(r" ?\\(?:overline|bar|dot) ?\{ ?(\d+) ?\}")
_PLAIN_MIXED = re.compile(r" +(\d+) ?/ ?(\d+)(?![\d./^])")
_BRACED_MIXED = re.compile(r" ?\\frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))")


class Undecided(Exception):
    """Over a bound, or without a value at too many points: neither equal nor different."""


class Unreadable(ValueError):
    """Not an answer of a kind that the rooms of the math verifier know, or larger than their bounds."""


class Unsupported(Unreadable):
    """Mathematics, but in a notation that the grammar does not read: neither right nor wrong."""


def plain_number(text: str) -> Fraction | None:
    """18, -5, 1,234, 3.50, $18$ or None."""
    match = _PLAIN.fullmatch(text.strip(" \n$")) if len(text) <= MAX_DIGITS else None
    if match is None or not (match[2] or (match[3] or ".") != "."):
        return None
    whole, decimals = (match[2] or "0").replace(",", ""), (match[3] or "")[1:]
    number = Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else Fraction(int(whole))
    return -number if match[1] == "-" else number


def read_number(text: str, at: int, mixed: bool) -> tuple[Fraction, int]:
    """The number that begins at `at`, and where it ends. Raises Unreadable, Undecided.

    mixed: whether a proper fraction right behind an integer belongs to it, which it does not in an exponent.
    """
    match = _NUMBER.match(text, at)
    repeating = _REPEATING.match(text, match.end()) if match is not None and match[2] is not None else None
    if match is None or not (match[1] or match[2] or repeating):
        raise Unreadable("a lone point")
    whole, decimals, exponent = match[1] or "", match[2] or "", int(match[3] or 0)
    if abs(exponent) > MAX_EXPONENT:
        raise Undecided(f"an exponent of ten above {MAX_EXPONENT}")
    value = _integer(whole + decimals) * Fraction(10) ** (exponent - len(decimals))
    if repeating:
        nines = 10 ** len(repeating[1]) - 1
        return value + Fraction(_integer(repeating[1]), 10 ** len(decimals) * nines), repeating.end()
    if mixed and match[2] is None and match[3] is None:
        fraction, end = _mixed_part(text, match.end())
        return value + fraction, end
    return value, match.end()


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise Undecided(f"a number of more than {MAX_DIGITS} digits")
    return int(digits or "0")


def _mixed_part(text: str, at: int) -> tuple[Fraction, int]:
    """The 1/2 of 3 1/2 and 3\\frac{1}{2}: a proper fraction of plain integers, else 0."""
    match = _PLAIN_MIXED.match(text, at) or _BRACED_MIXED.match(text, at)
    if match is not None:
        top, bottom = (_integer(digits) for digits in match.groups() if digits)
        if 0 < top < bottom:
            return Fraction(top, bottom), match.end()
    return Fraction(0), at
