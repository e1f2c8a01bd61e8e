"""Tasks' own answers in a model's place: what a perfect model would be given, and so a test of task and verifier."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import ModuleType
from typing import Any

from grpo_math.evaluation.sampler import Answered, Asked, Sample
from grpo_math.find import user_code
from grpo_math.forms import Form
from grpo_math.types import Problem, Sampling

BLOCK = 256


def gold_completion(module: ModuleType) -> Callable[[Problem], str]:
    """A task's own way of writing down its answer, or else the answer in a box."""
    return getattr(module, "gold_completion", lambda problem: f"\\boxed{{{problem.answer}}}")


class GoldSampler:
    """tasks: the modules by label."""

    context: int | None = None

    def __init__(self, tasks: Mapping[str, ModuleType]) -> None:
        self.tasks = tasks

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked:
        return Asked(task, number, problem, form.plain(problem))

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        for start in range(0, len(asked), BLOCK):
            yield [(a.number, [self._answer(a)] * sampling.n) for a in asked[start : start + BLOCK]]

    def _answer(self, asked: Asked) -> Sample:
        if not asked.problem.answer.strip():
            return Sample("", None, "stop", "the data has no answer to it")
        with user_code(f"gold_completion of task {asked.task}"):
            return Sample(gold_completion(self.tasks[asked.task])(asked.problem), None, "stop")

    def identity(self) -> dict[str, Any]:
        return {"engine": "gold"}

    def close(self) -> None:
        pass
