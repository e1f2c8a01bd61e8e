"""What a run can be refused for before anything is loaded: the checks that `train` begins with, and `plan` ends with.

Imports neither torch nor transformers. Left out: whatever only a loaded model can tell, such as the true lengths of
prompts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from grpo_math import config
from grpo_math.examples.read import TARGETS, check_files, kind_of
from grpo_math.exclude import check_exclude
from grpo_math.find import find_task, nearest, verifier_of
from grpo_math.forms import form_of
from grpo_math.learned.checks import check_learned
from grpo_math.model_at import model_size
from grpo_math.problems import load_arguments
from grpo_math.sandbox import isolation
from grpo_math.sandbox.client import SandboxError
from grpo_math.scoring import check_options, runs_programs
from grpo_math.steps.split import boundary
from grpo_math.types import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")  # any of them will do
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def preflight(cfg: config.Common, ranks: int = 1) -> None:
    """Every check of a run that needs no model. Raises UserError with a line for each thing that is wrong."""
    complaints = []
    checks: list[Callable[[], object]] = [
        lambda: _check_rewards(cfg),
        lambda: _check_data(cfg),
        lambda: _check_credit(cfg),
        lambda: check_model(cfg.model.path) if cfg.model.path else None,
        lambda: _check_context(cfg),
        lambda: check_writable(cfg.run_dir),
        lambda: check_ranks_fit(cfg, ranks),
    ]
    if cfg.evaluation.task is None and (cfg.evaluation.every or isinstance(cfg, config.REST)):
        checks.append(lambda: held_out_task(cfg))
    for key, task in (("evaluation.task", cfg.evaluation.task), ("task", cfg.task)):
        if task is not None:
            checks[:0] = [partial(check_task, task, f"{key}.path"), partial(_check_form, task, key)]
    for check in checks:
        try:
            check()
        except UserError as error:
            if str(error) not in complaints:  # an unknown task is also one whose verifier cannot be found
                complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))


def held_out_task(cfg: config.Common) -> config.Task:
    """The test split of the training task, which a single file does not have."""
    task = cfg.task
    assert task is not None, "a run without a task names evaluation.task"
    why = "rest measures each round" if isinstance(cfg, config.REST) else "evaluation.every is set"
    if task.path is not None and "{split}" not in task.path:
        raise UserError(
            f"{why}, but task.path={task.path} is one file and evaluation would be on the training "
            "problems; write the split into it, as in DIR/gsm8k_{split}.jsonl, or set evaluation.task"
        )
    return task.model_copy(update={"split": "test", "exclude": None})


def _check_form(task: config.Task, key: str = "task") -> None:
    name, form = form_of(task, find_task(task.name))
    if form.stop:
        raise UserError(
            f"{key}.prompt={task.prompt}: {name} needs its completions cut at {', '.join(map(repr, form.stop))}, and a "
            f"run keeps every token that was sampled; leave {key}.prompt out, and use it with grpo-math evaluate"
        )


def check_ranks_fit(cfg: config.Common, ranks: int) -> None:
    """The backend and the engine can be run by so many processes."""
    split = cfg.rollout.vllm.tensor_parallel
    if ranks > 1 and cfg.backend.name == "torch":
        raise UserError(
            f"backend.name=torch trains in one process, and there are {ranks}; set backend.name=deepspeed, or start "
            "only one"
        )
    if cfg.rollout.engine == "vllm" and ranks % split:
        raise UserError(
            f"rollout.vllm.tensor_parallel={split} does not divide the {ranks} ranks, over which vLLM in process "
            "splits the model; start a multiple of it, or set rollout.vllm.tensor_parallel=1"
        )


def check_packages(cfg: config.Common) -> None:
    """What the configuration needs beyond the package's own dependencies is installed here."""
    needed = {
        "vllm": cfg.rollout.engine == "vllm",
        "deepspeed": cfg.backend.name == "deepspeed",
        "peft": cfg.model.lora.rank > 0,
    }
    for name, wanted in needed.items():
        if wanted and find_spec(name) is None:
            how = "bash launch/install_vllm.sh" if name == "vllm" else f"pip install {name}"
            raise UserError(f"this run needs {name}, which is not installed: {how}, or see grpo-math doctor")


def all_rewards(cfg: config.Common) -> list[config.Reward | config.LearnedReward]:
    """The rewards of the config, or the task's own verifier; none where there is no task. Beside reward models alone
    the task's verifier judges too, with a weight of 0: it is seen where what the models reward is no longer right."""
    rewards, task = cfg.rewards or [], cfg.task or cfg.evaluation.task
    if task is None or config.verifiers_in(rewards):
        return list(rewards)
    return [*rewards, config.Reward(verifier=verifier_of(task.name), weight=0.0 if rewards else 1.0)]


def resolve_rewards(cfg: config.Common) -> list[config.Reward]:
    """The verifiers among all_rewards; learned rewards are learned/'s."""
    return config.verifiers_in(all_rewards(cfg))


def _check_data(cfg: config.Common) -> None:
    """The files are there, and the rules are rules of what is to be made of them. Their lines are read by `train`."""
    if not isinstance(cfg, config.SFT | config.Preference | config.RewardCommon) or cfg.data is None:
        return
    check_files(cfg.data.files)
    if isinstance(cfg, config.RewardCommon) and cfg.held_out.files:
        check_files(cfg.held_out.files, "held_out.files")
    if cfg.data.filter is not None:
        cfg.data.filter.settings(TARGETS[kind_of(cfg)])


def _check_credit(cfg: config.Common) -> None:
    """Of what an advantage or a further loss is made of: the files, folders and names that GRPO's sections give."""
    if not isinstance(cfg, config.GRPO):
        return
    if cfg.critic.path is not None:
        check_model(cfg.critic.path, "critic.path")
    if cfg.pretraining is not None:
        check_files(cfg.pretraining.data.files, "pretraining.data.files")
        if cfg.pretraining.data.filter is not None:
            cfg.pretraining.data.filter.settings("sft")
    try:
        boundary(cfg.vine.boundary)
    except UserError as error:
        raise UserError(f"vine.boundary={cfg.vine.boundary}: {error}") from None


def _check_rewards(cfg: config.Common) -> None:
    for number, reward in enumerate(all_rewards(cfg)):
        if isinstance(reward, config.Reward):
            check_options(reward)
        else:
            if reward.url is None:
                check_model(reward.model, f"rewards.{number}.model")
            check_learned(reward, f"rewards.{number}")
    isolation_of(cfg)


def isolation_of(cfg: config.Common) -> isolation.Report | None:
    """How programs of the model are kept apart here; None where no verifier runs any. Raises UserError where that is
    less than sandbox.require."""
    if not any(runs_programs(reward) for reward in resolve_rewards(cfg)):
        return None
    try:
        return isolation.report(cfg.sandbox.require, cfg.sandbox.at_most)
    except SandboxError as error:
        raise UserError(str(error)) from error


def check_task(task: config.Task, key: str = "task.path") -> None:
    """The task is there, takes the options, has the prompt, and its file is there."""
    module = find_task(task.name)
    load_arguments(task, module.load)
    form_of(task, module)
    check_exclude(task.exclude or (), key.replace("path", "exclude"))
    # {split} is filled in by the task
    path = Path(task.path.replace("{split}", task.split)) if task.path else None
    if path is not None and not path.exists():
        guess = nearest(path.name, [p.name for p in path.parent.glob("*")])
        meant = f"; did you mean {path.parent / guess}?" if guess else f" (looked from {Path.cwd()})"
        raise UserError(f"{key}={task.path}: there is no such file{meant}")


def check_model(path: str, key: str = "model.path") -> None:
    """A folder has all that transformers will ask for. A Hub id is not looked up."""
    folder, key = Path(path), f"{key}={path}"
    if not folder.is_dir():
        if is_path(path):
            guess = nearest(folder.name, [p.name for p in folder.parent.glob("*") if p.is_dir()])
            meant = f"did you mean {folder.parent / guess}?" if guess else "make or download it first, or give a Hub id"
            raise UserError(f"{key}: there is no such folder; {meant}")
        if not HUB_ID.fullmatch(path):
            raise UserError(f"{key}: is neither a folder nor a Hub id such as Qwen/Qwen2.5-0.5B-Instruct")
        return
    present = {p.name for p in folder.iterdir()}
    if "config.json" not in present and "adapter_config.json" not in present:
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f"did you mean {folder / inside[-1]}?" if inside else "give one made by save_pretrained"
        raise UserError(f"{key}: the folder has no config.json, so it is no model; {hint}")
    if not present.intersection(TOKENIZER_FILES):
        raise UserError(
            f"{key}: the folder has no tokenizer ({', '.join(TOKENIZER_FILES)}); save one into it with "
            "tokenizer.save_pretrained(folder)"
        )
    if not any(name.endswith((".safetensors", ".bin")) for name in present):
        raise UserError(
            f"{key}: the folder has no weights (*.safetensors); save them with model.save_pretrained(folder)"
        )


def is_path(path: str) -> bool:
    """Whether a folder was meant: from_pretrained takes what is not there for a Hub id, and speaks of the network."""
    parent = Path(path).parent
    return path.startswith((".", "/")) or path.count("/") > 1 or bool(parent.name and parent.is_dir())


def check_writable(path: str | Path, key: str = "run_dir") -> None:
    """A file can be made in the folder that is or will be there. Nothing stays behind."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{key}={path}: {folder} is a file; give another folder, or move the file away")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={path}: cannot write in {folder} ({error.strerror}); mend its permissions or give another folder"
        ) from error


def _check_context(cfg: config.Common) -> None:
    size = model_size(cfg.model)
    if cfg.samples and size is not None and size.context and cfg.sampling.max_tokens >= size.context:
        raise UserError(
            f"sampling.max_tokens={cfg.sampling.max_tokens} leaves no room for a prompt in the model's context of "
            f"{size.context} tokens; set sampling.max_tokens={size.context // 2} or less"
        )
