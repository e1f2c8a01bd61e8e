"""A tiny setting for runs with credit assignment and a critic: a model that writes lines, its verifier, reward models.

As a script it trains each YAML file that it is given, one after the other: processes that take seconds to start, and
DeepSpeed in them, then serve several runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from grpo_math import config
from grpo_math.config_file import load_config
from grpo_math.ranks import join, leave
from grpo_math.recipes.run import _run, run
from grpo_math.value_model import ValueKind, load_value_model
from tests.offline import of_recipe
from tests.tiny import save_tiny

TASK = '''
"""Three lines of digits; right with a 1 among them."""
from grpo_math.types import Problem
VERIFIER = "{verifier}"
TEMPLATE = "{{question}}"
def load(split, path=None):
    names = [f"{{i}}+{{j}}=" for i in range(1, 7) for j in range(4)]
    return [Problem(f"{{split}}/{{n}}", "digits", n, "1", {{"solution": f"{{i % 3}}\\n{{2 + i % 2}}{{i % 4}}\\n5"}})
            for i, n in enumerate(names)]
'''
VERIFIER = '''
"""Whether there is a 1, and of each line whether it has a digit below 3."""
from grpo_math.steps.split import newline, pieces
from grpo_math.types import Verdict
EXAMPLES = []
def verify(problem, completion):
    ends = newline(completion)
    steps = [float(any(digit in line for digit in "012")) for line in pieces(completion, ends)]
    good = "1" in completion
    step_rewards = tuple(zip(ends, steps, strict=True))
    return Verdict(float(good), "correct" if good else "wrong", answer=completion[:3], step_rewards=step_rewards)
'''
SAMPLED = {"steps": 3, "group_size": 4, "optimizer": {"learning_rate": 1e-3}}
# what tests ask for by name: (algorithm, changes). FOLDER stands for the folder of the setting
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": (
        "ppo",
        {
            "passes": 2,
            "updates_per_step": 2,
            "kl": {"coefficient": 0.1, "target": 0.01},
            "loss": {"entropy_bonus": 0.01},
            "critic": {"learning_rate": 1e-3, "warmup_steps": 1},
        },
    ),
    "ppo_shared": ("ppo", {"critic": {"shared": True, "coefficient": 0.5}, "updates_per_step": 2}),
    "vineppo": ("vineppo", {"vine": {"continuations": 2}}),
    "grpo_process": ("grpo_process", {"process": {"share": 0.5}}),
    "process_model": (
        "grpo_process",
        {
            "rewards": [
                {"model": "FOLDER/process", "kind": "process"},
                {"verifier": "FOLDER/verifier.py", "weight": 0.5},
            ]
        },
    ),
    "rloo": ("rloo", {"kl": {"coefficient": 0.1, "where": "reward", "per_token": True}, "whiten": True}),
    "reinforce_pp": (
        "reinforce_pp",
        {"group_size": 1, "kl": {"coefficient": 0.1, "where": "reward", "per_token": True}},
    ),
    "pretraining": (
        "ppo",
        {"pretraining": {"data": {"files": ["FOLDER/plain.jsonl"]}, "coefficient": 0.5, "examples": 3}},
    ),
    "retraining": (
        "grpo_iterative",
        {
            "rewards": [{"verifier": "FOLDER/verifier.py"}, {"model": "FOLDER/outcome"}],
            "kl": {"refresh_every": 1},
            "retraining": {"every": 1, "updates": 2, "examples": 8, "replay": 0.5, "learning_rate": 1e-3},
        },
    ),
}


def make_setting(folder: Path) -> None:
    """In the folder: task.py, verifier.py, plain.jsonl, model, and reward models `outcome` and `process`."""
    (folder / "verifier.py").write_text(VERIFIER)
    (folder / "task.py").write_text(TASK.format(verifier=folder / "verifier.py"))
    (folder / "plain.jsonl").write_text(
        "".join(f'{{"prompt": "{i}+{i}=", "completion": "{2 * i}\\n"}}\n' for i in range(5))
    )
    save_tiny(folder / "raw")
    taught: dict[str, Any] = {"steps": 50, "prompts_per_step": 8, "optimizer": {"learning_rate": 1e-2}}
    taught |= {"model": str(folder / "raw"), "checkpoint": {"every": 0}, "evaluation": {}}
    run(of_recipe(folder, "sft", None, folder / "taught", **taught))
    (folder / "taught" / "model").resolve().rename(folder / "model")
    save_reward_model(folder / "model", "outcome", folder / "outcome", seed=0)
    save_reward_model(folder / "model", "process", folder / "process", seed=1)


def save_reward_model(path: Path, kind: ValueKind, to: Path, seed: int) -> None:
    """The model with a head of random numbers."""
    value = load_value_model(config.Model(path=str(path)), kind, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    weight: Any = value.head.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    value.model.save_pretrained(to)
    value.tokenizer.save_pretrained(to)


def configured(folder: Path, name: str, run_dir: Path, **changes: Any) -> config.GRPO:
    """The run `name` of RUNS, with these top-level keys instead."""
    algorithm, own = RUNS[name]
    tree = SAMPLED | in_folder(own, folder) | changes
    cfg = of_recipe(folder, "grpo", algorithm, run_dir, **tree)
    assert isinstance(cfg, config.GRPO)
    return cfg


def in_folder(tree: Any, folder: Path) -> Any:
    """With the folder's name for FOLDER."""
    if isinstance(tree, dict):
        return {key: in_folder(value, folder) for key, value in tree.items()}
    if isinstance(tree, list):
        return [in_folder(value, folder) for value in tree]
    return tree.replace("FOLDER", str(folder)) if isinstance(tree, str) else tree


if __name__ == "__main__":
    torch.set_num_threads(1)
    together = join(300.0)
    for file in sys.argv[1:]:
        _run(load_config(Path(file)), "auto", together)
    leave()
