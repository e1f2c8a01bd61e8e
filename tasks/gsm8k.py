"""GSM8K: grade-school word problems with a number for an answer (Cobbe et al. 2021, arXiv:2110.14168).

From the Hub (openai/gsm8k), or with `path` from JSON lines with the same fields. The worked solution goes into the
metadata, calculator annotations `<<48/2=24>>` included: taking those out is the business of whoever trains on it.
"""

from __future__ import annotations

from grpo_math.rows import check_split, rows
from grpo_math.tasks._prompts_math import GSM8K_PROMPTS
from grpo_math.types import Problem, UserError

VERIFIER = "math"
PROMPTS = GSM8K_PROMPTS


def load(split: str, path: str | None = None) -> list[Problem]:
    """All problems of `split` (train or test); `path` may contain {split}. Raises UserError."""
    if path is None:
        check_split("gsm8k", split, ("train", "test"))
    problems = []
    for number, source, row in rows(path, ("openai/gsm8k", "main"), split, ("question", "answer")):
        solution, mark, gold = row["answer"].rpartition("####")
        answer = gold.strip().replace(",", "")
        if not mark or not answer:
            raise UserError(
                f"{source}: the answer {row['answer'][-40:]!r} does not end in '#### NUMBER', which is where GSM8K has "
                "the final answer; add it, or write a task of your own for data of another form"
            )
        metadata = {"source": source, "solution": solution.strip()}
        problems.append(Problem(f"gsm8k/{split}/{number}", "gsm8k", row["question"], answer, metadata))
    return problems
