"""APPS: 10,000 problems of contests and interviews, in three difficulties, judged by tests (5,000 to train on).

Hendrycks et al. 2021, arXiv:2105.09938. From the Hub (codeparrot/apps), or with `path` from JSON lines with the same
fields. A problem is a program that reads standard input, or a function or method with a given name. Rows without tests
are of no use: they are named and left out like every problem that the verifier cannot judge.

Stricter than APPS's own script, which takes lines in any order and whole numbers that are nearly right: here lines
have an order, whole numbers are exact, and what is expected with a decimal point may be off by 1e-6, relative or
absolute. As there, its imports run before every program, a list may be returned as a tuple, and an expected list may
hold the result as its first element. Keys of objects stay strings, as JSON has them.
"""

from __future__ import annotations

from typing import Any

from grpo_math.find import nearest
from grpo_math.forms import Form
from grpo_math.rows import check_split, rows
from grpo_math.tasks._code import fenced, parsed, stdio_tests
from grpo_math.types import Problem, UserError

VERIFIER = "code"
VARIANT = "difficulty"  # the option that NAME:VARIANT sets
SOURCE = "APPS, eval/generate_gpt_codes.py at 1eecd13"
PROMPTS = {
    # the question ends with the starter code and the published line on the format; the last sentence is ours
    "chat@1": Form("{question}\n\nAnswer with the whole program in one ```python block."),
    # the published words, for base models, which begin another question when they are done
    "base@1": Form("\nQUESTION:\n{question}\nANSWER:\n", chat=False, stop=("\nQUESTION:",), source=SOURCE),
}
HUB = "codeparrot/apps"
DIFFICULTIES = ("introductory", "interview", "competition")
# names that solutions take for granted, since APPS's script has them: eval/testing_util.py. Not numpy, which it has as
# np: a program that needs it imports it, and for the others it would take longer than they do
IMPORTS = """\
import sys
import time
import itertools
from itertools import accumulate, product, permutations, combinations
import collections
from collections import Counter, OrderedDict, deque, defaultdict, ChainMap
from functools import lru_cache
import math
from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2
import fractions
from typing import List, Tuple
import random
import heapq
from heapq import *
"""
STDIO_NAMES = f"{IMPORTS}stdin = sys.stdin\nstdout = sys.stdout\n"  # what it has before programs on standard input
SETUP = """\
import json
import sys

sys.set_int_max_str_digits(0)
FOUND = json.loads({found!r})

def args(number):
    return FOUND["inputs"][number]

def plain(value):
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

def right(value, number):
    value, expected = plain(value), FOUND["outputs"][number]
    return value == expected or (isinstance(expected, list) and len(expected) > 0 and value == expected[0])
"""


def load(split: str, path: str | None = None, *, difficulty: str | None = None) -> list[Problem]:
    """All problems of `split` (train or test), or those of one difficulty; `path` may contain {split}. Raises
    UserError.

    difficulty: introductory, interview or competition."""
    if difficulty is not None and difficulty not in DIFFICULTIES:
        raise UserError(
            f"task.options.difficulty={difficulty!r}: apps has {', '.join(DIFFICULTIES)}; set "
            f"task.options.difficulty={nearest(str(difficulty), DIFFICULTIES) or DIFFICULTIES[0]}"
        )
    if path is None:
        check_split("apps", split, ("train", "test"))
    found = rows(path, (HUB, None), split, ("question",), files=(f"{split}.jsonl",))
    return [problem(split, row, source) for _, source, row in found if difficulty in (None, row.get("difficulty"))]


def problem(split: str, row: dict[str, Any], source: str) -> Problem:
    number = row.get("problem_id", row.get("id"))  # `id` in the files, `problem_id` in what the loading script made
    if not isinstance(number, int | str) or isinstance(number, bool):
        raise UserError(f"{source}: problem_id={number!r}: give the problem's number")
    tests = tests_of(row, source)
    starter = row.get("starter_code") or ""
    words = "Use Standard Input format" if tests["type"] == "stdio" else "Use Call-Based format"
    question = row["question"] + (f"\n{starter}" if starter else "") + f"\n{words}"
    metadata = {"source": source, "tests": tests, "difficulty": row.get("difficulty"), "url": row.get("url")}
    return Problem(f"apps/{split}/{number}", "apps", question, first_solution(row, source), metadata)


def first_solution(row: dict[str, Any], source: str) -> str:
    solutions = parsed(source, "solutions", row["solutions"]) if row.get("solutions") else []
    if not isinstance(solutions, list) or not all(isinstance(solution, str) for solution in solutions):
        raise UserError(f"{source}: 'solutions' is no list of programs; mend or delete the row")
    return solutions[0] if solutions else ""


def tests_of(row: dict[str, Any], source: str) -> dict[str, Any]:
    """Without cases where the row has none: the verifier's check says so and leaves the problem out."""
    found = parsed(source, "input_output", row["input_output"]) if row.get("input_output") else {}
    if not isinstance(found, dict):
        raise UserError(f"{source}: 'input_output' is no object with inputs and outputs; mend or delete the row")
    inputs, outputs = found.get("inputs") or [], found.get("outputs") or []
    if len(inputs) != len(outputs):
        raise UserError(f"{source}: {len(inputs)} inputs and {len(outputs)} outputs; mend or delete the row")
    if name := found.get("fn_name"):
        in_class = "class Solution" in (row.get("starter_code") or "")
        return call_tests(name, in_class, row["input_output"], len(inputs))
    return stdio_tests(list(map(text, inputs)), list(map(text, outputs)), STDIO_NAMES, tolerance="1e-6")


def text(value: Any) -> str:
    """Some rows have lines instead of a text."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def call_tests(name: str, in_class: bool, found: str, count: int) -> dict[str, Any]:
    """An assert for each call. The JSON stays text until the tests run: as Python source it would be far larger."""
    called = f"Solution().{name}" if in_class else name
    return {
        "type": "asserts",
        "setup": SETUP.replace("{found!r}", repr(found)),
        "asserts": [f"assert right({called}(*args({number})), {number})" for number in range(count)],
        "entry_point": "Solution" if in_class else name,
        "prompt": IMPORTS,
    }


def gold_completion(problem: Problem) -> str:
    """The first of the solutions in a fenced block; an empty one where there is none."""
    return fenced(problem.answer)
