"""`plan` and the checks before a run: sizes against transformers' own models, arithmetic by hand, every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from grpo_math import config, memory, plan, policy
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ARCHITECTURES = [
    Qwen2Config(**SIZES),
    Qwen2Config(**SIZES, tie_word_embeddings=True),
    Qwen3Config(**SIZES, head_dim=32),
    Qwen3Config(**SIZES, attention_bias=True, tie_word_embeddings=True),
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    MistralConfig(**SIZES, head_dim=16),
    GemmaConfig(**SIZES, head_dim=16),
]


def grpo(**values: Any) -> config.GRPO:
    base = {"run_dir": "run", "model": {"path": "m"}, "task": "arithmetic", "sampling": {"max_tokens": 64}}
    return config.GRPO.model_validate(base | values)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a whole model in `m`."""
    monkeypatch.chdir(tmp_path)
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained("m")
    small_model(config.NewModel(), tokenizer, seed=0).save_pretrained("m")
    return tmp_path


# Sizes


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=lambda c: c.model_type)
def test_parameters_are_those_of_transformers(tmp_path: Path, settings: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(settings)
    settings.save_pretrained(tmp_path)
    by_formula = memory.size_of_folder(tmp_path)
    assert by_formula.parameters == model.num_parameters()
    assert by_formula.context == 256
    model.save_pretrained(tmp_path)
    assert memory.size_of_folder(tmp_path).parameters == model.num_parameters()


def test_a_new_model_has_the_size_that_is_planned() -> None:
    spec = config.NewModel(hidden_size=64, layers=2, heads=4, kv_heads=2, intermediate_size=96, context=128)
    tokenizer = character_tokenizer()
    assert len(tokenizer) == memory.CHARACTERS
    assert memory.size_of_new(spec).parameters == small_model(spec, tokenizer, seed=0).num_parameters()


def test_another_architecture_is_counted_in_its_files(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=64))
    model.config.save_pretrained(tmp_path)
    cfg = grpo(model={"path": str(tmp_path)})
    assert "not available: model type gpt2 without safetensors" in plan.plan(cfg)
    model.save_pretrained(tmp_path)
    assert memory.size_of_folder(tmp_path).parameters == model.num_parameters()
    assert "activations and the key-value cache, whose formulas do not fit model type gpt2" in plan.plan(cfg)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("index", [0, 2, 4])
def test_activations_are_near_what_autograd_keeps(tmp_path: Path, index: int, checkpointing: bool) -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[index]).train()
    model.config.save_pretrained(tmp_path)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or another tensor may get its address
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=torch.zeros(4, 256, dtype=torch.long), use_cache=False)
    measured = sum(kept.values())
    shape = memory.size_of_folder(tmp_path).shape
    cfg = grpo(micro_batch_tokens=1024, backend={"gradient_checkpointing": checkpointing})
    parts = {part.name: part.bytes for part in memory.in_update(cfg, 0, shape, row=256)}
    assert output.last_hidden_state.requires_grad
    if checkpointing:  # the layer that is computed again comes on top of what is kept
        assert measured < parts["activations"]
        assert parts["activations"] < measured + 1.2 * self_kept(parts, cfg, shape)
    else:
        assert parts["activations"] == pytest.approx(measured, rel=0.1)


def self_kept(parts: dict[str, int], cfg: config.GRPO, shape: memory.Shape | None) -> float:
    """One layer without checkpointing."""
    assert shape is not None
    plain = cfg.model_copy(update={"backend": config.Backend()})
    whole = {part.name: part.bytes for part in memory.in_update(plain, 0, shape, row=256)}
    return whole["activations"] / shape.layers


# The report


def test_batch_arithmetic(folder: Path) -> None:
    cfg = grpo(
        steps=10, prompts_per_step=12, group_size=4, updates_per_step=3, passes=2, micro_batch_tokens=1000,
        sampling={"max_tokens": 100}, dynamic_sampling={"enabled": True}, evaluation={"every": 5, "limit": 20},
    )  # fmt: skip
    lines = {line.split("  ")[1].strip(): line for line in plan.plan(cfg).splitlines() if line.startswith("  ")}
    assert "12 prompts x 4 completions = 48 completions" in lines["a step"]
    assert "48 x 256 = 12,288" in lines["tokens"]  # the context, 256, is less than 512 + 100
    assert "6 a step, of 16 completions each; 60 in 10 steps" in lines["updates"]
    assert "at most 6 an update" in lines["micro-batches"]  # 3 rows of 256 in 1,000 tokens; 16 rows
    assert "384 completions" in lines["sampled"]
    assert "20 problems x 8 completions every 5 steps" in lines["evaluation"]


def test_memory_by_part(folder: Path) -> None:
    size = plan.model_size(config.Model(path="m"))
    assert size is not None
    assert size.parameters == 887_680
    cfg = grpo(kl={"coefficient": 0.1}, prompts_per_step=2, group_size=4, micro_batch_tokens=512)
    assert [(p.name, p.bytes) for p in memory.always(cfg, 100)] == [
        ("weights", 400),
        ("Adam states", 800),
        ("reference", 400),
    ]
    update = {p.name: p.bytes for p in memory.in_update(cfg, 100, size.shape, row=256)}
    assert update["gradients"] == 400
    assert update["log-probabilities"] == 3 * 256 * 258 * 4 + 258 * 128 * 4
    sampling = {p.name: p.bytes for p in memory.in_sampling(cfg, size.shape, row=256)}
    assert sampling["key-value cache"] == 8 * 256 * 2 * 4 * 128 * 4
    half = cfg.model_copy(update={"backend": config.Backend(dtype="bfloat16")})
    halved = {p.name: p.bytes for p in memory.in_update(half, 100, size.shape, row=256)}
    assert halved["activations"] * 2 == update["activations"]
    assert halved["bfloat16 weights"] == 200
    report = plan.plan(cfg)
    assert "P = 887,680 parameters" in report
    assert "P x 4 bytes (kl.coefficient is not 0)" in report
    assert "reference " not in plan.plan(grpo())


def test_a_model_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    report = plan.plan(grpo(model={"path": "org/name"}))
    assert "unknown until the model is there: org/name is not on this machine" in report
    assert "hf download org/name" in report
    assert "make it and run plan again" in plan.plan(grpo(model={"path": "runs/base/model"}))
    store = folder / "hub" / "models--org--name"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text("abc")
    (store / "snapshots" / "abc").mkdir(parents=True)
    Qwen2Config(**SIZES).save_pretrained(store / "snapshots" / "abc")
    assert "P = " in plan.plan(grpo(model={"path": "org/name"}))
    assert "unknown" in plan.plan(grpo(model={"path": "org/name", "revision": "v2"}))


def test_planning_imports_no_torch(folder: Path) -> None:
    (folder / "run.yaml").write_text("run_dir: run\nmodel: m\ntask: arithmetic\nsampling: {max_tokens: 64}\n")
    code = (
        "import sys; from grpo_math.config_file import load_config; from grpo_math.plan import plan, preflight\n"
        "cfg = load_config('run.yaml'); plan(cfg); preflight(cfg)\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'vllm') if m in sys.modules])"
    )
    root = str(Path(plan.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {code}"], capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]", result.stderr


# The checks


def test_preflight_passes_and_leaves_nothing_behind(folder: Path) -> None:
    before = sorted(folder.iterdir())
    plan.preflight(grpo())
    plan.preflight(grpo(run_dir="a/b/c"))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "arithmetik"}, "did you mean arithmetic?"),
        ({"rewards": "maths"}, "did you mean math?"),
        ({"rewards": {"verifier": "math", "options": {"percent": "both"}}}, "percent=both"),
        ({"rewards": {"verifier": "math", "options": {"sandbox": 1}}}, "set sandbox.timeout_s"),
        ({"task": {"name": "gsm8k", "path": "m/config.jsn"}}, "no such file; did you mean m/config.json?"),
        (
            {"evaluation": {"task": {"name": "gsm8k", "path": "x.jsonl"}}},
            "evaluation.task.path=x.jsonl: there is no such",
        ),
        ({"model": {"path": "./m2"}}, "model.path=./m2: there is no such folder; did you mean m?"),
        ({"model": {"path": "m/checkpoints/step-1"}}, "make or download it first"),
        ({"model": {"path": "m/x"}}, "there is no such folder"),
        ({"model": {"path": "what is this"}}, "neither a folder nor a Hub id"),
        ({"run_dir": "m/config.json"}, "is a file; give another folder"),
        ({"run_dir": "m/config.json/run"}, "is a file; give another folder"),
        ({"sampling": {"max_tokens": 256}}, "context of 256 tokens; set sampling.max_tokens=128 or less"),
    ],
)
def test_preflight_refuses(folder: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan.preflight(grpo(**values))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("config.json",), "no config.json"),
        (("tokenizer*",), "no tokenizer (tokenizer.json, "),
        (("*.safetensors",), "no weights"),
    ],
)
def test_preflight_refuses_half_a_model(folder: Path, patterns: tuple[str, ...], said: str) -> None:
    for path in [p for pattern in patterns for p in (folder / "m").glob(pattern)]:
        path.unlink()
    with pytest.raises(UserError, match=r"model\.path=m: the folder has ") as caught:
        plan.preflight(grpo())
    assert said in str(caught.value)


def test_a_folder_of_checkpoints_names_the_newest(folder: Path) -> None:
    for step in ("step-1", "step-2"):
        (folder / "runs" / step).mkdir(parents=True)
        (folder / "runs" / step / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean runs/step-2\?"):
        plan.check_model("runs")


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        plan.preflight(grpo(task="arithmetik", model={"path": "./n"}, run_dir="m/config.json"))
    message = str(caught.value)
    assert message.count("unknown task") == 1
    assert "model.path=./n" in message
    assert "run_dir=m/config.json" in message


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(plan.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"run_dir=run: cannot write in .* \(Read-only file system\)"):
        plan.preflight(grpo())


def test_broken_model_settings_are_named(folder: Path) -> None:
    (folder / "m" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"m/config.json cannot be read"):
        plan.preflight(grpo())
    (folder / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match=r"m/config.json has no hidden_size"):
        plan.preflight(grpo())


def test_the_tokenizer_files_are_those_that_loading_asks_for() -> None:
    assert plan.TOKENIZER_FILES == policy.TOKENIZER_FILES
