"""The tests of a problem: are they of use, which names do they look for, what may a program take to pass them."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from grpo_math.sandbox.limits import Limits
from grpo_math.sandbox.names import reading
from grpo_math.types import Problem, UserError
from grpo_math.verifiers._code.extract import defines

# what a problem may set, its type, and its bounds
_LIMITS: dict[str, tuple[tuple[type, ...], float, float]] = {
    "timeout_s": ((int, float), 0.01, 86_400),
    "memory_mb": ((int,), 32, 1 << 20),
}


def complaint(tests: object) -> str | None:
    """Why these tests cannot judge anything, or None."""
    if not isinstance(tests, Mapping):
        return f"tests={tests!r}: give a mapping with type and what belongs to it"
    kind = tests.get("type")
    if not isinstance(kind, str) or kind not in _COMPLAINTS:
        return f"tests.type={kind!r}: give one of {', '.join(_COMPLAINTS)}"
    if not isinstance(tests.get("case_sensitive", True), bool):
        return f"tests.case_sensitive={tests['case_sensitive']!r}: give true or false"
    if tests.get("tolerance") is not None and not _is_number(tests["tolerance"]):
        return f"tests.tolerance={tests['tolerance']!r}: give a number of at least 0"
    return _COMPLAINTS[kind](tests)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _source(tests: Mapping[str, Any], key: str, needed: bool = True) -> str | None:
    source = tests.get(key)
    if source is None and not needed:
        return None
    if not isinstance(source, str) or (needed and not source.strip()):
        return f"tests.{key}={str(source)[:60]!r}: give Python source"
    try:
        compile(source, key, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return f"tests.{key} does not compile: {error}"
    return None


def _asserts(tests: Mapping[str, Any]) -> str | None:
    statements = tests.get("asserts")
    if not isinstance(statements, list) or not statements or not all(isinstance(s, str) for s in statements):
        return "tests.asserts: give a list of at least one statement"
    first = next((c for s in statements if (c := _source({"asserts": s}, "asserts")) is not None), None)
    if first is None and (idle := next((s for s in statements if not _decides(s)), None)) is not None:
        return f"tests.asserts: {idle[:60]!r} asserts nothing and raises nothing; every program would pass it"
    return first or _source(tests, "setup", needed=False) or _source(tests, "epilogue", needed=False)


def _decides(statement: str) -> bool:
    """Whether it can fail: it asserts, raises or calls."""
    return any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for node in ast.walk(ast.parse(statement)))


def _check(tests: Mapping[str, Any]) -> str | None:
    return _source(tests, "test") or _entry(tests)


def _entry(tests: Mapping[str, Any]) -> str | None:
    name = tests.get("entry_point")
    return None if isinstance(name, str) and name else f"tests.entry_point={name!r}: name the function to call"


def _cases(tests: Mapping[str, Any], *keys: str) -> str | None:
    cases = tests.get("cases")
    if not isinstance(cases, list) or not cases or not all(isinstance(case, Mapping) for case in cases):
        return "tests.cases: give a list of at least one mapping"
    missing = next(
        (f"tests.cases[{i}] has no {key}" for i, c in enumerate(cases) for key in keys if key not in c), None
    )
    return missing


def _function(tests: Mapping[str, Any]) -> str | None:
    if said := _entry(tests) or _cases(tests, "expected"):
        return said
    if not isinstance(tests.get("class_name"), str | None):
        return f"tests.class_name={tests['class_name']!r}: name the class whose method is called"
    for i, case in enumerate(tests["cases"]):
        if not isinstance(case.get("args", []), list | tuple) or not isinstance(case.get("kwargs", {}), Mapping):
            return f"tests.cases[{i}]: args is a list and kwargs a mapping"
    return None


def _stdio(tests: Mapping[str, Any]) -> str | None:
    if said := _cases(tests, "input") or _source(tests, "checker", needed=False):
        return said
    if tests.get("checker") and not defines(tests["checker"], "check"):
        return "tests.checker defines no check(input, output, expected)"
    if tests.get("checker") is None and (said := _cases(tests, "output")):
        return said
    bad = next(
        (i for i, case in enumerate(tests["cases"]) if not all(_is_text(case, k) for k in ("input", "output"))), None
    )
    return None if bad is None else f"tests.cases[{bad}]: input and output are strings"


def _is_text(case: Mapping[str, Any], key: str) -> bool:
    return isinstance(case.get(key, ""), str)


_COMPLAINTS: dict[str, Callable[[Mapping[str, Any]], str | None]] = {
    "asserts": _asserts,
    "check": _check,
    "function": _function,
    "stdio": _stdio,
}


def wanted_names(tests: Mapping[str, Any]) -> tuple[str, ...]:
    """What a program has to define, as far as the tests say."""
    name = tests.get("class_name") or tests.get("entry_point")
    if name or tests["type"] != "asserts":
        return (name,) if name else ()
    return tuple(sorted(reading(tests.get("setup") or "", tuple(tests["asserts"]), None).subjects))


def _within(value: Any, least: float, most: float) -> bool:
    """No for nan."""
    return bool(least <= value <= most)


def limits_of(problem: Problem, sandbox: Limits | None) -> Limits:
    """The sandbox's limits with the problem's own before them. Raises UserError."""
    limits = sandbox or Limits()
    own = problem.metadata.get("limits") or {}
    if not isinstance(own, Mapping):
        raise UserError(f"limits={own!r}: give a mapping, such as {{'timeout_s': 5}}")
    for key, value in own.items():
        if key not in _LIMITS:
            raise UserError(f"limits.{key}={value!r}: known are {', '.join(_LIMITS)}")
        types, least, most = _LIMITS[key]
        if not isinstance(value, types) or isinstance(value, bool) or not _within(value, least, most):
            kind = "a whole number" if types == (int,) else "a number"
            raise UserError(f"limits.{key}={value!r}: give {kind} of {least:,} to {most:,}")
    return replace(limits, **own) if own else limits
