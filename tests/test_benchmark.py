"""The benchmark runs, and gives both sides the same work. No time and no size is asserted: those are for RESULTS.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from benchmarks import hash_reward, math_verifier, step
from benchmarks.setting import MIB, Result, Setting, Update, memory, reset_peak
from grpo_math.config import Scoring
from grpo_math.types import Problem, UserError
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory as Linux shows it")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("model")))


def tiny(model: str) -> Setting:
    return Setting(model, prompts=2, group_size=4, max_tokens=8, steps=1, rows=4, threads=1)


def measure(kind: str, name: str, setting: Setting | Update) -> Result:
    return step.measure("benchmarks.ours" if name == step.OURS else "benchmarks.with_trl", kind, setting)


@pytest.mark.slow
def test_a_step_of_both_sides_has_the_same_prompts_and_makes_a_table(model: str) -> None:
    pytest.importorskip("trl")
    setting = tiny(model)
    # two steps are too few for the lengths to agree: only the prompts are compared
    results = {name: [measure("step", name, setting)] for name in (step.OURS, step.trl_name(4))}
    for (result,) in results.values():
        assert len(result.seconds) == len(result.tokens) == 1
        assert 8 <= result.tokens[0] <= 64
        assert {name: len(values) for name, values in result.phases.items()} == dict.fromkeys(
            ("generate", "verify", "update"), 1
        )
        assert len(result.prompts) == 2
        assert result.peak >= result.baseline > 0
    assert results[step.OURS][0].prompts == results[step.trl_name(4)][0].prompts
    assert step.trl_name(4) in step.step_table(results, setting)


@pytest.mark.slow
def test_an_update_of_both_sides_is_measured(model: str) -> None:
    pytest.importorskip("trl")
    update = Update(model, completions=16, tokens=4, rows=8, threads=1)
    results = {name: [measure("update", name, update)] for name in (step.OURS, step.trl_name(8))}
    assert all(result.peak >= result.baseline > 0 for (result,) in results.values())
    assert "growth" in step.update_table(results)


def test_the_large_vocabulary_model_has_that_vocabulary(tmp_path: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(step.large_vocabulary_model(str(tmp_path), vocabulary=1000))
    assert loaded.get_output_embeddings().weight.shape == (1000, 64)


def test_different_prompts_or_lengths_are_no_comparison() -> None:
    def result(prompt: int, tokens: int) -> list[Result]:
        return [Result(seconds=[1.0], tokens=[tokens], prompts=[[prompt]])]

    step.same_work({step.OURS: result(1, 100), "other": result(1, 105)})
    with pytest.raises(SystemExit, match="prompts of other"):
        step.same_work({step.OURS: result(1, 100), "other": result(2, 100)})
    with pytest.raises(SystemExit, match="too far apart"):
        step.same_work({step.OURS: result(1, 100), "other": result(1, 120)})


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is ten times slower in the second round changes the seconds, not the ratio."""
    phases = {"generate": [0.1], "verify": [0.0], "update": [0.1]}
    ours, theirs = (
        [Result(seconds=[s], phases=phases, tokens=[1], baseline=0, peak=p) for s in seconds]
        for seconds, p in (((1.0, 10.0), MIB), ((2.0, 20.0), 4 * MIB))
    )
    table = step.step_table({step.OURS: ours, "other": theirs}, replace(tiny("unused"), prompts=1))
    assert "samples/s 2.00 (rounds 2.00 to 2.00)" in table
    assert "peak memory 0.25" in table


def test_peak_memory_sees_what_was_freed_again() -> None:
    before = reset_peak()
    table = b"x" * (64 * MIB)
    del table
    assert memory("VmHWM") - before >= 60 * MIB
    assert reset_peak() - before < 32 * MIB


def test_the_hash_reward_gives_siblings_different_rewards() -> None:
    problem = Problem("p", "arithmetic", "1+1=?", "2")
    rewards = {hash_reward.verify(problem, f"text {i}").reward for i in range(16)}
    assert len(rewards) == 16
    assert all(0 < reward <= 1 for reward in rewards if reward is not None)
    for problem, text, reward in hash_reward.EXAMPLES:
        assert hash_reward.verify(problem, text).reward == reward


def test_a_verifier_s_row_counts_what_it_got_wrong(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    lines = [("5", "5", True), ("5", "6", False), ("5", "5.0", False), ("5", "6", True), ("5", "9^{9^{9^9}}", False)]
    file.write_text(
        "".join(
            json.dumps({"id": n, "answer": gold, "candidate": answer, "expected": expected}) + "\n"
            for n, (gold, answer, expected) in enumerate(lines)
        )
    )
    pairs = math_verifier.load([file])
    measured = math_verifier.measure("math", pairs, Scoring(workers=1))
    assert math_verifier.row("ours", pairs, measured)[:4] == ["ours", "60.00%", "1 of 3 (33.33%)", "1 of 2 (50.00%)"]
    assert len(measured.milliseconds) == 5
    file.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="1 lines cannot be used"):
        math_verifier.load([file])
