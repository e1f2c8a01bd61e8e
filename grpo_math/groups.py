"""Prompts and completions -> scored Groups."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_math.ranks import Ranks
from grpo_math.scoring import Scorer, ScoringError
from grpo_math.types import Completion, Group, Prompt, Scored, UserError

ALONE = Ranks()


class TooManyErrors(UserError):
    """A verifier failed on more completions than scoring.max_error_share allows. `groups` holds the step's samples."""

    def __init__(self, message: str, groups: list[Group]) -> None:
        super().__init__(message)
        self.groups = groups


def score_groups(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    ranks: Ranks = ALONE,
) -> list[Group]:
    """Each rank judges its share, and gets the verdicts of all."""
    items = [
        (prompt.problem, completion) for prompt, row in zip(prompts, completions, strict=True) for completion in row
    ]

    def grouped(scored: Sequence[Scored]) -> list[Group]:
        scores = iter(scored)
        return [
            Group(p, tuple(row), tuple(next(scores) for _ in row)) for p, row in zip(prompts, completions, strict=True)
        ]

    scored = ranks.gather(ranks.together(lambda: scorer.judge(ranks.share(items))))
    try:
        scorer.refuse_too_many_errors(items, scored)
        return grouped(scored)
    except ScoringError as error:
        # the run stops, but what was sampled is written down first: it shows what the verifier stumbled over
        raise TooManyErrors(str(error), grouped(error.scored)) from error
