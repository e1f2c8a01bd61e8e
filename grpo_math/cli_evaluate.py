"""The commands that measure: evaluate, compare, decontaminate. Left out: all work (evaluation/, decontaminate.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo_math.arguments import named_by_flags, parse_options, whole_numbers
from grpo_math.cli_options import (
    AtMost,
    Memory,
    Require,
    TaskOptions,
    Timeout,
    VerifierOptions,
    Workers,
    limits,
    show_log,
)
from grpo_math.sandbox.limits import Limits
from grpo_math.types import UserError

LIMITS = Limits()
Tasks = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME,NAME",
        help="Names of tasks (see `list tasks`), ./FILE.py, or NAME:VARIANT such as reasoning_gym:chain_sum.",
        show_default="with --samples, what the file says",
    ),
]
Paths = Annotated[
    list[str] | None,
    typer.Option(
        "--path",
        metavar="FILE",
        help="Problems from this file, in which {task} and {split} stand for names; TASK=FILE for one of several.",
    ),
]
PromptNames = Annotated[
    list[str] | None,
    typer.Option("--prompt", metavar="NAME", help="Which of the task's prompts; TASK=NAME for one of several tasks."),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of all tasks; TASK.KEY=VALUE of one. Repeatable."),
]


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A folder, a Hub id, a run's folder, or the name of a server's model.",
            show_default=False,
        ),
    ] = None,
    task: Tasks = None,
    split: Annotated[str, typer.Option(help="Which problems of the tasks.")] = "test",
    n: Annotated[int, typer.Option("-n", min=1, help="Completions sampled for each problem.")] = 8,
    k: Annotated[str | None, typer.Option(metavar="K,K", help="Which pass@k.", show_default="1 and n")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many problems a task, the first ones.")] = None,
    path: Paths = None,
    option: Options = None,
    prompt: PromptNames = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="With or without a chat template.", show_default="as it is")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens of this probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from so many likeliest tokens; 0 is off.")] = 0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Where a completion is cut.", show_default="2048, or what the context leaves"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same completions.")] = 0,
    engine: Annotated[Literal["hf", "vllm", "openai"], typer.Option(help="What samples.")] = "hf",
    engine_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument of vllm.LLM, such as tensor_parallel_size=4. Repeatable."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="The server of --engine openai, up to and with /v1.")
    ] = None,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that has its key.")
    ] = "OPENAI_API_KEY",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests to it at a time.")] = 32,
    request_s: Annotated[
        float, typer.Option("--request-timeout", min=1.0, metavar="S", help="Seconds it has for one completion.")
    ] = 600.0,
    retries: Annotated[int, typer.Option(min=0, help="Times that a request is made again.")] = 6,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Judge the completions of this file; no model is loaded."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="With --samples: problems without any are left out, not refused.")
    ] = False,
    gold: Annotated[bool, typer.Option("--gold", help="Judge the tasks' own answers; no model is loaded.")] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print just what the model reads of each task's first problem.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for what is measured.", show_default="runs/evaluate/MODEL-TASK"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what that folder has, and start over.")] = False,
    verifier: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the tasks' own.")] = None,
    set_: VerifierOptions = None,
    workers: Workers = 2,
    timeout: Timeout = None,
    memory: Memory = LIMITS.memory_mb,
    require: Require = "seccomp",
    at_most: AtMost = "namespaces",
    max_rows: Annotated[
        int, typer.Option(min=1, help="Completions decoded side by side; lower it to save memory.")
    ] = 512,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is faster on a GPU.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; of --engine hf.")] = "auto",
) -> None:
    """Measure pass@k of a model on one or several tasks, or of completions that exist.

    Interrupted, the same command goes on where it stopped. results.json, samples.jsonl (every completion and its
    verdict), prompts.jsonl, run.json and curve.png go to --out. The lines of --samples have `problem` and `completion`
    as samples.jsonl has them, or HumanEval's `task_id` and `completion`, or EvalPlus's `task_id` and `solution`.

    \b
    Examples:
      grpo-math evaluate Qwen/Qwen2.5-0.5B-Instruct --task gsm8k,math500 -n 4 --limit 200 --engine vllm
      grpo-math evaluate runs/mine --task aime24 -n 64 --k 1,8,64 --temperature 0.6 --max-tokens 8192
      grpo-math evaluate my-model --task humaneval --engine openai --base-url http://localhost:8000/v1
      grpo-math evaluate --samples samples.jsonl --task humaneval
      grpo-math evaluate --gold --task mbpp --path mbpp.jsonl
    """
    from grpo_math.evaluation import ask

    show_log()
    one = [bool(model), samples is not None, gold]
    if sum(one) != 1 and not (show_prompt and not model and samples is None):
        raise UserError("give one of MODEL, --samples FILE and --gold")
    if (engine == "openai") != (base_url is not None):
        raise UserError("--engine openai and --base-url URL go together")
    timeout_s, sandbox = limits(timeout, memory, require, at_most)
    with named_by_flags():
        ask.command(ask.Arguments(
            model=model, task=task, split=split, n=n, k=k, limit=limit, path=path or [], option=option or [],
            prompt=prompt or [], chat=chat, temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens,
            seed=seed, engine=engine, engine_options=parse_options("--engine-option", engine_option),
            base_url=base_url, key_env=key_env, concurrency=concurrency,
            request_s=request_s, retries=retries, samples=samples, partial=partial, gold=gold,
            show_prompt=show_prompt, out=out, fresh=fresh, verifier=verifier, verifier_options=set_ or [],
            workers=workers, timeout_s=timeout_s, sandbox=sandbox, max_rows=max_rows, dtype=dtype, device=device,
        ))  # fmt: skip


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders of `grpo-math evaluate`.", show_default=False)
    ],
    k: Annotated[
        str | None, typer.Option(metavar="K,K", help="Which pass@k.", show_default="1 and the largest of all")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Problems shown that were won, and that were lost.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling, and of which problems are shown.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json, which has the same figures.")] = None,
) -> None:
    """Compare evaluations of the same problems: each with the first.

    For each task the difference with a paired bootstrap interval over problems, how many problems were won and lost,
    and a sample of each. What else than the model differs is listed.

    \b
    Example:
      grpo-math compare runs/evaluate/base runs/evaluate/trained --k 1,8
    """
    from grpo_math.evaluation.compare import compare_command

    typer.echo(compare_command(runs, None if k is None else whole_numbers("--k", k), out, examples, seed))


def decontaminate(
    train: Annotated[
        str, typer.Argument(metavar="TASK", help="The training problems' task (see `list tasks`) or ./FILE.py.")
    ],
    against: Annotated[str, typer.Option(metavar="NAME,NAME", help="The benchmarks' tasks.")],
    split: Annotated[str, typer.Option(help="Which problems to look through.")] = "train",
    path: Annotated[str | None, typer.Option(metavar="FILE", help="Those problems, from this file.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many of them, the first ones.")] = None,
    option: TaskOptions = None,
    against_split: Annotated[str, typer.Option(help="Which problems of the benchmarks.")] = "test",
    against_path: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="The benchmarks' problems, with {task} and {split}, or as TASK=FILE."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Words in a row that two problems must share.")] = 13,
    min_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Of the benchmark's problem that must be shared; 0.5 leaves out phrases."),
    ] = 0.0,
    max_common: Annotated[
        int, typer.Option(min=1, help="What more problems than this have in common is a phrase, and does not count.")
    ] = 10,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the problems found go.")] = Path("exclude.jsonl"),
) -> None:
    """List training problems that share long passages with a benchmark.

    The file is one for task.exclude, which leaves those problems out of training. Reworded copies are beyond this.

    \b
    Examples:
      grpo-math decontaminate gsm8k --against gsm8k,math500 --out exclude.jsonl
      grpo-math train launch/gsm8k.yaml model.path=models/mine task.exclude=exclude.jsonl
    """
    from grpo_math.decontaminate import decontaminate_command
    from grpo_math.evaluation.job import for_labels, label_of, names_of, task_of

    options = parse_options("--option", option)
    with named_by_flags():
        own = task_of(train, split, [] if path is None else [path], options, limit=limit)
        names = {label_of(name): name for name in names_of("--against", against)}
        paths = for_labels(against_path or [], list(names))
        others = {
            label: task_of(name, against_split, paths[label], {}, flag="--against-path")
            for label, name in names.items()
        }
        typer.echo(decontaminate_command(own, others, n, min_share, max_common, out))
