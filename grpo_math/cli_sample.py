"""The command that samples a model and has every completion judged, to learn from. Left out: all work (evaluation/)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grpo_math.arguments import named_by_flags, parse_options
from grpo_math.cli_options import (
    AtMost,
    BaseURL,
    Chat,
    Concurrency,
    Device,
    Dtype,
    Engine,
    EngineOptions,
    Fresh,
    KeyName,
    Limit,
    MaxRows,
    MaxTokens,
    Memory,
    OptionsOfTasks,
    PromptNames,
    RequestTimeout,
    Require,
    Retries,
    Samples,
    Seed,
    Split,
    TaskNames,
    TaskPaths,
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


def sample(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a Hub id, a run's folder, or the name of a server's model.",
            show_default=False,
        ),
    ],
    task: TaskNames,
    split: Split = "train",
    n: Samples = 8,
    limit: Limit = None,
    path: TaskPaths = None,
    option: OptionsOfTasks = None,
    prompt: PromptNames = None,
    chat: Chat = None,
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
    out: Annotated[
        Path | None, typer.Option(help="Folder for the samples.", show_default="runs/sample/MODEL-TASK")
    ] = None,
    fresh: Fresh = False,
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
    """Sample a model on tasks and have every completion judged: data for `filter`, and so for training.

    Each line of samples.jsonl in --out has the prompt, the completion, its tokens and their log-probabilities, the
    verdict, and what made it: model, version, sampling, verifier. Interrupted, the same command goes on where it
    stopped. completions.jsonl of a training run has the same fields, and `filter` takes it in its place.

    \b
    Examples:
      grpo-math sample Qwen/Qwen2.5-0.5B-Instruct --task gsm8k -n 8 --engine vllm --out samples
      grpo-math sample runs/mine --task arithmetic --limit 1000 -n 16 --max-tokens 64 --out samples
      grpo-math filter samples/samples.jsonl --to pairs --out pairs.jsonl
    """
    from grpo_math.evaluation import sample as work
    from grpo_math.evaluation.ask import Arguments

    show_log()
    refuse_half_a_server(engine, base_url)
    timeout_s, sandbox = limits(timeout, memory, require, at_most)
    with named_by_flags():
        work.command(Arguments(
            model=model, task=task, split=split, n=n, limit=limit, path=path or [], option=option or [],
            prompt=prompt or [], chat=chat, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens,
            seed=seed, engine=engine, engine_options=parse_options("--engine-option", engine_option),
            base_url=base_url, key_env=key_env, concurrency=concurrency, request_s=request_s, retries=retries,
            out=out, fresh=fresh, verifier=verifier, verifier_options=set_ or [], workers=workers,
            timeout_s=timeout_s, sandbox=sandbox, max_rows=max_rows, dtype=dtype, device=device,
        ))  # fmt: skip
