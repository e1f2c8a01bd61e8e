"""LiveCodeBench: problems of programming contests, each with its date, judged by hidden tests (code generation, lite).

Jain et al. 2024, arXiv:2403.07974. From the Hub (livecodebench/code_generation_lite), or with `path` from JSON lines
with the same fields. A problem is a program that reads standard input, or a method of a class Solution. It is a test
set: without a `path` there is no other split.

As in LiveCodeBench's own runner lines are compared without white space around them and numbers by value, and its
imports run before every program. Unlike there a method that returns a tuple for a list is wrong, and the time is that
of `sandbox.timeout_s`: for each case on standard input, for all cases together of a method. Left out: gold answers, of
which there are none.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import zlib
from datetime import date
from typing import Any

from grpo_math.forms import Form
from grpo_math.rows import check_split, rows
from grpo_math.tasks._code import parsed, stdio_tests
from grpo_math.types import Problem, UserError

VERIFIER = "code"
VARIANT = "release"  # the option that NAME:VARIANT sets
PROMPTS = {
    # what any chat model is given; the question ends with FORMATS and the starter code
    "chat@1": Form(
        "### Question:\n{question}\n\n### Answer: (use the provided format with backticks)\n\n",
        system="You are an expert Python programmer. You will be given a question (problem specification) and will "
        "generate a correct Python program that matches the specification and passes all tests.",
        source="LiveCodeBench, lcb_runner/prompts/code_generation.py at 28fef95",
    )
}
FORMATS = {
    "function": "You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters.",
    "stdio": "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the "
    "sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it "
    "reads the inputs, runs the algorithm and writes output to STDOUT.",
}
HUB = "livecodebench/code_generation_lite"
RELEASES = 6
RELEASE = re.compile(r"(release_)?v([1-9])(?:_v([1-9]))?")
FIELDS = ("question_content", "question_id", "public_test_cases", "private_test_cases")
# what stands before every method and program in the runner, lcb_runner/evaluation/testing_util.py; later names hide
# earlier ones, so the order counts
_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json"),
)
IMPORTS = (
    "".join(f"from {name} import *\n" for name in (*_MODULES, "builtins", "typing"))
    + "".join(f"import {name}\n" for name in _MODULES)
    + "sys.setrecursionlimit(50000)\n"
)


def load(
    split: str,
    path: str | None = None,
    *,
    release: str = "v6",
    from_date: str | None = None,
    until_date: str | None = None,
) -> list[Problem]:
    """The problems of a release whose contest was from `from_date` to `until_date`, both included. Raises UserError.

    release: as LiveCodeBench names them. "v6" is what the sixth release added, "v4_v6" what the fourth to the sixth
    did, "release_v6" all up to the sixth; of a `path` all rows are taken. Dates as 2025-01-31: problems after a model's
    training data ends are the ones that it cannot have seen."""
    first, last = day("from_date", from_date) or date.min, day("until_date", until_date) or date.max
    files = files_of(release)
    if path is None:
        check_split("livecodebench", split, ("test",))
    problems, dates = [], []
    for _, source, row in rows(path, (HUB, None), split, FIELDS, files=files):
        held = day_of(row, source)
        dates.append(held)
        if first <= held <= last:
            problems.append(problem(row, held, source))
    if not problems:
        raise UserError(
            f"task.options: from_date={from_date}, until_date={until_date} leave no problem of livecodebench; the "
            f"{len(dates)} contests were from {min(dates)} to {max(dates)}"
        )
    return problems


def files_of(release: str) -> list[str]:
    """ "v2_v3" -> ["test2.jsonl", "test3.jsonl"]"""
    found = RELEASE.fullmatch(str(release))
    if found is not None:
        whole, first, last = found.group(1), int(found.group(2)), int(found.group(3) or found.group(2))
        if first <= last <= RELEASES and not (whole and found.group(3)):
            return [f"test{number if number > 1 else ''}.jsonl" for number in range(1 if whole else first, last + 1)]
    raise UserError(
        f"task.options.release={release!r}: give v1 to v{RELEASES} for what one release added, v4_v{RELEASES} for "
        f"several, or release_v{RELEASES} for all up to that one"
    )


def day(option: str, value: object) -> date | None:
    try:
        return None if value is None else date.fromisoformat(str(value)[:10])
    except ValueError as error:
        raise UserError(f"task.options.{option}={value!r}: give a date such as 2025-01-31 ({error})") from error


def day_of(row: dict[str, Any], source: str) -> date:
    try:
        return date.fromisoformat(str(row.get("contest_date"))[:10])  # text, or what `datasets` made of it
    except ValueError as error:
        raise UserError(
            f"{source}: contest_date={row.get('contest_date')!r} is no date such as 2025-01-31; mend or delete the row"
        ) from error


def problem(row: dict[str, Any], held: date, source: str) -> Problem:
    cases = [*cases_of(row, "public_test_cases", source), *cases_of(row, "private_test_cases", source)]
    name = (parsed(source, "metadata", row.get("metadata") or "{}") or {}).get("func_name")
    tests = (
        method_tests(name, cases, source)
        if name
        else stdio_tests([case["input"] for case in cases], [case["output"] for case in cases], IMPORTS)
    )
    starter = row.get("starter_code") or "# YOUR CODE HERE"
    question = f"{row['question_content']}\n\n### Format: {FORMATS[tests['type']]}\n```python\n{starter}\n```"
    metadata = {
        "source": source,
        "tests": tests,
        "date": held.isoformat(),
        "platform": row.get("platform"),
        "difficulty": row.get("difficulty"),
    }
    return Problem(f"livecodebench/{row['question_id']}", "livecodebench", question, "", metadata)


def cases_of(row: dict[str, Any], field: str, source: str) -> list[dict[str, str]]:
    """The cases in a field: JSON, or JSON in a pickle in zlib in base64, as hidden ones are kept. Raises UserError."""
    text = row[field].strip()
    cases = parsed(source, field, text if text.startswith("[") else unpacked(text, field, source))
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and isinstance(case.get("input"), str) and isinstance(case.get("output"), str)
        for case in cases
    ):
        raise UserError(f"{source}: {field!r} is no list of cases with input and output; mend or delete the row")
    return cases


class _Plain(pickle.Unpickler):
    """Text in a pickle, and nothing that could run."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


def unpacked(text: str, field: str, source: str) -> Any:
    try:
        return _Plain(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))).load()
    # a pickle that is cut off or no pickle raises any of the last four; bad base64 is a ValueError
    except (zlib.error, pickle.UnpicklingError, ValueError, EOFError, LookupError, AttributeError, TypeError) as error:
        raise UserError(
            f"{source}: {field!r} is neither JSON nor text in a pickle in zlib in base64 ({error}); mend or delete the "
            "row"
        ) from error


def method_tests(name: str, cases: list[dict[str, str]], source: str) -> dict[str, Any]:
    """Calls of Solution().name: an argument a line, as JSON."""
    calls = [
        {
            "args": [parsed(source, "input of a case", line) for line in case["input"].split("\n")],
            "expected": parsed(source, "output of a case", case["output"]),
        }
        for case in cases
    ]
    return {"type": "function", "class_name": "Solution", "entry_point": name, "cases": calls, "prompt": IMPORTS}
