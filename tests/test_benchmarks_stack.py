"""The benchmarks of engines, ranks and devices run through and give their tables. No time and no size is asserted.

All contenders of benchmarks/rollout.py are started by hand only: a second vLLM and a server are a minute's work. Here
it measures our vLLM engine, and what makes a race fair is tested without processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from benchmarks import gpu_step, gpu_step_side, methods, rollout, scaling
from benchmarks.gpu_step_side import TINY, Run, Shown, shape_of
from benchmarks.machine import table
from benchmarks.models import endless, qwen2_config, tokenizer_of
from benchmarks.rollout_side import Sampled, Sent, Setting
from benchmarks.scaling_rank import Cost, Work
from grpo_math import config
from grpo_math.config_file import load_config
from grpo_math.types import UserError
from tests.tiny import tiny_policy

MIB = 1 << 20
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory as Linux shows it")


def columns(text: str) -> list[int]:
    """The number of cells of each row of all tables in a text."""
    return [line.count("|") for line in text.splitlines() if line.startswith("|")]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm")
def test_the_rollout_benchmark_runs_through(capsys: pytest.CaptureFixture[str]) -> None:
    rollout.main(["--quick", "--contenders", "direct", "ours"])
    printed = capsys.readouterr().out
    assert "| vLLM engine |" in printed
    assert "Overhead of our vLLM engine over vLLM's own call in our engine" in printed
    ours = next(line for line in printed.splitlines() if line.startswith("| vLLM engine |"))
    assert ours.endswith("| 100.0% |")  # the same seeds, the same tokens
    assert printed.count("| vLLM engine |") == 2  # the second time with its weight sync


@linux
@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'grpo-math[deepspeed]'")
def test_the_scaling_benchmark_runs_through_on_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    scaling.main(["--quick", "--only", "world"])
    printed = capsys.readouterr().out
    assert "| zero2, 2 | 32 |" in printed
    assert len(set(columns(printed))) == 1


@linux
def test_the_gpu_benchmark_runs_through_on_the_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # in this process: starting two of their own is all but two seconds of the time
    monkeypatch.setattr(gpu_step, "measure", gpu_step_side.measure)
    gpu_step.main(["--device", "cpu", "--tiny", "--threads", str(torch.get_num_threads())])
    printed = capsys.readouterr().out
    assert "| tiny, all kept |" in printed
    assert "| tiny, checkpointing |" in printed
    assert "trainer bfloat16 : trainer float32" in printed


def test_unequal_work_is_no_comparison() -> None:
    setting = Setting("unused", prompts=2, group_size=2, prompt_tokens=4, max_tokens=8, temperature=1.0, threads=1)
    whole, short = Sampled(1.0, 1.0, 32, ["a"] * 4), Sampled(1.0, 1.0, 31, ["a"] * 4)
    rollout.check_equal_work({"ours": [whole], "plain": [whole]}, setting)
    with pytest.raises(SystemExit, match="plain sampled 31 tokens and not 32"):
        rollout.check_equal_work({"ours": [whole], "plain": [whole, short]}, setting)
    rollout.check_equal_facts({"ours": {"threads": 1, "x": 1}, "plain": {"threads": 1, "x": 1}, "hf": {"threads": 1}})
    with pytest.raises(SystemExit, match="threads differ"):
        rollout.check_equal_facts({"ours": {"threads": 1}, "hf": {"threads": 2}})
    with pytest.raises(SystemExit, match="x: 1 and 2"):
        rollout.check_equal_facts({"ours": {"threads": 1, "x": 1}, "plain": {"threads": 1, "x": 2}})


def test_overhead_is_taken_within_a_round() -> None:
    """A machine that is ten times slower in the second round changes the seconds, not the ratio."""
    samples = {
        "ours": [Sampled(1.05, 1.0, 32, ["a", "b"]), Sampled(10.5, 1.0, 32, ["a", "c"])],
        "plain": [Sampled(1.0, 1.0, 32, ["a", "b"]), Sampled(10.0, 1.0, 32, ["a", "d"])],
    }
    assert "5.0 % (rounds 5.0 to 5.0)" in rollout.overhead(samples, "plain")
    assert rollout.equal_share(samples["ours"], samples["plain"]) == 0.75
    assert rollout.overhead(samples, "direct") == ""
    assert "| 0.5000 | 2.0 | 4 |" in rollout.sync_table({"ours": [Sent(0.5, 2 * MIB)]})


def test_another_loss_for_the_same_work_is_no_comparison() -> None:
    work = Work("unused", prompts=1, group_size=2, max_tokens=4, steps=1, micro_batch_tokens=64, threads=1)
    phases = {name: [0.5] for name in scaling.PARTS}

    def cost(loss: float, tokens: int = 8) -> list[Cost]:
        return [Cost([1.0], phases, [tokens], [loss], peak=4 * MIB, growth=2 * MIB)]

    both = {"1": work, "2": work}
    printed = scaling.cost_table({"1": cost(0.25), "2": cost(0.25)}, both)
    assert "| 2 | 8 | 1.0000 (1.00) | 0.5000 (1.00) |" in printed
    with pytest.raises(SystemExit, match="for the same work"):
        scaling.cost_table({"1": cost(0.25), "2": cost(0.5)}, both)
    with pytest.raises(SystemExit, match="sampled 7 tokens and not 8"):
        scaling.cost_table({"1": cost(0.25, tokens=7)}, both)


def test_flops_are_those_of_the_formula() -> None:
    """By hand for 2 layers of width 64 (queries 64, keys 32, inner 128), 512 tokens: 2 rows of 4 + 12 tokens."""
    run = Run("tiny", "cpu", rows=2, prompt_tokens=4, tokens=12, micro_batch_tokens=64, chunk=8, steps=1, threads=1)
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3)
    assert TINY.linear_parameters() == matrices
    assert gpu_step.model_flops(TINY, run) == 32 * (6 * matrices + 12 * 2 * 64 * 16) + 24 * 6 * 512 * 64
    assert gpu_step.recomputed_flops(TINY, run, False) == 24 * 2 * 512 * 64
    again = gpu_step.recomputed_flops(TINY, run, True) - gpu_step.recomputed_flops(TINY, run, False)
    assert again == 32 * (2 * matrices + 4 * 2 * 64 * 16)
    assert gpu_step.peak_of("NVIDIA H200") == 989e12
    assert gpu_step.peak_of("NVIDIA H100 PCIe") == 756e12
    assert gpu_step.peak_of("NVIDIA L40S") == 362e12
    assert gpu_step.peak_of("something else") is None
    shown = Shown(seconds=[1.0], before=MIB, peak=2 * MIB)
    out = gpu_step.step_table({("tiny", False): shown, ("tiny", True): Shown(out_of_memory=True)}, run, 1e9)
    assert len(set(columns(out))) == 1
    assert "out of memory" in out


def test_models_are_of_their_shape_and_their_tokens_decode() -> None:
    assert sum(p.numel() for p in Qwen2ForCausalLM(qwen2_config(TINY, 64)).parameters()) == TINY.parameters()
    assert shape_of("1.5B").hidden == 1536
    with pytest.raises(SystemExit, match="no size of"):
        shape_of("2B")
    tokenizer = tokenizer_of(300)
    assert len(tokenizer) == 300
    assert all(tokenizer.decode([i]) for i in range(2, 300))
    policy = tiny_policy()
    assert endless(policy).eos_ids == frozenset()
    assert endless(policy).model is policy.model
    assert table(["a"], [["1"]]) == "| a |\n| --- |\n| 1 |"


def run_folder(cfg: config.Common, rows: list[dict[str, float]], drawn: Sequence[int]) -> None:
    """What a finished run leaves that is read. drawn: the step of each sampled completion."""
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "completions.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in drawn))


def test_what_a_method_cost_is_read_from_its_run_folder(tmp_path: Path) -> None:
    given = methods.parse(["--base", str(tmp_path / "base"), "--out", str(tmp_path), "--seed", "7"])
    base = load_config(methods.SFT, [f"run_dir={given.base}"])
    cfgs = {name: methods.configured(method, name, base, given) for name, method in methods.METHODS.items()}
    assert len({cfg.task.options["seed"] for cfg in cfgs.values() if cfg.task}) == len(
        cfgs
    )  # nobody has another's problems
    assert {cfg.model.path for cfg in cfgs.values()} == {f"{given.base}/model"}
    assert {cfg.seed for cfg in cfgs.values()} == {7}

    rest = cfgs["rest"]  # 64 completions an update
    run_folder(
        rest,
        [
            {"step": 1, "loss/total": 1.0, "round/kept": 100, "time/generate": 2.0, "time/update": 1.0},
            {
                "step": 2,
                "loss/total": 0.5,
                "round/kept": 100,
                "time/update": 1.0,
                "time/evaluate": 9.0,
                "eval/accuracy": 0.5,
            },
            {
                "step": 3,
                "loss/total": 0.5,
                "round/kept": 10,
                "time/generate": 3.0,
                "time/update": 1.0,
                "eval/accuracy": 0.7,
            },
        ],
        drawn=[1] * 512 + [3] * 512,
    )
    scores = {"pass@1": 0.75, "pass@1_interval": [0.7, 0.8], "pass@8": 0.9}
    found = methods.outcome("ReST", rest, scores)
    assert (found.samples, found.trained, found.updates, found.seconds) == (1024, 64 + 64 + 10, 3, 8.0)
    # the run's own measurement of its end gives way to the better one
    assert found.points == (methods.Point(512, 4.0, 0.5), methods.Point(1024, 8.0, 0.75))

    # a step of online DPO without a pair is sampled and teaches nothing; a group without a signal teaches GRPO nothing
    dpo = {"step": 1, "data/examples": 60, "loss/total": 0.7, "time/update": 1.0}
    run_folder(cfgs["online_dpo"], [dpo, {"step": 2, "data/examples": 0, "time/update": 0.0}], [1] * 8 + [2] * 8)
    assert methods.outcome("online DPO", cfgs["online_dpo"], scores).trained == 120
    assert methods.outcome("online DPO", cfgs["online_dpo"], scores).updates == 1
    grpo = {"step": 1, "completion/count": 512, "groups/no_signal": 0.25, "loss/total": 0.0, "time/update": 1.0}
    run_folder(cfgs["grpo"], [grpo], [1] * 512)
    assert methods.outcome("GRPO", cfgs["grpo"], scores).trained == 384

    lines = methods.methods_table({**scores, "pass@1": 0.3}, [found]).splitlines()
    assert lines[2].startswith("| base model | 0.300 [0.700, 0.800] | 0.900 |")
    assert lines[3] == "| ReST | 0.750 [0.700, 0.800] | 0.900 | 1,024 | 138 | 3 | 8 |"
    pytest.importorskip("matplotlib")
    assert methods.picture(0.3, [found], tmp_path / "methods.png").stat().st_size > 10_000


def test_the_methods_begin_from_a_base_model_that_is_there(tmp_path: Path) -> None:
    given = methods.parse(["--base", str(tmp_path)])
    with pytest.raises(UserError, match=r"has no model in it; give a run folder, such as runs/quickstart/base"):
        methods.base_run(given, "auto")
