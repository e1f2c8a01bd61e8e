"""What README.md, CONTRIBUTING.md and most of docs/ say is so: code runs, commands parse, keys and files exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import torch
import typer

from grpo_math import cli, config
from grpo_math.algorithms import ALGORITHMS, PRESETS, table
from grpo_math.config_errors import section_in
from grpo_math.config_file import load_config
from grpo_math.config_preference import PreferenceName
from grpo_math.find import find_task, find_verifier, list_tasks, list_verifiers
from grpo_math.log import COMPLETIONS, METRICS
from grpo_math.problems import load_problems
from grpo_math.scoring import Scorer
from grpo_math.types import Problem
from grpo_math.verify import completion_of, verify_examples, verify_gold

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
AT_SCALE = (ROOT / "docs" / "at_scale.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
FILTER = (ROOT / "docs" / "filter.md").read_text(encoding="utf-8")
SAMPLE = (ROOT / "docs" / "sample.md").read_text(encoding="utf-8")
OFFLINE = (ROOT / "docs" / "offline.md").read_text(encoding="utf-8")
LEARNED = "".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("credit", "judges", "learned_rewards", "reward_models", "steps")
)
BOTH = README + CONTRIBUTING + AT_SCALE + EVALUATION + FILTER + SAMPLE + OFFLINE + LEARNED
TOP = config.GRPO.model_fields | config.SFT.model_fields
OFFLINE_TOP = config.SFT.model_fields | config.REST.model_fields | config.Preference.model_fields


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", BOTH, re.MULTILINE | re.DOTALL)


def inline() -> list[str]:
    """What stands in backticks within the prose."""
    prose = re.sub(r"^```.*?^```$", "", BOTH, flags=re.MULTILINE | re.DOTALL)
    return [text.replace("\n", " ") for text in re.findall(r"`([^`]+)`", prose)]


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in [*lines, *inline()] if line.startswith("grpo-math ")]
    # `grpo-math serve` in the prose is the command's name, not a call of it
    names = ("serve", "launch", "filter", "sample", "label", "label-steps", "revise", "plan")
    named = [line for line in words if len(line) == 2 and line[1] in names]
    return [line[1:] for line in words if not line[1].startswith("-") and line not in named]


def tables(heading: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading, without the header."""
    part = README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in part.splitlines() if
            line.startswith("|")]  # fmt: skip
    return rows[2:]


def python(start: str) -> str:
    (found,) = [block for block in blocks("python") if start in block]
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last_number.py").write_text(python("Is the last number"))
    (tmp_path / "products.py").write_text(python("Products of"))
    return tmp_path


# Code


def test_the_verifier_and_the_task_take_ten_lines() -> None:
    for start in ("Is the last number", "Products of"):
        assert len([line for line in python(start).splitlines() if line.strip()]) <= 10


def test_the_verifier_works(folder: Path) -> None:
    assert verify_examples(["./last_number.py"], workers=1, timeout_s=5)
    problem = Problem("p", "t", "12 - 20 = ?", "-8")
    items = [(problem, completion_of(text)) for text in ("It is -8.", "It is 8.", "No idea.")]
    with Scorer([config.Reward(verifier="./last_number.py")], config.Scoring(workers=1)) as scorer:
        scored = scorer.score(items)
    assert [(s.reward, s.verdict.reason) for s in scored] == [(1.0, "correct"), (0.0, "wrong"), (0.0, "no_answer")]


def test_the_task_works(folder: Path) -> None:
    assert verify_gold(config.Task(name="./products.py"), None, workers=1, timeout_s=5)
    train = load_problems(config.Task(name="./products.py")).problems
    test = load_problems(config.Task(name="./products.py", split="test", options={"largest": 50})).problems
    assert train
    assert test
    assert not {p.question for p in train} & {p.question for p in test}
    module = find_task("./products.py")
    assert "{question}" in module.TEMPLATE
    assert find_verifier(module.VERIFIER)
    cfg = load_config(ROOT / "launch/gsm8k.yaml", ["task=./products.py", "task.options.largest=50"])
    assert load_problems(cfg.task).problems


def test_the_advantage_and_the_surrogate_work() -> None:
    names: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, "config": config}
    exec(python("def best_only"), names)
    nan = float("nan")
    rewards = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1], [0, nan, 0.5, 0], [nan, nan, nan, nan]])
    expected = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).float()
    assert torch.equal(names["best_only"](rewards), expected)
    exec(python("def cut_above"), names)
    ratio, advantages = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, -1.0, -2.0])
    assert torch.allclose(
        names["cut_above"](ratio, ratio.log(), advantages, config.Loss()), torch.tensor([0.5, -1, -2.4])
    )


def test_every_block_of_python_is_tested() -> None:
    """By the tests above, which look for these."""
    tested = ("Is the last number", "Products of", "def best_only", "def cut_above")
    elsewhere = ("AutoModelForSequenceClassification",)  # test_reward_models.py
    for block in blocks("python"):
        ast.parse(block)
        assert any(start in block for start in tested + elsewhere), block


# Commands


def test_there_are_commands_of_every_kind() -> None:
    assert {words[0] for words in commands()} == set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_parse(words: list[str]) -> None:
    """The command, its options and their values are understood. Nothing is executed."""
    root: Any = typer.main.get_command(cli.app)
    parsed = root.make_context("grpo-math", list(words))
    name, command, rest = root.resolve_command(parsed, words)
    values = command.make_context(name, rest, parent=parsed).params
    if name in ("train", "plan") and str(values["path"]).startswith("launch/"):
        load_config(ROOT / values["path"], values["overrides"] or [])
    for task in str(values.get("task") or values.get("train") or "NAME").split(","):
        assert task.partition(":")[0] in {"NAME", "./products.py", *list_tasks()}
    if name == "verify":
        assert values["name"] in {None, "NAME", "./last_number.py", *list_verifiers()}


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    named = {m[1] for line in [*lines, *inline()] if (m := re.match(r"make ([a-z]+)", line))}
    assert {"train", "test", "check"} <= named
    for name in named:
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


# Configuration


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_loads(block: str, tmp_path: Path) -> None:
    required = {"run_dir": "run", "model": "some/model", "task": "arithmetic"}
    for key, value in required.items():
        if not re.search(rf"^{key}:", block, re.MULTILINE):
            block += f"\n{key}: {value}\n"
    (tmp_path / "a.yaml").write_text(block)
    cfg = load_config(tmp_path / "a.yaml")
    assert cfg.run_dir


def test_the_table_of_keys_has_them_all() -> None:
    assert {row[0] for row in tables("Configuration")} == set(TOP)


def test_the_table_of_keys_of_the_other_recipes_has_them_all() -> None:
    part = OFFLINE.partition("\n## The keys\n")[2]
    named = {name for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for name in re.findall("`(.*?)`", row)}
    assert named == set(OFFLINE_TOP) - set(config.Common.model_fields) - {"task", "recipe"}


def test_the_presets_of_the_other_recipes_are_told() -> None:
    for name in set(PRESETS["rest"]) | set(PRESETS["preference"]) - set(get_args(PreferenceName)):
        assert f"`{name}`" in OFFLINE, name


def is_key(key: str) -> bool:
    """Whether some recipe has it; whatever lies below a mapping of options does."""
    for annotation in config.RECIPES.values():
        here: Any = annotation
        for name in key.split("."):
            section = section_in(here)
            if section is None:
                break
            if not name.isdigit():
                here = section.model_fields[name].annotation if name in section.model_fields else None
            if here is None:
                break
        else:
            return True
        if get_origin(here) is dict:
            return True
    return False


def test_keys_in_the_prose_are_real(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run_dir: run\nmodel: m\ntask: arithmetic\n")
    made_up = ("best_only", "cut_above")  # what README adds to the tables
    seen = []
    for text in inline():
        key, equals, value = text.partition("=")
        if not re.fullmatch(r"[a-z_]+(\.[A-Za-z_0-9]+)*", key) or not (equals or "." in key):
            continue
        if key.endswith((".py", ".json", ".jsonl")):
            continue
        if key.split(".")[0] in TOP:
            seen.append(key)
            assert is_key(key), key
            if equals and " " not in value and not value.isupper() and value not in made_up:
                load_config(tmp_path / "a.yaml", ["rollout.server.urls=[http://localhost:8000]", text])
    assert len(seen) > 15
    assert not is_key("optimizer.lr")
    assert not is_key("seed.of")


# The rest


def test_the_table_of_algorithms_is_that_of_the_code() -> None:
    rows = [tuple(row) for row in tables("Algorithms")]
    assert rows == table()
    assert [row[0] for row in rows] == list(ALGORITHMS)


def test_files_exist() -> None:
    named = {
        text
        for text in inline()
        if re.fullmatch(
            r"(grpo_math|launch|tests|verifiers|tasks|benchmarks|\.ci)/[\w./-]*|LICENSE|\w+\.(md|toml)", text
        )
    }
    assert {"grpo_math/recipes/grpo.py", "LICENSE", "CHANGELOG.md", ".ci/run"} <= named
    for name in named:
        assert (ROOT / name).exists(), name
    for name in (METRICS, COMPLETIONS):
        assert f"`{name}`" in README
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text(encoding="utf-8")):
            assert (ROOT / target).suffix == ".png" or (file.parent / target).exists(), (file.name, target)


def test_the_layout_is_that_of_the_repository() -> None:
    layout = README.partition("\n## Where things are\n")[2].split("```")[1]
    for line in layout.splitlines():
        for name in re.split(r"  +", line.strip())[0].split():
            assert (ROOT / name).exists() or (ROOT / "grpo_math" / name).exists(), name
