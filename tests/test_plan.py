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
from transformers.models.auto import AutoModelForCausalLM, AutoModelForTokenClassification

from grpo_math import config, memory, memory_report, plan, preflight
from grpo_math.known_models import _TABLE, known_model
from grpo_math.memory_beside import beside
from grpo_math.memory_report import GIB, Device, need_of, remedies
from grpo_math.model_at import model_size
from grpo_math.model_size import CHARACTERS, Shape, size_of_folder, size_of_new
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
    by_formula = size_of_folder(tmp_path)
    assert by_formula.parameters == model.num_parameters()
    assert by_formula.context == 256
    model.save_pretrained(tmp_path)
    assert size_of_folder(tmp_path).parameters == model.num_parameters()


def test_a_new_model_has_the_size_that_is_planned() -> None:
    spec = config.NewModel(hidden_size=64, layers=2, heads=4, kv_heads=2, intermediate_size=96, context=128)
    tokenizer = character_tokenizer()
    assert len(tokenizer) == CHARACTERS
    assert size_of_new(spec).parameters == small_model(spec, tokenizer, seed=0).num_parameters()


def test_another_architecture_is_counted_in_its_files(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=64))
    model.config.save_pretrained(tmp_path)
    cfg = grpo(model={"path": str(tmp_path)})
    assert "not available: model type gpt2 without safetensors" in plan.plan(cfg)
    model.save_pretrained(tmp_path)
    assert size_of_folder(tmp_path).parameters == model.num_parameters()
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
    shape = size_of_folder(tmp_path).shape
    cfg = grpo(micro_batch_tokens=1024, backend={"gradient_checkpointing": checkpointing})
    parts = {part.name: part.bytes for part in memory.in_update(cfg, 0, shape, row=256)}
    assert output.last_hidden_state.requires_grad
    if checkpointing:  # the layer that is computed again comes on top of what is kept
        assert measured < parts["activations"]
        assert parts["activations"] < measured + 1.2 * self_kept(parts, cfg, shape)
    else:
        assert parts["activations"] == pytest.approx(measured, rel=0.1)


def self_kept(parts: dict[str, int], cfg: config.GRPO, shape: Shape | None) -> float:
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
    size = model_size(config.Model(path="m"))
    assert size is not None
    assert size.parameters == 887_680
    cfg = grpo(kl={"coefficient": 0.1}, prompts_per_step=2, group_size=4, micro_batch_tokens=512)
    assert [(p.name, p.bytes) for p in memory.always(cfg, 100, size.shape)] == [
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


# Several ranks, other backends, adapters, vLLM

SHAPE = Shape(64, 96, 3, 4, 2, 16, 120, tied=True)


def held(parts: list[memory.Part], on_cpu: bool = False) -> dict[str, int]:
    return {part.name: part.bytes for part in parts if part.on_cpu == on_cpu}


def deepspeed(zero: int, dtype: str = "bfloat16", **values: Any) -> dict[str, Any]:
    return {"name": "deepspeed", "dtype": dtype, "deepspeed": {"zero": zero, **values}}


@pytest.mark.parametrize(
    ("backend", "weights", "states", "gradients"),
    [
        ({}, 400, 800, {"gradients": 400}),
        (deepspeed(0), 200, 1200, {"gradients": 400, "bfloat16 gradients": 200}),
        (deepspeed(1), 200, 300, {"gradients": 400, "bfloat16 gradients": 200, "reduce buckets": 400}),
        (deepspeed(2), 200, 300, {"gradients": 100, "reduce buckets": 400}),
        (
            deepspeed(3), 50, 300,
            {"gradients": 100, "reduce buckets": 400, "gathered weights": 200},
        ),
        (deepspeed(0, "float32"), 400, 800, {"gradients": 400}),
        (deepspeed(2, "float32"), 400, 300, {"gradients": 100, "reduce buckets": 800}),
        (deepspeed(3, "float32"), 100, 200, {"gradients": 100, "reduce buckets": 800, "gathered weights": 400}),
    ],
)  # fmt: skip
def test_what_zero_divides(backend: dict[str, Any], weights: int, states: int, gradients: dict[str, int]) -> None:
    """100 parameters on 4 ranks."""
    cfg = grpo(backend=backend, kl={"coefficient": 0.1})
    always = held(memory.always(cfg, 100, SHAPE, 4))
    assert always == {
        "weights": weights,
        next(name for name in always if "Adam" in name): states,
        "reference": weights,
    }
    assert held(memory._gradients(cfg, 100, SHAPE, 4)) == gradients


def test_what_is_offloaded_is_in_the_cpus_memory() -> None:
    cfg = grpo(backend=deepspeed(3, offload_optimizer=True, offload_parameters=True))
    always = memory.always(cfg, 100, SHAPE, 4)
    assert held(always) == {}
    assert held(always, on_cpu=True) == {"weights": 50, "master copy, Adam": 300}
    update = memory._gradients(cfg, 100, SHAPE, 4)
    assert held(update, on_cpu=True) == {"gradients": 100}
    assert set(held(update)) == {"reduce buckets", "gathered weights"}


def test_the_users_own_deepspeed_file_is_read(folder: Path) -> None:
    (folder / "own.json").write_text('{"bf16": {"enabled": true}, "zero_optimization": {"reduce_bucket_size": 10}}')
    parts = held(memory._gradients(grpo(backend=deepspeed(2, config="own.json")), 100, SHAPE, 4))
    assert parts == {"gradients": 100, "reduce buckets": 2 * 10 * 2}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path, targets: Any) -> None:
    from grpo_math.lora import add_lora

    model: Any = AutoModelForCausalLM.from_config(ARCHITECTURES[2])
    model.config.save_pretrained(tmp_path)
    spec = config.LoRA(rank=8, targets=targets)
    add_lora(model, spec)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.adapter_parameters(spec, size_of_folder(tmp_path).shape) == trained


def test_an_adapter_is_what_is_trained() -> None:
    cfg = grpo(model={"path": "m", "lora": {"rank": 2}}, kl={"coefficient": 0.1})
    trained = memory.adapter_parameters(cfg.model.lora, SHAPE) or 0
    assert trained == 3 * 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 96))
    always = held(memory.always(cfg, 1000, SHAPE))
    assert always == {"frozen weights": 4000, "adapter": 4 * trained, "Adam states": 8 * trained}  # and no reference
    assert held(memory._gradients(cfg, 1000, SHAPE, 1)) == {"gradients": 4 * trained}
    whole = SHAPE.parameters()
    four = cfg.model_copy(update={"model": cfg.model.model_copy(update={"load_in_4bit": True})})
    linear = SHAPE.linear_parameters()
    half = cfg.model_copy(update={"backend": config.Backend(dtype="bfloat16")})
    always = held(memory.always(half, 1000, SHAPE))
    assert always == {"frozen weights": 2000, "adapter": 4 * trained, "Adam states": 8 * trained}
    expected = int(linear * memory.FOUR_BITS) + 4 * (whole - linear)
    assert held(memory.always(four, whole, SHAPE))["frozen weights"] == expected


def test_vllm_has_its_share_while_sampling() -> None:
    size = known_model("Qwen/Qwen2.5-7B-Instruct")
    assert size is not None
    assert size.parameters is not None
    rollout: dict[str, Any] = {"engine": "vllm", "vllm": {"memory": 0.5, "tensor_parallel": 2}}
    backend = deepspeed(2) | {"gradient_checkpointing": True}
    cfg = grpo(backend=backend, rollout=rollout, sampling={"max_tokens": 1536})
    device = Device(80 * GIB, "for the test")
    need = need_of(cfg, size, 8, device)
    assert need.sampler is not None
    assert need.sampler.share == 40 * GIB
    assert need.sampler.weights == size.parameters  # 2 bytes over 2 devices
    assert need.sampler.cache == 40 * GIB - size.parameters - GIB
    assert need.sampler.tokens == 2 * need.sampler.cache // (2 * 28 * 4 * 128 * 2)
    assert need.sampling == []
    assert need.peak == memory.total(need.always) + max(memory.total(need.update), need.sampler.share)
    rollout["vllm"] |= {"sleep": False}
    awake = need_of(grpo(backend=backend, rollout=rollout, sampling={"max_tokens": 1536}), size, 8, device)
    assert awake.peak == memory.total(need.always) + memory.total(need.update) + need.sampler.share
    report = "\n".join(memory_report.memory_report(cfg, size, 8, device))
    assert f"{need.sampler.tokens // 2048:,} completions of 2,048 tokens" in report
    served = grpo(backend=backend, rollout={"engine": "vllm_server", "server": {"urls": ["http://a:1"]}})
    apart = need_of(served, size, 8, device)
    assert apart.peak == memory.total(apart.always) + memory.total(apart.update)
    assert "vLLM, on the servers' devices, not on these" in "\n".join(
        memory_report.memory_report(served, size, 8, device)
    )


# Models beside the policy


def blocks_of(cfg: config.GRPO, ranks: int = 1, row: int = 256) -> dict[str, dict[str, int]]:
    """{title: {part: bytes on the device}}"""
    size = model_size(cfg.model)
    assert size is not None
    return {block.title: held(block.parts) for block in beside(cfg, size, row, ranks).blocks}


def test_a_critic_takes_turns_with_the_policy(folder: Path) -> None:
    few = {"prompts_per_step": 1, "group_size": 2, "micro_batch_tokens": 512}
    cfg = grpo(advantage="gae", kl={"coefficient": 0.1, "where": "reward"}, **few)
    count, device = 887_680, Device(80 * GIB, "for the test")
    size = model_size(cfg.model)
    assert size is not None
    policy = held(memory.in_update(cfg, count, size.shape, row=256))
    found = blocks_of(cfg)
    assert found["the critic, as large as the policy"] == {"weights": 4 * count, "Adam states": 8 * count}
    assert found["the critic learns"] == {name: policy[name] for name in ("gradients", "activations")}
    need = need_of(cfg, size, 1, device)
    assert need.peak == (4 + 8 + 4) * count + (4 + 8) * count + memory.total(need.update)  # with the reference
    report = plan.plan(cfg)
    assert "the critic, as large as the policy\n    weights                3.4 MiB   887,680 x 4 bytes" in report
    assert "while the critic learns\n    gradients              3.4 MiB   887,680 x 4 bytes" in report
    assert blocks_of(grpo(advantage="gae", critic={"shared": True})) == {}
    split = blocks_of(grpo(advantage="gae", backend=deepspeed(2)), ranks=4)
    assert split["the critic, as large as the policy"] == {"weights": 2 * count, "master copy, Adam": 3 * count}
    assert split["the critic learns"]["gradients"] == count
    adapted = {"model": {"path": "m", "lora": {"rank": 2}}, "backend": {"dtype": "bfloat16"}}
    assert blocks_of(grpo(advantage="gae", **adapted))["the critic, as large as the policy"]["weights"] == 4 * count
    settings = Qwen2Config(**SIZES)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder / "small")
    own = blocks_of(grpo(advantage="gae", critic={"path": "small"}))["the critic, small"]
    settings.num_labels = 1
    with torch.device("meta"):
        critic = AutoModelForTokenClassification.from_config(settings)
    assert own["weights"] == 4 * (critic.num_parameters() - 64 - 1)  # but for the head
    absent = plan.plan(grpo(advantage="gae", critic={"path": "org/name"}))
    assert "not in it: critic.path=org/name: unknown until the model is on this machine" in absent


def test_reward_models_are_there_all_the_time_or_while_they_score(folder: Path) -> None:
    count = 887_680
    size = model_size(config.Model(path="m"))
    assert size is not None
    assert size.shape is not None
    s = size.shape
    layer = 6 * s.hidden + 3 * s.queries + 2 * s.keys + 4 * s.intermediate
    scoring = {"activations": 512 * layer * 4}
    base: dict[str, Any] = {"model": "m", "micro_batch_tokens": 512}
    kept = blocks_of(grpo(rewards=[base]))
    assert kept == {"rewards.0, m": {"weights": 4 * count}, "rewards.0 scores": scoring}
    put_away = blocks_of(grpo(rewards=[{"verifier": "math"}, base | {"offload": True}]))
    assert put_away == {"rewards.1, m": {}, "rewards.1 scores": {"weights": 4 * count, **scoring}}
    half = blocks_of(grpo(rewards=[base | {"dtype": "bfloat16"}]))
    assert half["rewards.0, m"] == {"weights": 2 * count}
    elsewhere = [{"model": "m", "device": "cpu"}, {"model": "m", "url": "http://a:1"}, {"model": "org/name"}]
    elsewhere = [reward | {"name": f"r{i}"} for i, reward in enumerate(elsewhere)]
    assert blocks_of(grpo(rewards=elsewhere)) == {"rewards.0, m": {}}
    report = plan.plan(grpo(rewards=elsewhere))
    assert "not in it: rewards.1, m: on its server" in report
    assert "not in it: rewards.2.model=org/name: unknown until the model is on this machine" in report
    in_cpu = report.partition("in the CPU's memory, for each rank")[2]
    assert "rewards.0, m\n    weights                3.4 MiB   887,680 x 4 bytes (float32)" in in_cpu


def test_a_reward_model_that_learns_is_split_no_further_than_by_gradients(folder: Path) -> None:
    count = 887_680
    cfg = grpo(rewards=["math", {"model": "m"}], retraining={"every": 5}, backend=deepspeed(3))
    found = blocks_of(cfg, ranks=4)
    assert found["rewards.1, m"] == {"weights": 2 * count, "master copy, Adam": 3 * count}
    learns = found["rewards.1 learns (retraining)"]
    assert learns["gradients"] == count
    assert "gathered weights" not in learns
    assert "rewards.1 scores" in found


def test_a_vine_samples_more_rows(folder: Path) -> None:
    cfg = grpo(prompts_per_step=2, group_size=4, advantage="vine", vine={"continuations": 3})
    assert "key-value cache" in held(memory.in_sampling(cfg, SHAPE, row=256))
    plain = grpo(prompts_per_step=2, group_size=4)
    one, other = (held(memory.in_sampling(c, SHAPE, row=256))["key-value cache"] for c in (cfg, plain))
    assert one == 3 * other
    assert "3 times from the end of each step but the last" in plan.plan(cfg)


@pytest.mark.parametrize(
    ("values", "ranks", "gpu_memory", "said"),
    [
        ({"micro_batch_tokens": 65536}, 1, 48, "; set micro_batch_tokens=576"),
        ({"backend": deepspeed(0)}, 8, 24, "backend.deepspeed.zero=3"),
        ({"backend": deepspeed(2)}, 1, 16, "backend.deepspeed.offload_optimizer=true"),
        (
            {"rollout": {"engine": "vllm", "vllm": {"memory": 0.12}}, "backend": deepspeed(3)},
            8, 24, "vLLM's share of 2.88 GiB has no room beside the weights; set rollout.vllm.tensor_parallel=2",
        ),
    ],
)  # fmt: skip
def test_the_remedy_makes_it_fit(values: dict[str, Any], ranks: int, gpu_memory: int, said: str) -> None:
    size = known_model("Qwen/Qwen2.5-1.5B")
    assert size is not None
    cfg, device = grpo(**values), Device(gpu_memory * GIB, "for the test")
    verdict = memory_report.verdict(cfg, size, ranks, device)
    assert verdict.startswith("does not fit: ")
    assert said in verdict
    made = remedies(cfg, size, ranks, device)
    assert verdict.split("; set ")[1].split() == [f"{k}={str(v).lower() if v is True else v}" for k, v in made.items()]
    mended = memory_report._changed(cfg, made)
    assert need_of(mended, size, ranks, device).fits(device)
    for key in made:  # none of them in vain
        fewer = memory_report._changed(cfg, {k: v for k, v in made.items() if k != key})
        assert not need_of(fewer, size, ranks, device).fits(device)
    type(cfg).model_validate(mended.model_dump())  # and all of them allowed together


def test_no_remedy_is_made_up() -> None:
    size = known_model("meta-llama/Llama-3.1-70B")
    assert size is not None
    device = Device(80 * GIB, "for the test")
    verdict = memory_report.verdict(grpo(), size, 1, device)
    assert "; it takes devices with more memory, or backend.name=deepspeed, even with" in verdict
    assert "; set " not in verdict


def test_which_device_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert memory_report.device_of(grpo(), 40) == Device(40 * GIB, "as --gpu-memory says")
    assert memory_report.device_of(grpo(backend={"device": "cpu"})).cpu
    monkeypatch.setenv("PATH", str(tmp_path))
    assumed = memory_report.device_of(grpo())
    assert assumed.bytes == 80 * GIB
    assert "assumed" in assumed.source
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    program.chmod(0o755)
    assert memory_report.device_of(grpo()).bytes == 40960 << 20
    program.write_text("#!/bin/sh\nexit 9\n")
    assert memory_report.device_of(grpo()).bytes == 80 * GIB


def test_a_rank_takes_its_share_of_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = grpo(prompts_per_step=12, group_size=4, micro_batch_tokens=512)
    report = plan.plan(cfg, 4)
    assert "takes 12 completions of a step, 12 of an update" in report
    assert "at most 6 an update" in report  # 2 rows of 256 in 512 tokens
    assert "Peak memory of each of 4 ranks" in report
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert plan.plan(cfg) == report


# parameters as the models' own cards and files give them
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B-Base": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
}


@pytest.mark.parametrize(("hub_id", "published"), PUBLISHED.items(), ids=list(PUBLISHED))
def test_known_models_have_their_published_size(hub_id: str, published: int) -> None:
    size = known_model(hub_id)
    assert size is not None
    assert size.parameters == published


@pytest.mark.parametrize("hub_id", ["Qwen/Qwen2.5-7B", "Qwen/Qwen3-4B", "meta-llama/Llama-3.2-1B"])
def test_known_models_are_counted_as_transformers_counts(hub_id: str) -> None:
    size = known_model(hub_id)
    assert size is not None
    assert size.shape is not None
    kinds: dict[str, Any] = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
    s = size.shape
    settings = kinds[size.kind](
        vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=s.intermediate, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, head_dim=s.head_size, tie_word_embeddings=s.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings)
    assert model.num_parameters() == size.parameters


def test_a_known_model_needs_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    assert "P = 7,615,616,512 parameters" in plan.plan(grpo(model={"path": "Qwen/Qwen2.5-7B-Instruct"}))
    assert "Qwen/Qwen2.5-Coder-32B" in _TABLE
    assert known_model("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4") is None
    long = {"model": {"path": "Qwen/Qwen2.5-Math-7B"}, "sampling": {"max_tokens": 4096}}
    with pytest.raises(UserError, match=r"context of 4096 tokens; set sampling.max_tokens=2048 or less"):
        preflight.preflight(grpo(**long))


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
        "import sys; from grpo_math.config_file import load_config; from grpo_math.plan import plan\n"
        "from grpo_math.preflight import preflight\n"
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
    preflight.preflight(grpo())
    preflight.preflight(grpo(run_dir="a/b/c"))
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
        (
            {"task": {"name": "gsm8k", "prompt": "cot-8shot"}},
            "task.prompt=cot-8shot: cot-8shot@1 needs its completions cut",
        ),
        (
            {"evaluation": {"task": {"name": "gsm8k", "prompt": "cot-8shot"}}},
            "leave evaluation.task.prompt out, and use it with grpo-math evaluate",
        ),
        ({"task": {"name": "gsm8k", "prompt": "cot"}}, "task gsm8k has the prompts boxed@1"),
        ({"model": {"path": "./m2"}}, "model.path=./m2: there is no such folder; did you mean m?"),
        ({"model": {"path": "m/checkpoints/step-1"}}, "make or download it first"),
        ({"model": {"path": "m/x"}}, "there is no such folder"),
        ({"model": {"path": "what is this"}}, "neither a folder nor a Hub id"),
        ({"advantage": "gae", "critic": {"path": "./n"}}, "critic.path=./n: there is no such folder"),
        ({"advantage": "vine", "vine": {"boundary": "newlines"}}, "vine.boundary=newlines: unknown boundary"),
        ({"pretraining": {"data": {"files": ["none.jsonl"]}}}, "pretraining.data.files"),
        ({"run_dir": "m/config.json"}, "is a file; give another folder"),
        ({"run_dir": "m/config.json/run"}, "is a file; give another folder"),
        ({"sampling": {"max_tokens": 256}}, "context of 256 tokens; set sampling.max_tokens=128 or less"),
    ],
)
def test_preflight_refuses(folder: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        preflight.preflight(grpo(**values))
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
        preflight.preflight(grpo())
    assert said in str(caught.value)


def test_a_folder_of_checkpoints_names_the_newest(folder: Path) -> None:
    for step in ("step-1", "step-2"):
        (folder / "runs" / step).mkdir(parents=True)
        (folder / "runs" / step / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"did you mean runs/step-2\?"):
        preflight.check_model("runs")


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        preflight.preflight(grpo(task="arithmetik", model={"path": "./n"}, run_dir="m/config.json"))
    message = str(caught.value)
    assert message.count("unknown task") == 1
    assert "model.path=./n" in message
    assert "run_dir=m/config.json" in message


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"run_dir=run: cannot write in .* \(Read-only file system\)"):
        preflight.preflight(grpo())


def test_broken_model_settings_are_named(folder: Path) -> None:
    (folder / "m" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"m/config.json cannot be read"):
        preflight.preflight(grpo())
    (folder / "m" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match=r"m/config.json has no hidden_size"):
        preflight.preflight(grpo())
