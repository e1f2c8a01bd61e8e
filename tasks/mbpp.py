"""MBPP: 974 short programs to write from a sentence and three asserts, which are also what judges them.

Austin et al. 2021, arXiv:2108.07732. From the Hub (google-research-datasets/mbpp), or with `path` from JSON lines with
the same fields. Left out: `challenge_test_list`, which the paper's figures leave out too.
"""

from __future__ import annotations

from typing import Any

from grpo_math.forms import Form
from grpo_math.rows import check_split, rows
from grpo_math.tasks._code import MBPP_SHOTS, entry_point, fenced, mbpp_question, newlines
from grpo_math.types import Problem, UserError

VERIFIER = "code"
SOURCE = "Austin et al. 2021, arXiv:2108.07732"
PROMPTS = {
    # the question is the paper's own words, which show the tests; the last sentence is ours
    "tests@1": Form("{question}\n\nAnswer with the whole program in one ```python block.", source=SOURCE),
    # the paper's form, for base models; separated by a blank line as in lm-evaluation-harness
    "3shot@1": Form(MBPP_SHOTS + "{question}\n[BEGIN]\n", chat=False, stop=("[DONE]",), source=SOURCE),
}
# the paper's split, by task_id
SPLITS = {"prompt": range(1, 11), "test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}


def load(split: str, path: str | None = None) -> list[Problem]:
    """The problems of `split`: train, validation, test, or the ten of prompt. Raises UserError.

    A `path` without {split} in it is one file with all rows, of which those are taken whose task_id is of the split; a
    file for each split, named by a path with {split}, is taken as it is."""
    one_file = path is not None and "{split}" not in path
    if path is None or one_file:
        check_split("mbpp", split, tuple(SPLITS))
    problems = []
    hub, fields = ("google-research-datasets/mbpp", "full"), ("text", "code", "test_list")
    for _, source, row in rows(path, hub, split, fields, lists=("test_list",)):
        number = task_id(row, source)
        if not one_file or number in SPLITS[split]:
            problems.append(problem(number, row, source))
    if one_file and not problems:
        ids = SPLITS[split]
        raise UserError(
            f"task.path={path} has no row of the split {split!r}, which is task_id {ids[0]} to {ids[-1]}; choose "
            "another split, or name a file for each split as task.path=NAME_{split}.jsonl"
        )
    return problems


def task_id(row: dict[str, Any], source: str) -> int:
    number = row.get("task_id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{source}: task_id={number!r}: give MBPP's number, from which the split follows")
    return number


def problem(number: int, row: dict[str, Any], source: str) -> Problem:
    code, setup = newlines(row["code"]).rstrip(), newlines(row.get("test_setup_code") or "").strip()
    asserts = [row["test_list"]] if isinstance(row["test_list"], str) else row["test_list"]
    asserts = [newlines(statement).strip() for statement in asserts]
    tests: dict[str, Any] = {"type": "asserts", "asserts": asserts}
    if (name := entry_point(code, asserts, source)) is not None:
        tests["entry_point"] = name
    if setup:
        # Tasks 367 and 927, the only ones with a set-up: it builds trees, named root, root1 and root2, of the class
        # Node that the program has to bring. So it runs after the program and beside it, not before.
        tests["epilogue"] = setup
    question = mbpp_question(row["text"].strip(), asserts)
    metadata = {"source": source, "tests": tests, "solution": fenced(code)}
    return Problem(f"mbpp/{number}", "mbpp", question, code, metadata)


def gold_completion(problem: Problem) -> str:
    """The program in a fenced block."""
    return fenced(problem.answer)
