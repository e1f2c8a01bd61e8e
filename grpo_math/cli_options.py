"""Arguments that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
