"""Evaluation with vLLM in this process, the real one, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from grpo_math import config
from grpo_math.cli import app
from grpo_math.evaluation.hf import HFSampler
from grpo_math.evaluation.sampler import Asked, Sample, Sampler
from grpo_math.forms import Form
from grpo_math.lora import add_lora, save_adapter
from grpo_math.policy import make_policy
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Problem, Sampling, UserError

pytest.importorskip("vllm", reason="needs vLLM: make vllm")
pytestmark = pytest.mark.slow

# vLLM's attention on the CPU takes heads of 32 and more
MODEL = config.NewModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, context=128)
FORM = Form("{question}=")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, tokenizer = tmp_path_factory.mktemp("model"), character_tokenizer()
    model = small_model(MODEL, tokenizer, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)  # far from uniform: greedy decoding has no near ties
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    # of these vLLM must take nothing
    (path / "generation_config.json").write_text(json.dumps({"top_k": 1, "temperature": 0.5, "eos_token_id": [1, 70]}))
    return path


@pytest.fixture(scope="module")
def vllm(folder: Path) -> Any:
    from grpo_math.evaluation.vllm import VLLMSampler

    sampler = VLLMSampler(str(folder), 32, "float32", {"kv_cache_memory_bytes": 1 << 26})
    yield sampler
    sampler.close()


def asks(sampler: Sampler, count: int, form: Form = FORM) -> list[Asked]:
    return [sampler.ask("t", i, Problem(f"p{i}", "t", f"{i}+{7 * i}", str(8 * i)), form) for i in range(count)]


def collect(sampler: Sampler, asked: list[Asked], **sampling: Any) -> dict[int, list[Sample]]:
    blocks = sampler.sample(asked, Sampling(**{"n": 4, "max_tokens": 40, "seed": 5} | sampling))
    return {number: samples for block in blocks for number, samples in block}


def test_it_samples_what_transformers_would(folder: Path, vllm: Any) -> None:
    plain = HFSampler(str(folder), 32, "float32", "cpu")
    assert vllm.context == plain.context == 128
    asked = asks(vllm, 8)
    assert asked == asks(plain, 8)
    assert collect(vllm, asked, temperature=0.0) == collect(plain, asked, temperature=0.0)


def test_a_seed_decides_whatever_else_is_asked(vllm: Any) -> None:
    asked = asks(vllm, 40)  # more completions than it holds side by side
    found = collect(vllm, asked)
    assert found.keys() == set(range(40))
    assert len({sample.text for samples in found.values() for sample in samples}) > 150  # in spite of top_k=1
    assert collect(vllm, asked) == found
    assert collect(vllm, asked[3:5]) == {i: found[i] for i in (3, 4)}
    assert collect(vllm, asked, seed=6) != found


def test_stop_strings_end_a_completion_and_are_not_in_it(vllm: Any) -> None:
    free = collect(vllm, asks(vllm, 8))
    letter = free[0][0].text[2]
    cut = collect(vllm, asks(vllm, 8, Form("{question}=", stop=("\n\nQ:", letter))))
    for number, samples in cut.items():
        for before, after in zip(free[number], samples, strict=True):
            assert after.text == before.text.partition(letter)[0]
            if letter in before.text:
                assert after.finish_reason == "stop"
                assert after.tokens <= before.tokens


def test_what_is_left_after_an_interruption_does_not_come_with_the_next(vllm: Any) -> None:
    asked = asks(vllm, 30)
    stream = vllm.sample(asked, Sampling(4, 40, seed=5))
    next(stream)
    stream.close()
    assert collect(vllm, asked[:2], seed=9).keys() == {0, 1}


def test_an_adapters_folder_is_its_base_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    from grpo_math.evaluation.vllm import VLLMSampler

    tokenizer = character_tokenizer()
    model = type(small_model(MODEL, tokenizer, 0)).from_pretrained(folder)
    model.name_or_path = str(folder)
    policy = make_policy(model, tokenizer)
    add_lora(policy.model, config.LoRA(rank=2))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    tensors = [(n, p) for n, p in policy.model.named_parameters() if ".lora_" in n]
    from grpo_math.lora import peft_name

    save_adapter(policy.model, [(peft_name(n), p) for n, p in tensors], tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = HFSampler(str(tmp_path), 32, "float32", "cpu")
    adapted = VLLMSampler(str(tmp_path), 32, "float32", {"kv_cache_memory_bytes": 1 << 26})
    try:
        asked = asks(plain, 8)
        found = collect(adapted, asked, temperature=0.0)
        assert found == collect(plain, asked, temperature=0.0)
        assert found != collect(HFSampler(str(folder), 32, "float32", "cpu"), asked, temperature=0.0)
    finally:
        adapted.close()


def test_the_command(folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(folder), "--task", "arithmetic", "--limit", "8", "-n", "2", "--max-tokens", "10"]
    words += ["--engine", "vllm", "--engine-option", f"kv_cache_memory_bytes={1 << 26}", "--max-rows", "16"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["tasks"]["arithmetic"]["completions"] == 16
    assert results["manifest"]["model"]["engine"] == "vllm"
    assert results["manifest"]["model"]["options"] == {"kv_cache_memory_bytes": 1 << 26}


def test_options_that_vllm_does_not_have_are_refused(folder: Path) -> None:
    from grpo_math.evaluation.vllm import VLLMSampler

    with pytest.raises(UserError, match="--engine-option dtype: that is decided by other options"):
        VLLMSampler(str(folder), 32, "float32", {"dtype": "float16"})
    with pytest.raises(UserError, match=r"--engine vllm does not start for .*max_model_lengths"):
        VLLMSampler(str(folder), 32, "float32", {"max_model_lengths": 12})
