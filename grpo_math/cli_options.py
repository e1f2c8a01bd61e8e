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

# of the commands that sample a model: evaluate, sample
TaskNames = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="NAME,NAME",
        help="Names of tasks (see `list tasks`), ./FILE.py, or NAME:VARIANT such as reasoning_gym:chain_sum.",
        show_default=False,
    ),
]
TaskPaths = Annotated[
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
OptionsOfTasks = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of all tasks; TASK.KEY=VALUE of one. Repeatable."),
]
Split = Annotated[str, typer.Option(help="Which problems of the tasks.")]
Samples = Annotated[int, typer.Option("-n", min=1, help="Completions sampled for each problem.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many problems a task, the first ones.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="With or without a chat template.", show_default="as it is")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens of this probability.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many likeliest tokens; 0 is off.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Where a completion is cut.", show_default="2048, or what the context leaves"),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same completions.")]
Engine = Annotated[Literal["hf", "vllm", "openai"], typer.Option(help="What samples.")]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="KEY=VALUE",
        help="An argument of vllm.LLM, such as tensor_parallel_size=4. Repeatable.",
    ),
]
BaseURL = Annotated[
    str | None, typer.Option("--base-url", metavar="URL", help="The server of --engine openai, up to and with /v1.")
]
KeyName = Annotated[str, typer.Option("--key-env", metavar="NAME", help="The environment variable that has its key.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests to it at a time.")]
RequestTimeout = Annotated[
    float, typer.Option("--request-timeout", min=1.0, metavar="S", help="Seconds it has for one completion.")
]
Retries = Annotated[int, typer.Option(min=0, help="Times that a request is made again.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Discard what that folder has, and start over.")]
Verifier = Annotated[str | None, typer.Option(metavar="NAME", help="Instead of the tasks' own.")]
MaxRows = Annotated[int, typer.Option(min=1, help="Completions decoded side by side; lower it to save memory.")]
Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is faster on a GPU.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; of --engine hf.")]

# of reward models
RewardChat = Annotated[
    bool | None,
    typer.Option(
        "--reward-chat/--no-reward-chat",
        help="Whether reward models read a conversation in their chat template.",
        show_default="as each was trained",
    ),
]
RewardDtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights of reward models.")]
RewardBatchTokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Tokens that a reward model reads at once; lower it to save memory.")
]


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


def refuse_half_a_server(engine: str, base_url: str | None) -> None:
    if (engine == "openai") != (base_url is not None):
        raise UserError("--engine openai and --base-url URL go together")
