"""What counts as the same answer where graders rightly differ: decided once here, switchable per task.

docs/math_verifier.md has the table with an example each, and tests/test_math_conventions.py pins it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from grpo_math.types import UserError

ANNOUNCED = ("boxed", "tag:answer", "hash", "says", "bare")  # everywhere that a completion says "this is my answer"
FORMATS = ("boxed", "tag:NAME", "hash", "says", "bare", "last_number", "whole")

# The default comes first.
CHOICES: dict[str, tuple[str, ...]] = {
    "percent": ("either", "fraction", "number"),
    "units": ("optional", "required", "ignored"),
    "order": ("any", "kept"),
    "intervals": ("same", "distinct"),
    "brackets": ("kept", "free"),
    "base": ("required", "optional"),
    "case": ("ignored", "kept"),
    "unknown": ("none", "zero"),
}


@dataclass(frozen=True, slots=True)
class Conventions:
    """
    answer_format: where a completion's answer is looked for; the first of them that is there decides.
    percent: 15% is 15 and 0.15 (either), 0.15 (fraction), or 15 (number).
    units: a unit that one side leaves out is forgiven (optional), is wrong (required); or no unit counts (ignored).
    order: of a list or set: says nothing (any), or counts (kept).
    intervals: x > 2 is (2, oo) (same), or is not (distinct).
    brackets: (1,2), [1,2], {1,2} and 1,2 differ (kept), or not (free).
    base: 52 is not 52_8 (required), or is (optional).
    case: of words says nothing (ignored), or counts (kept); that of a single letter always counts.
    unknown: the reward where nobody can tell: none, or zero for a policy that hides behind it.
    decimal_comma: 3,5 is 7/2 and no list.
    tolerance: two numbers are the same where they differ by at most this share of the gold one. 0 is exact.
    """

    answer_format: tuple[str, ...] = ANNOUNCED
    percent: str = "either"
    units: str = "optional"
    order: str = "any"
    intervals: str = "same"
    brackets: str = "kept"
    base: str = "required"
    case: str = "ignored"
    unknown: str = "none"
    decimal_comma: bool = False
    tolerance: float = 0.0


DEFAULT = Conventions()
NAMES = tuple(field.name for field in fields(Conventions))


def conventions(options: Mapping[str, Any]) -> Conventions:
    """From a configuration's options. Raises UserError, which names the key, the value and what it could be."""
    if not options:
        return DEFAULT
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return _cached(tuple(given.items()))
    except TypeError:  # a value that cannot be hashed is none that we take
        return _checked(given)


@functools.lru_cache(maxsize=64)
def _cached(given: tuple[tuple[str, Any], ...]) -> Conventions:
    return _checked(dict(given))


def _checked(given: dict[str, Any]) -> Conventions:
    for key, value in given.items():
        if key not in NAMES:
            raise UserError(f"option {key} of the math verifier: there is no such; known: {', '.join(NAMES)}")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"option {key}={value} of the math verifier: give one of {', '.join(CHOICES[key])}")
    if "answer_format" in given:
        given["answer_format"] = _formats(given["answer_format"])
    if not isinstance(given.get("decimal_comma", False), bool):
        raise UserError(f"option decimal_comma={given['decimal_comma']} of the math verifier: give true or false")
    tolerance = given.get("tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise UserError(f"option tolerance={tolerance} of the math verifier: give a share within 0 and 1, such as 0.01")
    return Conventions(**given)


def _formats(given: object) -> tuple[str, ...]:
    names = given if isinstance(given, tuple) else str(given).split(",")
    if not names:
        raise UserError(f"option answer_format=[] of the math verifier: give one or more of {', '.join(FORMATS)}")
    for name in names:
        if name not in FORMATS and not (isinstance(name, str) and name.startswith("tag:") and name[4:].isidentifier()):
            raise UserError(f"option answer_format={name} of the math verifier: give one of {', '.join(FORMATS)}")
    return tuple(names)
