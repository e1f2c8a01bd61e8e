"""The command that labels the steps of samples: label-steps. Left out: all work (steps/)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo_math.arguments import named_by_flags, parse_options
from grpo_math.cli_options import (
    AtMost,
    BaseURL,
    Concurrency,
    Device,
    Dtype,
    Engine,
    EngineOptions,
    KeyName,
    MaxRows,
    MaxTokens,
    Memory,
    RequestTimeout,
    Require,
    Retries,
    Seed,
    Split,
    TaskFile,
    TaskName,
    TaskOptions,
    Temperature,
    Timeout,
    TopK,
    TopP,
    Verifier,
    VerifierOptions,
    Workers,
    limits,
    refuse_half_a_server,
    show_log,
)
from grpo_math.sandbox.limits import Limits

LIMITS = Limits()


def label_steps(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAMPLES",
            help="samples.jsonl of `sample` or `evaluate`, completions.jsonl of runs.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="What goes on: a folder, a Hub id, a run's folder, or a server's name."),
    ],
    task: TaskName,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the labels go, as JSON lines.")],
    method: Annotated[
        Literal["every", "binary"], typer.Option(help="Go on from every step, or search for the first wrong one.")
    ] = "every",
    n: Annotated[int, typer.Option("-n", min=1, help="Continuations of each step.")] = 8,
    budget: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most so many continuations a problem.")
    ] = None,
    boundary: Annotated[
        str,
        typer.Option(metavar="NAME", help="What ends a step: blank_line, newline, step, sentence or marker:TEXT."),
    ] = "newline",
    labels: Annotated[
        Literal["soft", "hard"], typer.Option(help="The share of continuations that are right, or whether any is.")
    ] = "hard",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many completions, the first ones.")] = None,
    split: Split = "train",
    path: TaskFile = None,
    option: TaskOptions = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of the task's prompts; it says where completions stop.")
    ] = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    engine: Engine = "hf",
    engine_option: EngineOptions = None,
    base_url: BaseURL = None,
    key_env: KeyName = "OPENAI_API_KEY",
    concurrency: Concurrency = 32,
    request_s: RequestTimeout = 600.0,
    retries: Retries = 6,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard what an interrupted call has, and start over.")
    ] = False,
    verifier: Verifier = None,
    set_: VerifierOptions = None,
    workers: Workers = 2,
    timeout: Timeout = None,
    memory: Memory = LIMITS.memory_mb,
    require: Require = "seccomp",
    at_most: AtMost = "namespaces",
    max_rows: MaxRows = 512,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Label each step of verified samples by how often a model that goes on from it gets the problem right.

    Nobody has to read the solutions: the task's verifier judges the continuations, as in Math-Shepherd. `every` asks
    behind each step; `binary` looks for the first wrong step of each wrong completion, with far fewer continuations.
    FILE has prompt, completions (the steps) and labels, for recipe: process_reward_model and for TRL; counts has how
    many continuations of each step are right, of how many. FILE.summary.json says how it was made. Interrupted, the
    same command goes on where it stopped.

    \b
    Examples:
      grpo-math label-steps samples.jsonl --model DIR --task gsm8k --engine vllm --out steps.jsonl
      grpo-math label-steps samples.jsonl --model DIR --task gsm8k --labels soft -n 16 --budget 512 --out steps.jsonl
      grpo-math label-steps completions.jsonl --model runs/mine --task arithmetic --method binary --out steps.jsonl
    """
    from grpo_math.evaluation.ask import Arguments
    from grpo_math.steps.label import Labelling, label_command

    show_log()
    refuse_half_a_server(engine, base_url)
    timeout_s, sandbox = limits(timeout, memory, require, at_most)
    arguments = Arguments(
        model=model, task=task, split=split, n=n, limit=limit, path=[path] if path else [], option=option or [],
        prompt=[prompt] if prompt else [], temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens,
        seed=seed, engine=engine, engine_options=parse_options("--engine-option", engine_option), base_url=base_url,
        key_env=key_env, concurrency=concurrency, request_s=request_s, retries=retries, verifier=verifier,
        verifier_options=set_ or [], workers=workers, timeout_s=timeout_s, sandbox=sandbox, max_rows=max_rows,
        dtype=dtype, device=device,
    )  # fmt: skip
    with named_by_flags():
        typer.echo(label_command(samples, arguments, Labelling(method, boundary, labels, budget), out, fresh))
