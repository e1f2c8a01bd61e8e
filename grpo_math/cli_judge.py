"""The commands that ask a language model: label, revise. Left out: all work (judging/)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grpo_math.arguments import named_by_flags, parse_options
from grpo_math.cli_options import (
    BaseURL,
    Chat,
    Concurrency,
    Device,
    Dtype,
    EngineOptions,
    KeyName,
    MaxRows,
    RequestTimeout,
    Retries,
    Seed,
    Split,
    TaskFile,
    TaskOptions,
    refuse_half_a_server,
    show_log,
)

if TYPE_CHECKING:
    from grpo_math.types import Problem

Samples = Annotated[
    list[Path],
    typer.Argument(
        metavar="SAMPLES",
        help="samples.jsonl of `sample` or `evaluate`, completions.jsonl of runs.",
        show_default=False,
    ),
]
JudgeModel = Annotated[
    str,
    typer.Option("--judge", metavar="MODEL", help="A server's name for it; a folder or Hub id with --engine hf, vllm."),
]
JudgeEngine = Annotated[Literal["hf", "vllm", "openai"], typer.Option(help="What runs the judge.")]
RequestFields = Annotated[
    list[str] | None,
    typer.Option(
        "--request-field", metavar="KEY=VALUE", help="A further field of each request to a server. Repeatable."
    ),
]
TextTokens = Annotated[int, typer.Option(min=1, help="Where a text of the judge is cut.")]
TextTemperature = Annotated[float, typer.Option(min=0.0, help="Of the judge's texts; probabilities are those at 1.")]
Rate = Annotated[
    float | None, typer.Option(min=0.001, metavar="N", help="Requests a minute, of all that share --cache.")
]
MaxRequests = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Stop after so many requests, those of earlier calls included.")
]
MaxTotalTokens = Annotated[int | None, typer.Option(min=1, metavar="N", help="The same in tokens, read and written.")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", help="Where replies are kept.", show_default="OUT.judge")
]
Partial = Annotated[bool, typer.Option("--partial", help="With a budget that is spent: write what there is.")]
OfTask = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="Take question and answer from this task, not from the samples."),
]


def label(
    samples: Samples,
    judge: JudgeModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the pairs go, as JSON lines.")],
    template: Annotated[
        str, typer.Option(metavar="NAME", help="What the judge is asked: prefer, prefer_math or ./FILE.yaml.")
    ] = "prefer",
    rubric: Annotated[
        str | None, typer.Option(metavar="FILE", help="What counts, as text, instead of the template's.")
    ] = None,
    read: Annotated[
        Literal["logprobs", "text"], typer.Option(help="The verdict: from its token's probabilities, or as written.")
    ] = "logprobs",
    reason: Annotated[bool, typer.Option("--reason", help="Have the judge give its reasons first.")] = False,
    pairs_per_problem: Annotated[int, typer.Option(min=1, metavar="K", help="Comparisons of a problem.")] = 1,
    tie: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Drop what is no further than this from a probability of 1/2.")
    ] = 0.05,
    min_mass: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Least probability of the verdict's tokens together.")
    ] = 0.1,
    max_tokens: TextTokens = 512,
    temperature: TextTemperature = 0.0,
    seed: Seed = 0,
    task: OfTask = None,
    split: Split = "train",
    path: TaskFile = None,
    option: TaskOptions = None,
    engine: JudgeEngine = "openai",
    engine_option: EngineOptions = None,
    base_url: BaseURL = None,
    key_env: KeyName = "OPENAI_API_KEY",
    concurrency: Concurrency = 32,
    request_s: RequestTimeout = 120.0,
    retries: Retries = 6,
    chat: Chat = None,
    request_field: RequestFields = None,
    requests_per_minute: Rate = None,
    max_requests: MaxRequests = None,
    max_total_tokens: MaxTotalTokens = None,
    cache: CacheFolder = None,
    partial: Partial = False,
    max_rows: MaxRows = 64,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Have a language model say which of two completions is better, and write pairs to learn from (RLAIF).

    Each pair is shown in both orders, and the two probabilities are averaged. FILE has prompt, chosen and rejected, as
    `filter --to pairs` writes them, and the probability that the chosen is better; FILE.summary.json has the counts and
    all that decides them. Interrupted, the same command asks only what it has no reply to yet.

    \b
    Examples:
      grpo-math label samples.jsonl --judge my-model --base-url http://localhost:8000/v1 --out pairs.jsonl
      grpo-math label samples.jsonl --judge DIR --engine vllm --reason --pairs-per-problem 4 --out pairs.jsonl
      grpo-math label samples.jsonl --judge my-model --base-url URL --max-requests 1000 --partial --out pairs.jsonl
    """
    from grpo_math.judging.judge import Arguments
    from grpo_math.judging.label import Labelling, label_command
    from grpo_math.judging.template import load_template, rubric_of
    from grpo_math.judging.verdict import Reading

    show_log()
    refuse_half_a_server(engine, base_url)
    arguments = Arguments(
        model=judge, engine=engine, base_url=base_url, key_env=key_env, concurrency=concurrency, request_s=request_s,
        retries=retries, chat=chat, request_field=parse_options("--request-field", request_field),
        engine_options=parse_options("--engine-option", engine_option), max_rows=max_rows, dtype=dtype, device=device,
        requests_per_minute=requests_per_minute, max_requests=max_requests, max_total_tokens=max_total_tokens,
        cache=cache,
    )  # fmt: skip
    with named_by_flags():
        typer.echo(label_command(
            samples, arguments, load_template(template, "preference", rubric_of(rubric)),
            Reading(read, reason, max_tokens, temperature, seed, min_mass),
            Labelling(pairs_per_problem, tie, seed, partial), out, _problems(task, split, path, option),
        ))  # fmt: skip


def revise(
    samples: Samples,
    judge: JudgeModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the revisions go, to imitate, as JSON lines.")],
    constitution: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Principles, one a line, or a YAML list.", show_default="the template's, of clair"
        ),
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where pairs of revision and original go; none if left out.")
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="NAME", help="How it is asked: constitutional, clair (least changes) or ./FILE.yaml.")
    ] = "constitutional",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Critiques and revisions, one after the other.")] = 1,
    per_problem: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="At most so many completions of a problem.")
    ] = None,
    max_tokens: TextTokens = 1024,
    temperature: TextTemperature = 0.0,
    seed: Seed = 0,
    task: OfTask = None,
    split: Split = "train",
    path: TaskFile = None,
    option: TaskOptions = None,
    engine: JudgeEngine = "openai",
    engine_option: EngineOptions = None,
    base_url: BaseURL = None,
    key_env: KeyName = "OPENAI_API_KEY",
    concurrency: Concurrency = 32,
    request_s: RequestTimeout = 120.0,
    retries: Retries = 6,
    chat: Chat = None,
    request_field: RequestFields = None,
    requests_per_minute: Rate = None,
    max_requests: MaxRequests = None,
    max_total_tokens: MaxTotalTokens = None,
    cache: CacheFolder = None,
    partial: Partial = False,
    max_rows: MaxRows = 64,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Have a language model criticise each completion by a principle and write it anew (Constitutional AI).

    A principle is drawn for each round. FILE has prompt and completion, as `filter --to sft` writes them, with the
    original, the principles and the critiques; --pairs has the revision as chosen and the original as rejected.
    Interrupted, the same command asks only what it has no reply to yet.

    \b
    Examples:
      grpo-math revise samples.jsonl --judge my-model --base-url URL --constitution principles.txt --out revised.jsonl
      grpo-math revise samples.jsonl --judge DIR --engine vllm --template clair --out sft.jsonl --pairs pairs.jsonl
      grpo-math evaluate --samples revised.jsonl --task gsm8k --partial --out verified
    """
    from grpo_math.judging.judge import Arguments
    from grpo_math.judging.revise import Revising
    from grpo_math.judging.revise_files import revise_command
    from grpo_math.judging.template import load_template

    show_log()
    refuse_half_a_server(engine, base_url)
    arguments = Arguments(
        model=judge, engine=engine, base_url=base_url, key_env=key_env, concurrency=concurrency, request_s=request_s,
        retries=retries, chat=chat, request_field=parse_options("--request-field", request_field),
        engine_options=parse_options("--engine-option", engine_option), max_rows=max_rows, dtype=dtype, device=device,
        requests_per_minute=requests_per_minute, max_requests=max_requests, max_total_tokens=max_total_tokens,
        cache=cache,
    )  # fmt: skip
    settings = Revising(rounds, per_problem, max_tokens, temperature, seed, partial)
    with named_by_flags():
        typer.echo(revise_command(
            samples, constitution, arguments, load_template(template, "revision"), settings, out, pairs,
            _problems(task, split, path, option),
        ))  # fmt: skip


def _problems(task: str | None, split: str, path: str | None, options: list[str] | None) -> list[Problem]:
    """Those that questions and answers are taken from; none where the samples have them."""
    from grpo_math.evaluation.job import task_of
    from grpo_math.problems import load_problems
    from grpo_math.types import UserError

    if task is None:
        if path is not None or options:
            raise UserError("--path and --option speak of a task's problems; name the task with --task")
        return []
    found = load_problems(task_of(task, split, [] if path is None else [path], parse_options("--option", options)))
    if found.problems is None:
        raise UserError(f"--task {task} has no end, and the samples' problems cannot be looked up in it; leave it out")
    return found.problems
