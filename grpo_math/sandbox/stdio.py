"""Is what a program wrote to its standard output what it should be? Line by line, never by sets or shortest of two."""

from __future__ import annotations

import math

MAX_SHOWN = 80


def mismatch(output: bytes, expected: str, tolerance: float | None = None, case_sensitive: bool = True) -> str | None:
    """Where they differ, or None.

    White space at the end of a line and empty lines at the end of the text do not count; all else does. With a
    tolerance, relative or absolute, a line is compared word by word, and two finite numbers as numbers."""
    try:
        text = output.decode()
    except UnicodeDecodeError as error:
        return f"the output is no UTF-8 (byte {error.start})"
    got, wanted = _lines(text, case_sensitive), _lines(expected, case_sensitive)
    for number, (left, right) in enumerate(zip(got, wanted, strict=False), 1):
        if left != right and not (tolerance is not None and _close(left, right, tolerance)):
            return f"line {number} is {_shown(left)}, not {_shown(right)}"
    if len(got) != len(wanted):
        return f"{len(got):,} lines, not {len(wanted):,}"
    return None


def _lines(text: str, case_sensitive: bool) -> list[str]:
    lines = [line.rstrip() for line in (text if case_sensitive else text.casefold()).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _close(left: str, right: str, tolerance: float) -> bool:
    ours, theirs = left.split(), right.split()
    return len(ours) == len(theirs) and all(
        a == b or _near(_number(a), _number(b), tolerance) for a, b in zip(ours, theirs, strict=True)
    )


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    return a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def _number(word: str) -> float | None:
    """A finite decimal number; no `nan`, which is close to nothing, no `inf`, no 1_000."""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in word and word.isascii() else None


def _shown(line: str) -> str:
    return repr(line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}...")
