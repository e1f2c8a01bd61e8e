"""A tiny setting for the recipes that learn from chosen completions: model, task, verifier, the model's samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from grpo_math import config
from grpo_math.algorithms import PRESETS
from grpo_math.config_file import _expand, _merge
from grpo_math.recipes.run import run
from tests.tiny import save_tiny

TASK = '''
"""Any digits will do that have a 1 among them. A solution is two digits, of which one in three has."""
from grpo_math.types import Problem
VERIFIER = "{verifier}"
TEMPLATE = "{{question}}"
def load(split, path=None):
    names = [f"{{i}}+{{j}}=" for i in range(1, 7) for j in range(4)]
    return [Problem(f"{{split}}/{{n}}", "digits", n, "1", {{"solution": f"{{2 + i % 3}}{{i % 3}}"}})
            for i, n in enumerate(names)]
'''
VERIFIER = '''
"""Whether there is a 1."""
from grpo_math.types import Verdict
EXAMPLES = []
def verify(problem, completion):
    good = "1" in completion
    return Verdict(float(good), "correct" if good else "wrong", answer=completion[:3])
'''

BASE: dict[str, Any] = {
    "prompts_per_step": 4,
    "optimizer": {"learning_rate": 1e-3},
    "sampling": {"max_tokens": 8},
    "checkpoint": {"every": 1, "keep": 9},
    "scoring": {"workers": 1},
    "evaluation": {"n": 2, "k": [1], "limit": 8},
}
# what tests ask for by name: (recipe, algorithm, changes). `samples` stands for a file of the model's own completions
RUNS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "sft": ("sft", None, {"data": {"files": ["samples"], "filter": {"per_problem": 2}}, "steps": 4}),
    "rest": (
        "rest",
        "rest",
        {"rounds": 2, "problems": 6, "group_size": 4, "thresholds": [0.0, 1.0], "updates": 2, "weighting": "reward"},
    ),
    "rest_em": ("rest", "rest_em", {"rounds": 2, "problems": 6, "group_size": 4, "updates": 2}),
    "online_dpo": ("preference", "online_dpo", {"group_size": 4, "steps": 4}),
    "iterative_dpo": ("preference", "iterative_dpo", {"online": {"every": 2, "passes": 2}, "steps": 4}),
    "bpo": ("preference", "bpo", {"group_size": 4, "steps": 4}),
    "sdpo": ("preference", "sdpo", {"data": {"files": ["samples"], "filter": {}}, "steps": 6}),
    "kto": ("preference", "kto", {"data": {"files": ["samples"], "filter": {}}, "steps": 4}),
    "bco": ("preference", "bco", {"data": {"files": ["samples"], "filter": {}}, "steps": 4}),
}


def make_setting(folder: Path) -> None:
    """Model, task, verifier, and samples.jsonl in the folder."""
    (folder / "verifier.py").write_text(VERIFIER)
    (folder / "task.py").write_text(TASK.format(verifier=folder / "verifier.py"))
    save_tiny(folder / "raw")
    taught = {"steps": 40, "prompts_per_step": 8, "optimizer": {"learning_rate": 1e-2}, "checkpoint": {"every": 0}}
    taught |= {"model": str(folder / "raw"), "task": str(folder / "task.py"), "run_dir": str(folder / "taught")}
    run(config.SFT.model_validate(BASE | {"evaluation": {}} | taught))
    (folder / "taught" / "model").resolve().rename(folder / "model")
    sampled = BASE | {"steps": 3, "prompts_per_step": 8, "group_size": 8, "run_dir": str(folder / "sampled")}
    sampled |= {"model": str(folder / "model"), "task": str(folder / "task.py"), "optimizer": {"learning_rate": 1e-9}}
    run(config.GRPO.model_validate(sampled))
    (folder / "sampled" / "completions.jsonl").rename(folder / "samples")


def configured(folder: Path, name: str, run_dir: Path, **changes: Any) -> config.Common:
    """The run `name` of RUNS, with these top-level keys instead."""
    recipe, algorithm, own = RUNS[name]
    return of_recipe(folder, recipe, algorithm, run_dir, **own | changes)


def of_recipe(folder: Path, recipe: str, algorithm: str | None, run_dir: Path, **changes: Any) -> config.Common:
    section = config.RECIPES[recipe]
    tree = BASE | {"model": str(folder / "model"), "task": str(folder / "task.py"), "run_dir": str(run_dir)} | changes
    tree = _expand(section, tree)
    if "data" in tree:
        tree["data"] |= {"files": [str(folder / file) for file in tree["data"]["files"]]}
    if algorithm is not None:
        tree = _merge(_expand(section, PRESETS[recipe][algorithm]), tree) | {"algorithm": algorithm}
    return section.model_validate(tree)


def lines(cfg: config.Common, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (Path(cfg.run_dir) / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def weights(cfg: config.Common) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted((Path(cfg.run_dir) / "model").glob("*.safetensors")):
        found |= load_file(file)
    return found


def distance(one: config.Common, other: config.Common) -> float:
    """The largest difference between the weights that two runs came to."""
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
