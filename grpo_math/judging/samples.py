"""Files of samples -> what a judge needs of each completion: the candidate as `grpo-math filter` reads it, its question
and its gold answer.

The files are samples.jsonl of `sample` and `evaluate`, and completions.jsonl of runs. Left out: which are judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.filtering.candidate import Candidate
from grpo_math.filtering.read import Input, read_candidates
from grpo_math.problems import refuse_another
from grpo_math.rows import read_rows
from grpo_math.types import Problem, UserError


@dataclass(frozen=True)
class Subject:
    """What a completion answers. gold: "" where nobody says."""

    question: str
    gold: str

    @property
    def values(self) -> dict[str, str]:
        return {"question": self.question, "gold": self.gold}


@dataclass(frozen=True)
class Samples:
    """subjects: by file and line of the candidate."""

    candidates: list[Candidate]
    subjects: Mapping[tuple[str, int], Subject]
    inputs: list[Input]

    def subject(self, candidate: Candidate) -> Subject:
        return self.subjects[candidate.file, candidate.line]


def read_samples(paths: Sequence[Path], problems: Sequence[Problem] = ()) -> Samples:
    """problems: where the questions are to come from instead of the samples; by id. Raises UserError, with file:line
    where a line is at fault."""
    candidates, inputs = read_candidates(paths)
    known = {problem.id: problem for problem in problems}
    subjects: dict[tuple[str, int], Subject] = {}
    kept: dict[Subject, Subject] = {}  # one for all completions of a problem
    for path in paths:
        for number, row in read_rows(path, ()):
            subject = _subject(f"{path}:{number}", row, known if problems else None)
            subjects[str(path), number] = kept.setdefault(subject, subject)
    return Samples(candidates, subjects, inputs)


def _subject(where: str, row: Mapping[str, Any], problems: Mapping[str, Problem] | None) -> Subject:
    if problems is not None:
        problem = problems.get(row["problem"])
        if problem is None:
            raise UserError(
                f"{where}: problem={row['problem']!r} is not one of --task; give the task, --path and --split that "
                "it is of"
            )
        gold = row["gold"] if isinstance(row.get("gold"), str) else None
        refuse_another(problem, where, problem.task, row["prompt"], gold)
        return Subject(problem.question, problem.answer)
    question, gold = row.get("question"), row.get("gold")
    return Subject(
        question if isinstance(question, str) and question else asked_in(row["prompt"]),
        gold if isinstance(gold, str) else "",
    )


def asked_in(prompt: str) -> str:
    """The question in a prompt: what the user said last where it is a chat as JSON, as a server's samples have it; else
    the prompt as it is, its chat template's marks included."""
    if prompt.startswith("[{"):
        try:
            turns = [turn["content"] for turn in json.loads(prompt) if turn["role"] == "user"]
        except (ValueError, KeyError, TypeError):
            return prompt
        if turns and isinstance(turns[-1], str):
            return turns[-1]
    return prompt


def texts_of(candidates: Sequence[Candidate], same: Callable[[str], str]) -> list[Candidate]:
    """Without empty completions, and one of each text: the first by the alphabet, whatever the order of the lines."""
    kept: dict[str, Candidate] = {}
    for candidate in candidates:
        if candidate.completion.strip():
            before = kept.setdefault(same(candidate.completion), candidate)
            if candidate.completion < before.completion:
                kept[same(candidate.completion)] = candidate
    return list(kept.values())
