"""The commands that measure: evaluate, compare, decontaminate. Left out: all work (evaluation/, decontaminate.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo_math.arguments import named_by_flags, parse_options, whole_numbers
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
    RewardBatchTokens,
    RewardChat,
    RewardDtype,
    Samples,
    Seed,
    Split,
    TaskOptions,
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
    split: Split = "test",
    n: Samples = 8,
    k: Annotated[str | None, typer.Option(metavar="K,K", help="Which pass@k.", show_default="1 and n")] = None,
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
    reward_model: Annotated[
        list[str] | None,
        typer.Option(
            "--reward-model",
            metavar="[NAME=]DIR",
            help="Have this reward model score every completion: best of k, weighted majority, AUC. Repeatable.",
        ),
    ] = None,
    aggregate: Annotated[
        Literal["last", "min", "prod", "mean"] | None,
        typer.Option(help="What a process model's steps come to.", show_default="min"),
    ] = None,
    boundary: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where a step ends: blank_line, newline, step, sentence, marker, marker:TEXT.",
            show_default="what the process model was trained with, or newline",
        ),
    ] = None,
    reward_chat: RewardChat = None,
    reward_device: Annotated[
        str, typer.Option(help="cpu, cuda or cuda:N; of the reward models.", show_default="as --device")
    ] = "auto",
    reward_dtype: RewardDtype = "float32",
    reward_batch_tokens: RewardBatchTokens = 16384,
) -> None:
    """Measure pass@k of a model on one or several tasks, or of completions that exist.

    Interrupted, the same command goes on where it stopped. results.json, samples.jsonl (every completion and its
    verdict), prompts.jsonl, run.json and curve.png go to --out. The lines of --samples have `problem` and `completion`
    as samples.jsonl has them, or HumanEval's `task_id` and `completion`, or EvalPlus's `task_id` and `solution`. With
    --reward-model, outcome or process, samples.jsonl has their scores too, and the table what they choose.

    \b
    Examples:
      grpo-math evaluate Qwen/Qwen2.5-0.5B-Instruct --task gsm8k,math500 -n 4 --limit 200 --engine vllm
      grpo-math evaluate runs/mine --task aime24 -n 64 --k 1,8,64 --temperature 0.6 --max-tokens 8192
      grpo-math evaluate my-model --task humaneval --engine openai --base-url http://localhost:8000/v1
      grpo-math evaluate --samples samples.jsonl --task humaneval
      grpo-math evaluate --gold --task mbpp --path mbpp.jsonl
      grpo-math evaluate runs/mine --task math500 -n 64 --k 1,8,64 --reward-model runs/orm --reward-model runs/prm
    """
    from grpo_math.evaluation import ask
    from grpo_math.evaluation.reward_models import Chosen

    show_log()
    one = [bool(model), samples is not None, gold]
    if sum(one) != 1 and not (show_prompt and not model and samples is None):
        raise UserError("give one of MODEL, --samples FILE and --gold")
    refuse_half_a_server(engine, base_url)
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
            reward_model=reward_model or (),
            reward=Chosen(aggregate, boundary, reward_chat, reward_device, reward_dtype, reward_batch_tokens),
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
