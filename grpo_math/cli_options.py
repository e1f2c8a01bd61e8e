"""Arguments that several commands of the command line share, and what becomes of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.types import UserError

if TYPE_CHECKING:
    from grpo_math import config

LIMITS = Limits()

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as launch/gsm8k.yaml.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.SUB=VALUE", help="What to change in it; later ones win.", show_default=False),
]
TaskName = Annotated[str, typer.Option("--task", metavar="NAME", help="A task's name (see `list tasks`) or ./FILE.py.")]
TaskFile = Annotated[str | None, typer.Option("--path", metavar="FILE", help="The task's problems, from this file.")]
TaskOptions = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the task; may be repeated.")
]
VerifierOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the verifier; may be repeated.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes that run the verifier.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="S",
        help="Seconds until a verifier is killed, and CPU seconds until a judged program is.",
        show_default="2 for a verifier, 10 for a judged program",
    ),
]
Memory = Annotated[int, typer.Option(min=64, metavar="MB", help="Megabytes that a judged program may take.")]
Level = Literal["namespaces", "seccomp", "process"]
Require = Annotated[Level, typer.Option(help="The least isolation that a judged program must have; strongest first.")]
AtMost = Annotated[Level, typer.Option(help="The best isolation to try; the best that works here is used.")]


def limits(timeout: float | None, memory: int, require: Level, at_most: Level) -> tuple[float, config.Sandbox]:
    """Seconds for a verifier, and what a program that it judges may use."""
    from grpo_math import config

    if LEVELS.index(at_most) < LEVELS.index(require):
        raise UserError(f"--at-most {at_most} is less isolation than --require {require}; give --require {at_most} too")
    sandbox = config.Sandbox(timeout_s=timeout or LIMITS.timeout_s, memory_mb=memory, require=require, at_most=at_most)
    return timeout or config.Scoring().timeout_s, sandbox


def show_log() -> None:
    """Our own remarks go to the terminal; those of the libraries stay at warnings."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("grpo_math").setLevel(logging.INFO)
