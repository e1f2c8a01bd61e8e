"""Is a plain value the expected one? Leaves out text that a program wrote (stdio.py)."""

from __future__ import annotations

import math
from typing import Any

from grpo_math.sandbox.stand_in import StandIn


def equal(value: Any, expected: Any, tolerance: float | None) -> bool:
    """As Python's ==, but that nan is nan, and that numbers may differ by the tolerance, relative or absolute, within
    containers too. A stand-in equals nothing."""
    if isinstance(value, StandIn):
        return False
    if isinstance(value, float | int) and isinstance(expected, float | int):
        return value == expected or _near(value, expected, tolerance)
    for kind in (list, tuple):
        if isinstance(value, kind) and isinstance(expected, kind):
            return len(value) == len(expected) and all(
                equal(a, b, tolerance) for a, b in zip(value, expected, strict=True)
            )
    if isinstance(value, dict) and isinstance(expected, dict):
        return value.keys() == expected.keys() and all(equal(value[k], expected[k], tolerance) for k in expected)
    return bool(value == expected)


def _near(a: float, b: float, tolerance: float | None) -> bool:
    """No truth value is near anything."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    if tolerance is None or isinstance(a, bool) or isinstance(b, bool):
        return False
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond every float
        return False
