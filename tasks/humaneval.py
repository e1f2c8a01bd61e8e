"""HumanEval: 164 functions to write from their head and docstring, judged by unit tests.

Chen et al. 2021, arXiv:2107.03374. From the Hub (openai/openai_humaneval), or with `path` from JSON lines with the same
fields. It is a test set: without a `path` there is no other split to train on. Left out: the further tests of
HumanEval+, which a file with the same fields can bring.
"""

from __future__ import annotations

from grpo_math.find import nearest
from grpo_math.rows import check_split, rows
from grpo_math.types import Problem, UserError

VERIFIER = "code"
TEMPLATE = "{question}"
FORMS = {
    # the raw prompt, to be continued: the paper's own form, for base models
    "completion": "{prompt}",
    # the words of EvalPlus (Liu et al. 2023, arXiv:2305.01210) for chat models
    "chat": "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
    "\n```\n{prompt}\n```",
}
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def load(split: str, path: str | None = None, *, form: str = "chat") -> list[Problem]:
    """All problems; `path` may contain {split}. form: "chat" or "completion", how it is put. Raises UserError.

    With "completion" set task.chat=false where the tokenizer has a chat template. metadata["prompt"] is the raw prompt
    in either form, for an answer that only continues it."""
    if form not in FORMS:
        raise UserError(
            f"task.options.form={form!r}: humaneval has the forms {' and '.join(FORMS)}; set "
            f"task.options.form={nearest(str(form), FORMS) or 'chat'}"
        )
    if path is None:
        check_split("humaneval", split, ("test",))
    problems = []
    for _, source, row in rows(path, ("openai/openai_humaneval", None), split, FIELDS):
        prompt = row["prompt"]
        tests = {"type": "check", "test": row["test"], "entry_point": row["entry_point"], "prompt": prompt}
        # chat models are given the prompt without the blank lines around it, base models all of it
        question = FORMS[form].replace("{prompt}", prompt if form == "completion" else prompt.strip())
        metadata = {"source": source, "tests": tests, "prompt": prompt}
        problems.append(Problem(row["task_id"], "humaneval", question, row["canonical_solution"], metadata))
    return problems


def gold_completion(problem: Problem) -> str:
    """The whole function in a fenced block."""
    return f"```python\n{problem.metadata['prompt']}{problem.answer}\n```"
