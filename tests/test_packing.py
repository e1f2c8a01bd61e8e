"""Packed rows are what padded ones are: log-probabilities, losses, gradients, weights; and no row sees another.

`python -m tests.test_packing` under torchrun is what the test with DeepSpeed starts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from benchmarks import packing as benchmark
from grpo_math import config
from grpo_math.backend.dealing import deal
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import pad_rows
from grpo_math.lora import add_lora
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.packing import BY_ROW, packed, packed_by_row
from grpo_math.packing_checks import check_packing
from grpo_math.policy import make_policy
from grpo_math.small_model import character_tokenizer
from grpo_math.types import UserError
from tests.tiny import completion, prompt, tiny_policy

UNEVEN = (2, 11, 1, 8, 5, 3)
SHAPES = {"uneven": UNEVEN, "one row": (7,), "all of one length": (4, 4, 4)}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
WINDOWS = ("mistral", "gemma2", "gemma3_text")


def policy_of(kind, attention="sdpa", dtype=torch.float32, **options):
    """A small model of an architecture of transformers, with windows of 4 tokens where it has some."""
    tokenizer = character_tokenizer()
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    window = {"sliding_window": 4} if kind in WINDOWS else {}
    settings = CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **{**SIZES, **special, **window, **options})
    model = AutoModelForCausalLM.from_config(settings, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # far from uniform
    return make_policy(model, tokenizer)


def batch_of(policy, lengths=UNEVEN, pairs=False):
    random = torch.Generator().manual_seed(1)
    rows = [
        (prompt(policy, "1+" * (i % 3 + 1)), completion(torch.randint(4, 60, (n,), generator=random).tolist()))
        for i, n in enumerate(lengths)
    ]
    batch = pad_rows(rows, [True] * len(rows), policy.pad_id)
    batch = replace(batch, weights=REDUCTIONS["token_mean"](batch.loss_mask, 16))
    if pairs:
        batch = replace(batch, units=torch.arange(len(rows)) // 2)
    return batch.with_advantages(torch.randn(len(rows), generator=random))


def checked(policy):
    policy = policy.with_packing(True)
    check_packing(policy)
    return policy


@pytest.mark.parametrize(
    ("kind", "attention", "layout"),
    [
        ("qwen2", "sdpa", packed_by_row),
        ("qwen2", "eager", packed),
        ("llama", "sdpa", packed_by_row),
        ("gpt_neox", "sdpa", packed_by_row),
        ("mistral", "sdpa", packed),  # all windows
        ("gemma2", "eager", packed),  # every other layer, and a cap on logits
        ("gemma3_text", "sdpa", packed),
    ],
)
def test_log_probabilities_and_entropies_are_the_padded_ones_and_no_row_sees_another(kind, attention, layout):
    policy = policy_of(kind, attention)
    batch = batch_of(policy)
    expected, entropies = policy.logprobs(batch, 0.7, 8, with_entropy=True)
    other = checked(policy)
    assert other.layout is layout
    found, spread = other.logprobs(batch, 0.7, 8, with_entropy=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, entropies, atol=1e-5, rtol=0)
    assert expected.std() > 0.1
    changed = batch.token_ids.clone()
    changed[1, : batch.lengths[1]] = changed[1, : batch.lengths[1]].flip(0)
    moved, _ = other.logprobs(replace(batch, token_ids=changed), 0.7, 8)
    rest = [0, 2, 3, 4, 5]
    assert torch.equal(moved[rest], found[rest])
    assert not torch.allclose(moved[1], found[1], atol=1e-2)


def trained(policy, batch, packing, steps=3, **options):
    """Metrics of each step, weights at the end, and log-probabilities of the batch then."""
    backend = TorchBackend(
        policy,
        config.Backend(device="cpu", packing=packing, **options),
        config.Optimizer(learning_rate=1e-3, eps=1e-6),  # a gradient near 0 must not decide the sign of an update
        10,
        micro_batch_tokens=40,
        temperature=1.0,
    )
    loss = make_loss(config.Loss(entropy_bonus=0.01), config.KL(), config.Correction())
    metrics = [backend.step(batch, lambda lp, entropy, part: loss(lp, entropy, part, 0.0), True) for _ in range(steps)]
    return metrics, {name: t.detach().clone() for name, t in backend.weights()}, backend.logprobs(batch)


def same_training(ours, theirs, tolerance):
    for found, expected in zip(ours[0], theirs[0], strict=True):
        assert found == pytest.approx(expected, abs=tolerance)
    assert any(abs(step["optim/grad_norm"]) > 0.1 for step in theirs[0])
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, atol=tolerance, rtol=0, msg=name)
    torch.testing.assert_close(ours[2], theirs[2], atol=tolerance, rtol=0)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("lengths", SHAPES.values(), ids=SHAPES)
def test_three_updates_are_the_padded_ones(lengths, pairs):
    batch = batch_of(tiny_policy(), lengths, pairs)
    batch = replace(batch, old_logprobs=tiny_policy(sharp=3.0).score(batch, 1.0, 64, 1000) + 0.05 * batch.loss_mask)
    ours, theirs = (trained(tiny_policy(sharp=3.0), batch, packing) for packing in (True, False))
    same_training(ours, theirs, 2e-5)


def test_three_updates_with_windows_and_masks_of_transformers_are_the_padded_ones():
    ours, theirs = (
        trained(policy_of("gemma3_text"), batch_of(tiny_policy()), packing, gradient_checkpointing=True)
        for packing in (True, False)
    )
    same_training(ours, theirs, 5e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_recomputation_and_adapters_pack(rank):
    def policy():
        made = tiny_policy(sharp=3.0)
        if not rank:
            return made
        lora = config.LoRA(rank=rank)
        torch.manual_seed(0)
        add_lora(made.model, lora)
        return replace(made, lora=lora)

    batch = batch_of(tiny_policy())
    ours, theirs = (trained(policy(), batch, packing, gradient_checkpointing=True) for packing in (True, False))
    same_training(ours, theirs, 2e-5)


def test_bfloat16_packs_and_is_as_near_to_float32_as_padding_is():
    policy = tiny_policy(sharp=3.0)
    batch = batch_of(policy)
    exact = policy.score(batch, 1.0, 64, 1000)
    rough = policy.score(batch, 1.0, 64, 1000, torch.bfloat16)
    other = checked(policy)
    found = other.score(batch, 1.0, 64, 1000, torch.bfloat16)
    assert (found - exact).abs().max() < 2 * (rough - exact).abs().max() + 1e-3
    check_packing(policy_of("llama", dtype=torch.bfloat16).with_packing(True))  # weights, too
    metrics, _, _ = trained(tiny_policy(), batch, True, dtype="bfloat16")
    assert metrics[0]["optim/grad_norm"] > 0


@pytest.mark.parametrize("pairs", [False, True])
def test_a_micro_batch_has_the_budget_in_true_tokens_and_whole_units(pairs):
    batch = batch_of(tiny_policy(), (30, 1, 30, 1, 30, 1, 4, 5), pairs)
    parts, units = batch.micro_batches(80, packing=True), 4 if pairs else 8
    assert sorted(row for part in parts for row in part) == list(range(8))
    assert all(int(batch.lengths[part].sum()) == batch.size(part, packing=True) <= 80 for part in parts)
    assert len(parts) < len(batch.micro_batches(80))
    assert sum(len(batch.in_units(part)) for part in parts) == units
    assert sorted(map(len, batch.micro_batches(1, packing=True))) == [8 // units] * units  # a unit is never split
    dealt = deal(batch, 80, 3, packing=True)
    assert len({len(mine) for mine in dealt}) == 1
    rows = [row for mine in dealt for micro_batch in mine if not micro_batch.extra for row in micro_batch.rows]
    assert sorted(rows) == list(range(8))
    assert all(batch.size(m.rows, packing=True) <= 80 for mine in dealt for m in mine)


MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}


@pytest.mark.parametrize(
    ("kind", "attention", "options", "said"),
    [
        ("lfm2", "sdpa", {"layer_types": ["conv", "full_attention"]}, "layers of the kind conv"),
        ("falcon_h1", "sdpa", MAMBA, "layers of the kind hybrid"),
        ("rwkv", "eager", {"attention_hidden_size": 32}, "a state from token to token"),
        ("bloom", "eager", {"n_layer": 1, "n_head": 2}, "takes no position ids"),
        # takes position ids, and has its mask look past them all the same; with sdpa it can be packed
        ("biogpt", "eager", {}, "see the tokens of the row before"),
    ],
)
def test_a_model_whose_rows_would_meet_is_refused(kind, attention, options, said):
    policy = policy_of(kind, attention, **options)
    with pytest.raises(UserError, match=rf"backend\.packing=true: .*{said}.*set backend\.packing=false"):
        TorchBackend(policy, config.Backend(device="cpu", packing=True), config.Optimizer(), 1, 100, 1.0)
    check_packing(policy)  # padded, nothing is asked


def test_attention_by_row_leaves_sampling_and_what_is_saved_as_they_are(tmp_path):
    policy = policy_of("llama")
    token_ids = torch.tensor([[0, 0, 7, 8], [9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def sample():
        return policy.model.generate(
            input_ids=token_ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip

    before = sample()
    packing = checked(policy)
    assert policy.model.config._attn_implementation == BY_ROW
    after = sample()
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.logits, after.logits, strict=True))
    packing.model.save_pretrained(tmp_path)
    assert BY_ROW not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != BY_ROW
    batch = batch_of(policy)
    again = policy.with_packing(False).score(batch, 1.0, 8, 1000)
    torch.testing.assert_close(again, packing.score(batch, 1.0, 8, 1000), atol=1e-5, rtol=0)


def test_the_benchmark_runs_through(capsys):
    benchmark.main(["--quick"])
    assert "| 512 | " in capsys.readouterr().out


def test_the_benchmark_draws_lengths_like_those_of_the_file(shared, tmp_path):
    real, drawn = (torch.tensor(benchmark.draw(f, 4000, 0)).float() for f in (benchmark.GSM8K, tmp_path / "none"))
    assert (real.mean(0) / drawn.mean(0) - 1).abs().max() < 0.05
    assert (real.std(0) / drawn.std(0) - 1).abs().max() < 0.15


@pytest.mark.slow
def test_two_ranks_with_deepspeed_train_as_padded_torch():
    pytest.importorskip("deepspeed")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", __name__],
        env={k: v for k, v in os.environ.items() if k not in names} | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]


def on_two_ranks():
    """ZeRO-2 and 3 in float32, packed, with recomputation and a reference, against padded rows in plain torch."""
    from grpo_math.backend.deepspeed import DeepSpeedBackend
    from grpo_math.ranks import join, leave

    ranks = join(120.0)
    batch = batch_of(tiny_policy())
    expected = trained(tiny_policy(sharp=3.0), batch, packing=False)
    optimizer = config.Optimizer(learning_rate=1e-3, eps=1e-6)
    function = make_loss(config.Loss(entropy_bonus=0.01), config.KL(), config.Correction())
    for zero in (2, 3):
        spec = config.DeepSpeed(zero=zero)
        settings = config.Backend(
            name="deepspeed", device="cpu", packing=True, gradient_checkpointing=True, deepspeed=spec
        )
        backend = DeepSpeedBackend(tiny_policy(sharp=3.0), settings, optimizer, 10, 40, 1.0, ranks)
        reference, start = backend.reference(config.KL()), backend.logprobs(batch)
        metrics = [backend.step(batch, lambda lp, h, part: function(lp, h, part, 0.0), True) for _ in range(3)]
        weights = {name: t.detach().clone() for name, t in backend.weights()}
        same_training((metrics, weights, backend.logprobs(batch)), expected, 2e-5)
        assert (backend.logprobs(batch) - start).abs().max() > 1e-3
        torch.testing.assert_close(reference.logprobs(batch), start, atol=1e-5, rtol=0)
        backend.close()
    leave()


if __name__ == "__main__":
    on_two_ranks()
