"""A solution in steps, as a file has it: text, and how right each step is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from grpo_math.examples.raw import Text


@dataclass(frozen=True, slots=True)
class StepExample:
    """steps: K >= 1, as they stand in the solution, with the white space between them: they join to its text. labels:
    K, from 0 (wrong) to 1 (right), None where nobody says.

    where: file:line, for people. problem, task, gold (the right answer): "" where the file does not say."""

    where: str
    prompt: Text
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]
    problem: str = ""
    task: str = ""
    gold: str = ""

    @property
    def text(self) -> str:
        return "".join(self.steps)

    @property
    def ends(self) -> tuple[int, ...]:
        """Where each step ends, in characters of the text."""
        return tuple(accumulate(map(len, self.steps)))

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)
