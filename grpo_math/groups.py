"""Prompts and completions -> scored Groups."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_math.scoring import Scorer, ScoringError
from grpo_math.types import Completion, Group, Prompt, Scored, UserError


class TooManyErrors(UserError):
    """A verifier failed on more completions than scoring.max_error_share allows. `groups` holds the step's samples."""

    def __init__(self, message: str, groups: list[Group]) -> None:
        super().__init__(message)
        self.groups = groups


def score_groups(scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]]) -> list[Group]:
    items = [
        (prompt.problem, completion) for prompt, row in zip(prompts, completions, strict=True) for completion in row
    ]

    def grouped(scored: Sequence[Scored]) -> list[Group]:
        scores = iter(scored)
        return [
            Group(p, tuple(row), tuple(next(scores) for _ in row)) for p, row in zip(prompts, completions, strict=True)
        ]

    try:
        return grouped(scorer.score(items))
    except ScoringError as error:
        # the run stops, but what was sampled is written down first: it shows what the verifier stumbled over
        raise TooManyErrors(str(error), grouped(error.scored)) from error
