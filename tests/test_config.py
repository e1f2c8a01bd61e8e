"""The configuration file: what lies over what, what is refused and in which words, and dumps that lose nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from grpo_math import advantages, algorithms, config, config_errors, correction, kl, losses
from grpo_math.config_file import dump_config, load_config
from grpo_math.sandbox.limits import LEVELS, Limits
from grpo_math.types import UserError

ROOT = Path(__file__).parent.parent
LAUNCH = sorted((ROOT / "launch").glob("*.yaml"))
BASE = """\
run_dir: runs/x
model: {path: some/model}
task: gsm8k
"""

Load = Callable[..., Any]
Refuse = Callable[..., str]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def call(text: str, *overrides: str) -> Any:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return load_config(tmp_path / "run.yaml", list(overrides))

    return call


@pytest.fixture
def refuse(load: Load, tmp_path: Path) -> Refuse:
    """The message of the refusal, with the folder cut off the file's name."""

    def call(text: str, *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        message = str(caught.value).replace(f"{tmp_path}/", "")
        assert "pydantic" not in message
        assert "Input should" not in message
        assert "Extra inputs" not in message
        return message

    return call


# Values and layers


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E6", 1e6), ("-2e+3", -2e3), ("1.5e-3", 1.5e-3), (".5", 0.5), ("1_000.5", 1000.5), ("3.", 3.0)],
)
def test_numbers_are_numbers(load: Load, text: str, value: float) -> None:
    cfg = load(f"{BASE}task: {{name: x, options: {{v: {text}}}}}".replace("task: gsm8k\n", ""))
    assert cfg.task.options["v"] == value
    assert isinstance(cfg.task.options["v"], float)
    assert load(BASE, f"optimizer.learning_rate={abs(value)}").optimizer.learning_rate == abs(value)


@pytest.mark.parametrize("text", ["1e", "e6", "2024-01-02", "1.2.3", "v1e-6", "12:30:00.5"])
def test_other_words_stay_text(load: Load, text: str) -> None:
    assert load(BASE, f"task.options.v={text}").task.options["v"] == text


def test_file_lies_over_preset_and_override_over_both(load: Load) -> None:
    text = f"{BASE}algorithm: dapo\nloss: {{clip_low: 0.1}}\n"
    cfg = load(text, "overlong.penalty=0.5")
    assert (cfg.loss.name, cfg.loss.clip_low, cfg.loss.clip_high) == ("dapo", 0.1, 0.28)
    assert (cfg.overlong.penalty_buffer, cfg.overlong.penalty) == (0.2, 0.5)
    assert cfg.dynamic_sampling.enabled
    assert not load(text, "dynamic_sampling.enabled=false").dynamic_sampling.enabled
    assert load(text, "algorithm=grpo").loss.clip_high == 0.2


def test_shorthands_merge_with_keys(load: Load) -> None:
    task = load(BASE, "task.path=train.jsonl").task
    assert (task.name, task.path) == ("gsm8k", "train.jsonl")
    other = BASE.replace("gsm8k", "{name: gsm8k, path: a.jsonl, limit: 5}")
    assert load(other, "task.limit=3", "task=math500").task == config.Task(name="math500", limit=3)
    assert load(other, "task=gsm8k").task.path == "a.jsonl"
    assert load(BASE, "loss=dapo").loss == config.Loss(name="dapo")
    assert load(BASE, "loss.clip_high=0.3", "loss=dapo").loss == config.Loss(name="dapo", clip_high=0.3)
    assert load(BASE, "evaluation.task=math500", "evaluation.task.limit=3").evaluation.task.limit == 3
    assert load(BASE, "model=other/model").model.path == "other/model"


def test_positions_in_lists(load: Load) -> None:
    text = f"{BASE}rewards: math\n"
    assert load(text, "rewards.0.weight=2").rewards == [config.Reward(verifier="math", weight=2)]
    names = [r.verifier for r in load(text, "rewards.1=format", "rewards.0.weight=2").rewards]
    assert names == ["math", "format"]
    assert load(BASE, "rewards=[a, {verifier: b, weight: 0.5}]").rewards[1].weight == 0.5
    assert load(BASE, "optimizer.betas.1=0.95").optimizer.betas == (0.9, 0.95)
    assert load(BASE, "evaluation.k.0=4").evaluation.k == [4, 8]


def test_text_fields_take_text_as_it_stands(load: Load) -> None:
    assert load(BASE, "model.revision=0123456").model.revision == "0123456"
    assert load(BASE, "model.revision=1e5").model.revision == "1e5"
    assert load(BASE, "task.template={question} Think: step by step.").task.template.endswith("Think: step by step.")
    assert load(BASE, "task.template={question}").task.template == "{question}"
    assert load(BASE, 'task.system="quoted"').task.system == "quoted"
    assert load(BASE, "model.revision=null").model.revision is None


def test_later_overrides_win(load: Load) -> None:
    assert load(BASE, "seed=1", "seed=2").seed == 2


def test_recipe_picks_the_class(load: Load) -> None:
    assert isinstance(load(BASE), config.GRPO)
    assert isinstance(load(f"recipe: sft\n{BASE}"), config.SFT)
    assert isinstance(load(BASE, "recipe=sft"), config.SFT)


def test_home_is_expanded(load: Load) -> None:
    cfg = load(BASE, "model.path=~/m", "run_dir=~/r", "task.path=~/t")
    assert [cfg.model.path, cfg.run_dir, cfg.task.path] == [str(Path.home() / name) for name in "mrt"]


def test_anchors_and_merge_keys_work(load: Load) -> None:
    text = f"{BASE}evaluation:\n  task: &t {{name: a, limit: 5}}\n".replace("gsm8k", "{name: a, options: &o {x: 1}}")
    assert load(text).evaluation.task.limit == 5
    merged = BASE.replace("gsm8k", "{name: a, options: {d: &d {x: 1, y: 2}, e: {<<: *d, y: 3}}}")
    assert load(merged).task.options["e"] == {"x": 1, "y": 3}


# Dumps


def test_dump_reloads_to_an_equal_object(load: Load) -> None:
    overrides = [
        "algorithm=dapo",
        "rewards=[math, {verifier: ./mine.py, weight: 0.5, options: {strict: true}}]",
        "task.options={a: '1e-6', b: 1e-6, c: '2024-01-01', d: 'yes', e: [1, null], f: 'null', g: '0x1F'}",
        "task.template=Fünf: {question}\\n#",
        "evaluation.task=math500",
        "optimizer.betas=[0.9, 0.95]",
    ]
    cfg = load(BASE, *overrides)
    assert cfg.task.options["a"] == "1e-6"
    assert load(dump_config(cfg)) == cfg
    sft = load(BASE.replace("{path: some/model}", "{new: {}}"), "recipe=sft", "stop.accuracy=0.4")
    assert load(dump_config(sft)) == sft


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_every_algorithm_gives_a_valid_config(load: Load, name: str) -> None:
    rewards = ["rewards=[{verifier: math}, {model: some/judge}]"] if name == "grpo_iterative" else []
    cfg = load(BASE, f"algorithm={name}", *rewards)
    assert cfg.algorithm == name
    assert cfg.advantage == algorithms.ALGORITHMS[name]["advantage"]
    assert load(dump_config(cfg)) == cfg


def test_there_are_launch_files() -> None:
    assert LAUNCH


@pytest.mark.parametrize("path", LAUNCH, ids=lambda p: p.name)
def test_every_launch_file_loads(load: Load, path: Path) -> None:
    needs_model = "model.path=some/model" if "path" not in (yaml.safe_load(path.read_text()).get("model") or {}) else ""
    new = "new" in (yaml.safe_load(path.read_text()).get("model") or {})
    cfg = load_config(path, [needs_model] if needs_model and not new else [])
    assert load(dump_config(cfg)) == cfg


# Tables


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (config.AdvantageName, advantages.ADVANTAGES),
        (config.LossName, losses.LOSSES),
        (config.RatioName, losses.RATIOS),
        (config.SurrogateName, losses.SURROGATES),
        (config.ReductionName, losses.REDUCTIONS),
        (config.CorrectionName, correction.CORRECTIONS),
        (config.KLName, kl.KLS),
    ],
)
def test_names_are_those_of_the_tables(names: Any, table: dict[str, Any]) -> None:
    assert set(get_args(names)) == set(table)


def test_the_torch_free_table_of_losses_is_the_real_one() -> None:
    assert algorithms.LOSS_PARTS == losses.LOSSES
    assert algorithms.PAPERS.keys() == algorithms.ALGORITHMS.keys()
    for name, *_ in algorithms.table():
        chosen = config.Loss(**algorithms.ALGORITHMS[name]["loss"])
        assert losses.resolve(chosen) == next(row[2:5] for row in algorithms.table() if row[0] == name)


def test_hints_for_other_trainers_words_lead_somewhere() -> None:
    assert set(config_errors.ELSEWHERE.values()) <= set(config_errors._dotted(config.GRPO))


# Refusals


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("learning_rate=1e-5", "optimizer.learning_rate or critic.learning_rate or retraining.learning_rate"),
        ("optimizer.learning_rte=1e-5", "optimizer.learning_rate"),
        ("optimizer.lr=1e-5", "optimizer.learning_rate"),
        ("optimiser.learning_rate=1e-5", "optimizer"),
        ("groupsize=4", "group_size"),
        ("GROUP_SIZE=4", "group_size"),
        ("max_tokens=4", "sampling.max_tokens"),
        ("num_generations=4", "group_size"),
        ("kl.beta=0.1", "kl.coefficient"),
        ("rewards.0.wieght=2", "rewards.0.weight"),
        ("temperature=1", "sampling.temperature or evaluation.temperature"),
        ("evaluation.task.nam=x", "evaluation.task.name"),
    ],
)
def test_an_unknown_key_names_the_nearest(refuse: Refuse, override: str, meant: str) -> None:
    key = override.partition("=")[0].split(".")
    message = refuse(f"{BASE}rewards: math\n", override)
    assert f"command line: {override}: unknown key" in message
    assert f"did you mean {meant}?" in message
    assert any(f"unknown key {part}" in message for part in key)


def test_a_hopeless_key_gets_the_list(refuse: Refuse) -> None:
    assert "keys of checkpoint: every, keep" in refuse(f"{BASE}checkpoint: {{qqq: 1}}\n")


def test_a_key_of_another_recipe_says_so(refuse: Refuse) -> None:
    message = refuse(f"recipe: sft\n{BASE}group_size: 4\n")
    assert message == (
        "run.yaml:5: group_size=4: unknown key group_size, which the recipes grpo, preference, rest have; "
        "leave it out, or set recipe to one of them"
    )


def test_the_line_of_the_file_is_named(refuse: Refuse) -> None:
    text = f"{BASE}optimizer:\n  schedule: cosine\n  eps: -1\nrewards:\n  - math\n  - {{verifier: b, weight: heavy}}\n"
    assert refuse(text).splitlines() == [
        "run.yaml:6: optimizer.eps=-1: must be above 0",
        "run.yaml:9: rewards.1.weight=heavy: must be a number",
    ]


def test_all_mistakes_at_once(refuse: Refuse) -> None:
    overrides = ("algorithm=dappo", "group_size=many", "kl.where=los", "seed=-1", "sampling.max_tokens=0", "foo.bar=1")
    lines = refuse(BASE, *overrides).splitlines()
    assert len(lines) == len(overrides)
    assert "algorithm=dappo: unknown algorithm; did you mean dapo? (known: grpo, " in lines[0]
    for override in overrides:
        assert any(line.startswith(f"command line: {override}: ") for line in lines)
    assert any("kl.where=los: unknown value; did you mean loss? (known: loss, reward)" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=1.5", "must be a whole number"),
        ("steps=0", "must be at least 1"),
        ("scoring.max_error_share=2", "must be at most 1"),
        ("sandbox.require=secomp", "did you mean seccomp? (known: namespaces, seccomp, process)"),
        ("sandbox.memory_mb=63", "must be at least 64"),
        ("optimizer.betas=[0.9, 1]", "must be below 1"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1 is missing"),
        ("optimizer.learning_rate=.inf", "must be finite"),
        ("optimizer.learning_rate=.nan", "must be"),
        ("kl.coefficient=yes", "is a truth value where a number belongs"),
        ("seed=true", "is a truth value where a number belongs"),
        ("backend.gradient_checkpointing=perhaps", "must be true or false"),
        ("backend.dtype=bf16", "did you mean bfloat16?"),
        ("checkpoint=5", "must be a section with keys of its own, or left out (keys: every, keep)"),
        ("kl=", "must be a section"),
        ("rewards=7", "must be a list"),
        ("rewards=[]", "name at least one, and each once"),
        ("evaluation.k=[]", "must have 1 or more entries"),
        ("evaluation.k=[1, 16]", "set n=16"),
        ("task.options=3", "must be a mapping"),
        ("group_size=1", "set group_size=2 or more"),
        ("recipe=stf", "unknown recipe; did you mean sft? (known: grpo, sft, preference, rest, reward_model, process"),
        ("model.path=", "model.path is missing"),
        ("task.template=Solve it.", "has no {question} in it"),
        ("sampling.top_p=0.9", "use top_p=1.0 and top_k=0"),
        ("seed.x=3", "seed is a single value without keys of its own; write seed=VALUE"),
        ("task.name.x=3", "task.name is a single value"),
        ("rewards.3.weight=1", "'3' is no position in this list; use 0"),
        ("rewards.first.weight=1", "'first' is no position"),
        ("evaluation.k=[1", "is not a YAML value"),
        ("group_size", "write key.sub=value"),
        ("=3", "is no key"),
        ("kl..coefficient=3", "is no key"),
    ],
)
def test_values_are_refused_in_plain_words(refuse: Refuse, override: str, said: str) -> None:
    message = refuse(BASE, override)
    assert message.startswith("command line: ")
    assert said in message


def test_the_limits_of_programs_have_one_set_of_defaults() -> None:
    assert config.Sandbox().limits() == Limits()
    assert set(get_args(config.Sandbox.model_fields["require"].annotation)) == set(LEVELS)
    limits = config.Sandbox(timeout_s=1, memory_mb=64, output_mb=2, require="process").limits()
    assert limits == Limits(1.0, 64, 2, "process")


def test_a_batch_cannot_outlast_the_phase(refuse: Refuse, load: Load) -> None:
    message = refuse(BASE, "scoring.batch_timeout_s=100", "phase_timeout_s=60")
    assert "scoring.batch_timeout_s=100 is not below phase_timeout_s=60, which ends the whole run" in message
    assert message.endswith("try scoring.batch_timeout_s=30")
    assert load(BASE, "scoring.batch_timeout_s=100").scoring.batch_timeout_s == 100


def test_a_contradiction_between_two_sections_names_the_remedy(refuse: Refuse) -> None:
    message = refuse(f"{BASE}prompts_per_step: 30\n", "updates_per_step=8")
    assert message == "run.yaml:4: prompts_per_step=30 is not divisible by updates_per_step=8; try prompts_per_step=32"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"run.yaml:3: .*\(while parsing a flow sequence, line 2\)"),
        ("a:\n\tb: 1\n", r"run.yaml:2: .*indent with spaces"),
        ("run_dir: x\nseed: 1\nrun_dir: y\n", r"run.yaml:3: run_dir is given a second time \(first in line 1\)"),
        ("a: {b: 1, b: 2}\n", r"run.yaml:1: b is given a second time"),
        ("a: 1\n---\nb: 1\n", r"run.yaml:2: found another document"),
        ("a: !!python/object/apply:os.system [ls]\n", r"run.yaml:1: could not determine a constructor"),
        ("- 1\n- 2\n", r"run.yaml: holds \[1, 2\] where `key: value` lines belong"),
        ("a: \x07\n", r"run.yaml: is not YAML"),
        ("", r"run_dir is missing; add for example  run_dir: runs/my_run\n.*model is missing.*\n.*task is missing"),
        (f"{BASE}1: 2\n", r"run.yaml:4: 1: keys must be text"),
        (f"{BASE}model: 3\n".replace("model: {path: some/model}\n", ""), r"run.yaml:3: model=3: must be a section"),
    ],
)
def test_broken_files(refuse: Refuse, text: str, said: str) -> None:
    assert re.search(said, refuse(text))


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.yaml").write_text(BASE)
    (tmp_path / "other.yml").write_text(BASE)
    with pytest.raises(UserError, match=r"gsm8.yaml: there is no such file; did you mean .*/gsm8k.yaml\?.*other.yml"):
        load_config(tmp_path / "gsm8.yaml")
    with pytest.raises(UserError, match=r"is a folder \(YAML files in .*: gsm8k.yaml, other.yml\)"):
        load_config(tmp_path)
    with pytest.raises(UserError, match="nor a folder"):
        load_config(tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(UserError, match="the configuration file comes first"):
        load_config("group_size=3")
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")
