"""The command line: parse, hand over, and turn what the user can mend into one message without a traceback.

Each command imports what it needs inside itself, so that `--help` is there at once. Left out: all work.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from grpo_math import __version__
from grpo_math.arguments import parse_options
from grpo_math.cli_cluster import launch, serve
from grpo_math.cli_data import filter_samples
from grpo_math.cli_evaluate import compare, decontaminate, evaluate
from grpo_math.cli_evaluate_steps import evaluate_steps
from grpo_math.cli_judge import label, revise
from grpo_math.cli_options import (
    AtMost,
    Config,
    Memory,
    Overrides,
    Require,
    TaskFile,
    TaskOptions,
    Timeout,
    VerifierOptions,
    Workers,
    limits,
    show_log,
)
from grpo_math.cli_sample import sample
from grpo_math.cli_steps import label_steps
from grpo_math.sandbox.limits import Limits
from grpo_math.types import EngineError, PeerFailed, UserError

if TYPE_CHECKING:
    from grpo_math import config


class _Group(TyperGroup):
    """Exit code 2 for what the user can mend, 75 where nothing is left that samples (trying again may do), 130 for
    Ctrl-C; anything else is our bug and shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            # what is wrong before the ranks have joined is wrong on all of them alike: the first says it
            if os.environ.get("RANK", "0") == "0" or _joined():
                typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error
        except EngineError as error:
            if os.environ.get("RANK", "0") == "0":  # every rank has it
                typer.echo(f"error: {error}", err=True)
            raise typer.Exit(75) from error
        except PeerFailed as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # its help would swallow the brackets of [key.sub=value ...]
    pretty_exceptions_enable=False,
)

LIMITS = Limits()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"grpo-math {__version__}")
        raise typer.Exit()


@app.callback(epilog="Start with: make train, or grpo-math plan launch/gsm8k.yaml")
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    local_rank: Annotated[
        int,
        typer.Option("--local_rank", hidden=True, help="The deepspeed launcher's, which says it in LOCAL_RANK too."),
    ] = 0,
) -> None:
    """Train language models to reason from rewards that a program can check."""


@app.command()
def train(
    path: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Refuse to start if there is no checkpoint to go on from.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what the run folder has, and start over.")] = False,
) -> None:
    """Train as a configuration file says.

    A run that was interrupted goes on from its last checkpoint when the same command is given again. Everything is
    checked before the model is loaded; `grpo-math plan` shows the same checks and the arithmetic without training.

    \b
    Examples:
      grpo-math train launch/gsm8k.yaml model.path=Qwen/Qwen2.5-0.5B-Instruct optimizer.learning_rate=1e-6
      grpo-math train launch/gsm8k.yaml model.path=models/mine task.path=train.jsonl --resume
    """
    from grpo_math.config_file import load_config
    from grpo_math.preflight import preflight

    if resume and fresh:
        raise UserError("--resume goes on with a run and --fresh discards it; give one of them")
    cfg = load_config(path, overrides or [])
    if os.environ.get("RANK", "0") == "0":
        preflight(cfg, int(os.environ.get("WORLD_SIZE", "1")))
    show_log()
    from grpo_math.recipes.run import run

    run(cfg, resume="must" if resume else "never" if fresh else "auto")


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A verifier's name or ./FILE.py; all of them if left out.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Check this task's gold answers instead of the examples.")
    ] = None,
    path: TaskFile = None,
    split: Annotated[str, typer.Option(help="Which problems of the task.")] = "train",
    option: TaskOptions = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many problems of the task.")] = None,
    answer: Annotated[str | None, typer.Option(metavar="A", help="The right answer, to judge one completion.")] = None,
    completion: Annotated[str | None, typer.Option(metavar="C", help="The completion to judge.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge the answers in this file of JSON lines.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the verdicts on --pairs go.")] = None,
    set_: VerifierOptions = None,
    workers: Workers = 2,
    timeout: Timeout = None,
    memory: Memory = LIMITS.memory_mb,
    require: Require = "seccomp",
    at_most: AtMost = "namespaces",
) -> None:
    """Run verifiers on their examples, on a task's gold answers, or on answers of your own.

    With --answer and --completion, show the verdict on that one completion and how it came about. With --pairs,
    judge each line of a file: for math it has id, answer, and completion (a whole text) or candidate (an answer
    taken out already), for code id, tests, and program or completion (docs/code_verifier.md); with expected (true
    or false) and kind or category in the lines, a table tells how often the verdict is right. Exit code 1 if an
    example does not get the reward that its file states, a gold answer is refused, or a line of --pairs cannot be
    used.

    \b
    Examples:
      grpo-math verify
      grpo-math verify math --answer 1/2 --completion 'so it is \\boxed{0.5}'
      grpo-math verify --task gsm8k --path train.jsonl
      grpo-math verify ./my_verifier.py --task ./my_task.py
      grpo-math verify math --pairs answers.jsonl --out verdicts.jsonl --set tolerance=0.01
    """
    from grpo_math import verify as checks
    from grpo_math.find import list_verifiers

    timeout_s, sandbox = limits(timeout, memory, require, at_most)
    if answer is not None or completion is not None:
        if answer is None or completion is None or name is None or task is not None:
            raise UserError("to judge one completion give NAME, --answer and --completion, and no --task")
        typer.echo(checks.verify_one(name, answer, completion, parse_options("--set", set_), timeout_s, sandbox))
        return
    if pairs is not None or out is not None:
        if pairs is None or out is None or name is None or task is not None:
            raise UserError("to judge a file of answers give NAME, --pairs and --out, and no --task")
        from grpo_math.pairs import verify_pairs

        good = verify_pairs(name, pairs, out, parse_options("--set", set_), workers, timeout_s, sandbox)
    elif task is not None:
        chosen = _task(task, split, path, limit, option)
        good = checks.verify_gold(chosen, name, workers, timeout_s, parse_options("--set", set_), sandbox)
    elif set_:
        raise UserError("--set speaks of the verifier's options; give it with --task, --pairs, or --answer")
    elif path is not None or limit is not None or option:
        raise UserError("--path, --limit and --option speak of a task's problems; name the task with --task")
    else:
        good = checks.verify_examples([name] if name else list_verifiers(), workers, timeout_s, sandbox)
    if not good:
        raise typer.Exit(1)


@app.command("list")
def list_(
    what: Annotated[
        Literal["tasks", "prompts", "verifiers", "algorithms", "losses"],
        typer.Argument(help="What to list.", show_default=False),
    ],
) -> None:
    """List the tasks, their prompts, the verifiers, the algorithms, or the losses of preferences.

    \b
    Example:
      grpo-math list algorithms
    """
    from grpo_math import find
    from grpo_math.algorithms import offline_table, table
    from grpo_math.forms import forms_of

    if what == "algorithms":
        rows = [("algorithm", "advantage", "ratio", "surrogate", "reduction", "paper"), *table()]
        rows += [("",) * 6, ("algorithm", "recipe", "is short for", "", "", ""), *offline_table()]
    elif what == "losses":
        from grpo_math.preferences.table import PREFERENCES

        rows = [("loss", "reference", "learns from", "paper")]
        rows += [
            (name, "yes" if m.reference else "no", "pairs" if m.paired else "labels", m.paper)
            for name, m in PREFERENCES.items()
        ]
    elif what == "prompts":
        modules = {name: find.find_task(name) for name in find.list_tasks()}
        named = [(task, name, form) for task, module in modules.items() for name, form in forms_of(module).items()]
        rows = [("task", "prompt", "from"), *((task, name, form.source) for task, name, form in named)]
    else:
        rows = [
            (name, find.first_line(what, name))
            for name in (find.list_tasks if what == "tasks" else find.list_verifiers)()
        ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def plan(
    path: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that train.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="Ranks on each, one a GPU.")] = 1,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=1.0, metavar="GIB", help="Memory of each GPU.", show_default="this one's, or 80"),
    ] = None,
) -> None:
    """Show what a run would do and need, without starting it.

    Prints the resolved configuration, the batch arithmetic and an estimate of the peak memory, then makes the checks
    that `train` begins with. Exit code 2 if one of them fails.

    \b
    Examples:
      grpo-math plan launch/gsm8k.yaml model.path=models/mine group_size=8
      grpo-math plan launch/math_qwen2.5-7b.yaml --gpus 8 --gpu-memory 80
    """
    from grpo_math.config_file import load_config
    from grpo_math.plan import plan as report
    from grpo_math.preflight import preflight

    cfg = load_config(path, overrides or [])
    typer.echo(report(cfg, nodes * gpus, gpu_memory))
    preflight(cfg, nodes * gpus)
    typer.echo("\nThe checks that need no model pass.")


@app.command()
def plot(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR", help="Folders of runs, ended or going.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A name that ends in .png, .svg or .pdf.",
            show_default="RUN_DIR/curve.png; of several runs ./curves.png",
        ),
    ] = None,
) -> None:
    """Draw a run's curves, or those of several runs over one another.

    Accuracy and the held-out evaluations large; reward, length, entropy, groups without signal and KL small.

    \b
    Examples:
      grpo-math plot runs/gsm8k
      grpo-math plot runs/seed0 runs/seed1 runs/seed2 --out seeds.svg
    """
    from grpo_math.report.curve import curve

    typer.echo(curve(runs, out or (runs[0] / "curve.png" if len(runs) == 1 else Path("curves.png"))))


@app.command()
def doctor() -> None:
    """Show versions and devices, what is missing and how to get it.

    Exit code 1 if something is broken that training needs. Takes some seconds: torch is really imported.

    \b
    Example:
      grpo-math doctor
    """
    from grpo_math.doctor import doctor as examine

    report, works = examine()
    typer.echo(report)
    if not works:
        raise typer.Exit(1)


app.command()(evaluate)
app.command("evaluate-steps")(evaluate_steps)
app.command()(compare)
app.command()(decontaminate)
app.command()(sample)
app.command("filter")(filter_samples)
app.command()(label)
app.command()(revise)
app.command()(label_steps)
app.command()(serve)
app.command()(launch)


def _joined() -> bool:
    """Whether this process has found its fellow ranks; torch is not imported just to ask."""
    torch = sys.modules.get("torch.distributed")
    return torch is not None and torch.is_initialized()


def _task(name: str, split: str, path: str | None, limit: int | None, options: list[str] | None) -> config.Task:
    from grpo_math.evaluation.job import task_of

    return task_of(name, split, [] if path is None else [path], parse_options("--option", options), limit=limit)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode must not end a run
    app(prog_name="grpo-math")
