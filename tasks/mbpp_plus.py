"""MBPP+: 378 of MBPP's problems, mended, with some 35 times as many tests (Liu et al. 2023, arXiv:2305.01210).

From the Hub (evalplus/mbppplus), or with `path` from JSON lines with the same fields. Each row's `test` is a script
that goes through lists of inputs and results, MBPP's own among them; floats may be off by 1e-6. It is a test set:
without a `path` there is no other split.
"""

from __future__ import annotations

import re
from typing import Any

from grpo_math.forms import Form
from grpo_math.rows import check_split, rows
from grpo_math.tasks._code import EVALPLUS, EVALPLUS_CHAT, entry_point, fenced, newlines, readable
from grpo_math.types import Problem, UserError

VERIFIER = "code"
PROMPTS = {
    "chat@1": EVALPLUS_CHAT,
    # EvalPlus's direct completion, for base models: a docstring, after which the program is to stand
    "completion@1": Form(
        "{prompt}", chat=False, stop=("\nif __name__", "\ndef main(", "\nprint(", '\n"""', "\nassert"), source=EVALPLUS
    ),
}
HUB = "evalplus/mbppplus"
FIELDS = ("prompt", "code", "test_list", "test")
LOOP = re.compile(r"^for .+:[ \t]*$", re.MULTILINE)


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. Raises UserError."""
    if path is None:
        check_split("mbpp_plus", split, ("test",))
    return [problem(row, source) for _, source, row in rows(path, (HUB, None), split, FIELDS, lists=("test_list",))]


def problem(row: dict[str, Any], source: str) -> Problem:
    """The question is EvalPlus's: a docstring of the sentence and the first assert."""
    code = newlines(row["code"]).strip()
    asserts = [row["test_list"]] if isinstance(row["test_list"], str) else row["test_list"]
    asserts = [newlines(statement).strip() for statement in asserts]
    name = entry_point(code, asserts, source)
    if name is None:
        raise UserError(f"{source}: no one function of code is called by all of test_list; mend or delete the row")
    question = f'"""\n{row["prompt"].strip()}\n{asserts[0]}\n"""'
    test = "\n".join([*(row.get("test_imports") or ()), as_check(newlines(row["test"]), source)])
    tests = {"type": "check", "test": test, "entry_point": name}
    metadata = {"source": source, "tests": tests, "prompt": f"{question}\n", "solution": fenced(code)}
    return Problem(f"mbpp_plus/{task_number(row, source)}", "mbpp_plus", question, code, metadata)


def task_number(row: dict[str, Any], source: str) -> int:
    """2 of 2, which the Hub has, and of "Mbpp/2", which EvalPlus's own files have."""
    number = str(row.get("task_id")).rpartition("/")[2]
    if not number.isdecimal():
        raise UserError(f"{source}: task_id={row.get('task_id')!r}: give MBPP's number, such as 2 or 'Mbpp/2'")
    return int(number)


def as_check(test: str, source: str) -> str:
    """The script with its loop over the inputs, which is its last statement, inside `def check(candidate)`."""
    test = readable(test).rstrip()
    loops = list(LOOP.finditer(test))
    if len(loops) != 1:
        raise UserError(
            f"{source}: test has {len(loops)} loops that begin a line, where MBPP+ has one over inputs and results; "
            "mend or delete the row, or use the task mbpp for rows with test_list alone"
        )
    at = loops[0].start()
    loop = "\n".join(f"    {line}" for line in test[at:].split("\n"))
    return f"{test[:at]}def check(candidate):\n{loop}\n"


def gold_completion(problem: Problem) -> str:
    """The program in a fenced block."""
    return fenced(problem.answer)
