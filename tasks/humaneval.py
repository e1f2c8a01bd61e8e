"""HumanEval: 164 functions to write from their head and docstring, judged by unit tests.

Chen et al. 2021, arXiv:2107.03374. From the Hub (openai/openai_humaneval), or with `path` from JSON lines with the same
fields. It is a test set: without a `path` there is no other split to train on. The further tests of HumanEval+ are the
task humaneval_plus.
"""

from __future__ import annotations

from collections.abc import Iterator

from grpo_math.forms import Form
from grpo_math.rows import check_split, rows
from grpo_math.tasks._code import CODEX_STOP, EVALPLUS_CHAT, readable
from grpo_math.types import Problem

VERIFIER = "code"
PROMPTS = {
    "chat@1": EVALPLUS_CHAT,
    # the raw head, to be continued: the paper's own form, for base models
    "completion@1": Form("{prompt}", chat=False, stop=CODEX_STOP, source="Chen et al. 2021, arXiv:2107.03374"),
}
HUB = "openai/openai_humaneval"
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems; `path` may contain {split}. Raises UserError."""
    return list(problems_of("humaneval", HUB, split, path))


def problems_of(task: str, hub: str, split: str, path: str | None) -> Iterator[Problem]:
    """The problems of a data set with HumanEval's fields. Raises UserError.

    The question is the head of the function without the blank lines around it. metadata["prompt"] is all of it, for the
    form `completion`, and for an answer that only continues it."""
    if path is None:
        check_split(task, split, ("test",))
    for _, source, row in rows(path, (hub, None), split, FIELDS):
        prompt = row["prompt"]
        tests = {"type": "check", "test": readable(row["test"]), "entry_point": row["entry_point"], "prompt": prompt}
        metadata = {"source": source, "tests": tests, "prompt": prompt}
        yield Problem(row["task_id"], task, prompt.strip(), row["canonical_solution"], metadata)


def gold_completion(problem: Problem) -> str:
    """The whole function in a fenced block."""
    return f"```python\n{problem.metadata['prompt']}{problem.answer}\n```"
