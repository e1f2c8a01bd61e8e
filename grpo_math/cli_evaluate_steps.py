"""The command that measures a process model on labelled steps. Left out: all work (evaluation/steps.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo_math.arguments import named_by_flags
from grpo_math.cli_options import Chat, RewardBatchTokens, RewardDtype, show_log


def evaluate_steps(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A process reward model: a folder, a Hub id, or a run's folder.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Labels of steps: of `label-steps`, TRL's stepwise form, PRM800K's or Math-Shepherd's.",
            show_default=False,
        ),
    ],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A step whose score is this or less is called wrong.")
    ] = 0.5,
    neutral: Annotated[
        Literal["right", "wrong", "unlabelled"], typer.Option(help="What PRM800K's rating 0 counts as.")
    ] = "right",
    separator: Annotated[
        str, typer.Option(help="Between steps, where a file has them without.", show_default="a line break")
    ] = "\n",
    chat: Chat = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: RewardDtype = "float32",
    batch_tokens: RewardBatchTokens = 16384,
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is measured.", show_default="runs/evaluate-steps/MODEL-FILE")
    ] = None,
) -> None:
    """Measure a process reward model on files of step labels.

    Accuracy, F1 of wrong steps and AUC of the steps, and as ProcessBench has it the F1 of the first error: how often
    the very first wrong step is named, and how often a solution without one is left in peace. step_results.json and
    step_scores.jsonl (the score of every step) go to --out.

    \b
    Examples:
      grpo-math evaluate-steps runs/prm held_out.jsonl
      grpo-math evaluate-steps DIR_OR_HUB_ID phase2_test.jsonl --neutral wrong --threshold 0.8
    """
    from grpo_math.evaluation.reward_models import Chosen
    from grpo_math.evaluation.steps import steps_command
    from grpo_math.steps.formats import Reading

    show_log()
    chosen = Chosen(chat=chat, device=device, dtype=dtype, micro_batch_tokens=batch_tokens)
    with named_by_flags():
        typer.echo(steps_command(model, files, Reading(neutral, separator), threshold, chosen, out))
