"""The command that turns verified samples into data to learn from. Left out: all work (filtering/)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def filter_samples(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAMPLES",
            help="samples.jsonl of `sample` or `evaluate`, completions.jsonl of runs.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Literal["sft", "pairs", "kto"],
        typer.Option(help="Completions to imitate, pairs of a better and a worse one, or single ones with a label."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where they go, as JSON lines.")],
    min_reward: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="The least reward of what is to be imitated, chosen or labelled true.",
            show_default="1 for sft and kto",
        ),
    ] = None,
    max_reward: Annotated[
        float | None,
        typer.Option(metavar="R", help="The highest of what is rejected or labelled false.", show_default="0 for kto"),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="Q", help="--min-reward as this quantile of all rewards, as in ReST."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="sft: keep these verdicts, such as correct.")
    ] = None,
    pass_rate: Annotated[
        str | None, typer.Option(metavar="LO:HI", help="Keep problems with this share of correct completions.")
    ] = None,
    finished: Annotated[
        bool | None,
        typer.Option(
            "--finished/--truncated", help="Drop, or keep, what was cut off.", show_default="--finished for sft"
        ),
    ] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0, metavar="N", help="Drop shorter completions.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Drop longer completions.")] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Keep completions in which this is found; ^ and $ are the text's ends."),
    ] = None,
    dedup: Annotated[
        Literal["text", "answer", "none"],
        typer.Option(help="Keep one of each problem's completions with the same text, or final answer."),
    ] = "text",
    per_problem: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="At most so many of a problem; for kto of each label.")
    ] = None,
    choose: Annotated[
        Literal["random", "shortest", "longest", "diverse"] | None,
        typer.Option(help="Which --per-problem K.", show_default="random"),
    ] = None,
    pair: Annotated[
        Literal["best-worst", "all", "hard", "rso"] | None,
        typer.Option(
            help="How pairs are made: extremes, all with the gap, nearest in wording, or rejection sampling.",
            show_default="best-worst",
        ),
    ] = None,
    gap: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="ETA", help="Least difference of a pair's rewards.", show_default="any"),
    ] = None,
    pairs_per_problem: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="At most so many pairs of a problem.", show_default="1 for best-worst"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="BETA", help="rso: how far it strays from the best.", show_default="0.5")
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="rso: how many of a problem are accepted.", show_default="8")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 0,
) -> None:
    """Turn verified samples into data for sft, for the DPO family (pairs), or for KTO.

    Undecided verdicts are dropped first; the rules then follow in a fixed order, and a table tells what each dropped.
    FILE has prompt and completion, prompt, chosen and rejected, or prompt, completion and label, as `datasets` and TRL
    take them, and where each came from; FILE.summary.json has the rules, their counts and the hashes.

    \b
    Examples:
      grpo-math filter runs/mine/completions.jsonl --to sft --per-problem 4 --choose diverse --out sft.jsonl
      grpo-math filter samples.jsonl --to pairs --pair hard --pass-rate 0.1:0.9 --pairs-per-problem 2 --out pairs.jsonl
      grpo-math filter a.jsonl b.jsonl --to pairs --pair rso --temperature 0.5 --out rso.jsonl
      grpo-math filter samples.jsonl --to kto --out kto.jsonl
    """
    from grpo_math.filtering.command import filter_command
    from grpo_math.filtering.settings import Settings, pass_rate_of

    settings = Settings(
        to=to, min_reward=min_reward, max_reward=max_reward, quantile=quantile,
        reason=None if reason is None else tuple(name.strip() for name in reason.split(",")),
        pass_rate=None if pass_rate is None else pass_rate_of(pass_rate),
        finished=finished, min_tokens=min_tokens, max_tokens=max_tokens, format=format, dedup=dedup,
        per_problem=per_problem, choose=choose, pair=pair, gap=gap, temperature=temperature, candidates=candidates,
        pairs_per_problem=pairs_per_problem, seed=seed,
    )  # fmt: skip
    typer.echo(filter_command(samples, settings, out))
