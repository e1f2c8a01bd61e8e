"""Credit assignment, critic and PPO as runs: their numbers by hand, breaking off, several ranks, what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

from grpo_math import config
from grpo_math.backend.make import value_model_of
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch
from grpo_math.config_file import dump_config
from grpo_math.recipes import retraining
from grpo_math.recipes.critic import ByCritic, BySharedCritic
from grpo_math.recipes.run import RECIPES, run
from grpo_math.types import UserError
from tests.credit import RUNS, configured, make_setting
from tests.offline import distance, lines, weights

ROOT = Path(__file__).parents[1]
MODELS = ("critic", "reward_model")  # folders of a checkpoint with a model of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("credit")
    make_setting(path)
    return path


def beside(cfg: config.Common, step: str | None = None) -> dict[str, torch.Tensor]:
    """The weights of the critic, or of the reward model that learns, in a checkpoint; none where there is neither."""
    path = Path(cfg.run_dir) / (f"checkpoints/{step}" if step else "model")
    found = [load_file(file) for name in MODELS if (file := path / name / "model.safetensors").exists()]
    return found[0] if found else {}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference."""
    assert one.keys() == other.keys()
    return max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)


# Every run: it learns, its numbers are finite, and it goes on as if nothing had been


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_that_breaks_off_goes_on_as_if_nothing_had_been(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (configured(folder, name, tmp_path / half) for half in ("whole", "broken"))
    run(whole)
    step = RECIPES[config.GRPO].step  # type: ignore[attr-defined]

    def breaks(self: Any, number: int) -> Any:
        result = step(self, number)
        if number == 3:  # its weights have changed, and nothing of it is on disk
            raise RuntimeError("the power is gone")
        return result

    monkeypatch.setattr(RECIPES[config.GRPO], "step", breaks)
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(broken)
    monkeypatch.undo()
    assert len(lines(broken)) == 2
    run(broken)
    assert lines(whole) == lines(broken)
    assert lines(whole, "completions.jsonl") == lines(broken, "completions.jsonl")
    assert distance(whole, broken) == 0
    assert apart(beside(whole), beside(broken)) == 0
    assert bool(beside(whole)) == (name in ("ppo", "pretraining", "retraining"))
    for row in lines(whole):  # null is what is not known, such as how two constants correlate
        assert {key for key, value in row.items() if value is None} <= {key for key in row if key.startswith("guard/")}
        assert all(math.isfinite(value) for value in row.values() if value is not None)
    start = load_file(folder / "model" / "model.safetensors")
    assert apart(weights(whole), start) > 1e-4


# The same update, however it is computed


def test_no_micro_batch_and_no_merging_changes_the_update(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy and critic, in two steps with the imitated rows beside."""
    changes = {"steps": 2, "optimizer": {"learning_rate": 1e-3, "eps": 1e-5}, "critic": {"learning_rate": 1e-3}}
    merged = []
    merge = Batch.merge_copies

    def counted(self: Batch) -> Batch:
        merged.append(len(self) - len(merge(self)))
        return merge(self)

    monkeypatch.setattr(Batch, "merge_copies", counted)
    large, small, single = (
        configured(folder, "pretraining", tmp_path / name, micro_batch_tokens=tokens, **changes)
        for name, tokens in (("large", 4096), ("small", 20), ("single", 4096))
    )
    run(large)
    assert sum(merged) > 0
    run(small)
    monkeypatch.setattr(Batch, "merge_copies", lambda self: self)
    run(single)
    for other in (small, single):
        assert distance(large, other) < 1e-6
        assert apart(beside(large), beside(other)) < 1e-6


@pytest.mark.slow
def test_two_processes_of_deepspeed_learn_what_one_of_torch_does(folder: Path, tmp_path: Path) -> None:
    """PPO with ZeRO-2, with imitated rows, with a head on the policy, and a reward model that learns, in one start of
    the processes."""
    # without a larger eps AdamW makes a step of what is rounding, where a gradient is exactly 0
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 1e-3, "eps": 1e-5}, "steps": 2}
    both, files = [], []
    stages = {"ppo": 2, "pretraining": 3, "ppo_shared": 3, "retraining": 2}
    for name, zero in stages.items():
        backend = {"name": "deepspeed", "deepspeed": {"zero": zero}}
        both.append(configured(folder, name, tmp_path / name, backend=backend, **changes))
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(dump_config(both[-1]))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "tests.credit", *map(str, files)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, found in zip(stages, both, strict=True):
        alone = configured(folder, name, tmp_path / "alone" / name, **changes)
        run(alone)
        assert distance(alone, found) < 1e-5
        assert apart(beside(alone), beside(found)) < 1e-5
        for one, other in zip(lines(alone), lines(found), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


# PPO by hand


@pytest.mark.parametrize("lam", [1.0, 0.8])
def test_advantages_are_those_of_the_critic_s_values(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lam: float
) -> None:
    """r_t = -beta (log pi - log ref), and the score at the last token; delta, A and R = A + V from the last token on.
    The critic's values are those that plain transformers reads from its checkpoint, at the token before."""
    batches: dict[int, Batch] = {}
    learn = ByCritic.learn
    monkeypatch.setattr(
        ByCritic, "learn", lambda self, batch, n: (batches.update({n: batch}), learn(self, batch, n))[1]
    )
    gamma, beta = 0.9, 0.1
    kl = {"coefficient": beta, "where": "reward", "estimator": "k1"}
    critic = {"gamma": gamma, "lam": lam, "learning_rate": 1e-3, "warmup_steps": 1}
    cfg = configured(folder, "ppo", tmp_path / "run", whiten=False, kl=kl, critic=critic)
    run(cfg)
    start = load_file(folder / "model" / "model.safetensors")
    after = [load_file(tmp_path / f"run/checkpoints/step-{n}/model.safetensors") for n in (1, 2)]
    assert apart(after[0], start) == 0  # the critic alone has learnt
    assert apart(after[1], start) > 1e-4
    assert float(beside(cfg, "step-1")["score.weight"].abs().max()) > 0
    assert not batches[1].old_values.any()  # type: ignore[union-attr]
    for number, batch in batches.items():
        records = [record for record in lines(cfg, "completions.jsonl") if record["step"] == number]
        scores = [next(iter(record["parts"].values())) for record in records]
        assert batch.old_values is not None
        assert batch.returns is not None
        assert batch.old_logprobs is not None
        assert batch.ref_logprobs is not None
        for row, score in enumerate(scores):
            places = batch.loss_mask[row].nonzero().squeeze(1).tolist()
            ahead = following = 0.0
            for t in reversed(places):
                value = float(batch.old_values[row, t])
                given = -beta * float(batch.old_logprobs[row, t] - batch.ref_logprobs[row, t])
                given += score if t == places[-1] else 0.0
                ahead = given + gamma * following - value + gamma * lam * ahead
                following = value
                assert float(batch.advantages[row, t]) == pytest.approx(ahead, abs=1e-6)
                assert float(batch.returns[row, t]) == pytest.approx(ahead + value, abs=1e-6)
                if number == 1 and lam == 1:  # V = 0 and pi = ref: the discounted reward to go
                    assert ahead == pytest.approx(gamma ** (places[-1] - t) * score, abs=1e-6)
        if number > 1:
            assert float(batch.old_values.abs().max()) > 1e-3
            moved = float((batch.old_logprobs - batch.ref_logprobs).abs().max())
            assert moved > 1e-3 if number > 2 else moved < 1e-6  # the critic alone has learnt before step 2
            saved = tmp_path / f"run/checkpoints/step-{number - 1}/critic"
            plain = AutoModelForTokenClassification.from_pretrained(saved, num_labels=1).eval()
            with torch.no_grad():
                logits = plain(batch.token_ids).logits[..., 0]
            mask = batch.loss_mask[:, 1:]
            assert torch.allclose(logits[:, :-1][mask], batch.old_values[:, 1:][mask], atol=1e-5)


def test_a_shared_critic_s_values_come_of_the_pass_that_gives_the_log_probabilities(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step reads its rows once, after the few by which sampler and trainer are compared."""
    asked: list[int] = []
    known: list[Batch] = []
    logprobs, learn = TorchBackend.logprobs, BySharedCritic.learn
    monkeypatch.setattr(TorchBackend, "logprobs", lambda self, b: (asked.append(len(b.weights)), logprobs(self, b))[1])
    monkeypatch.setattr(BySharedCritic, "learn", lambda self, b, n: (known.append(b), learn(self, b, n))[1])
    run(configured(folder, "ppo_shared", tmp_path / "run"))
    assert len(asked) == 2 * len(known) == 6
    for rows, batch in zip(asked[1::2], known, strict=True):
        assert rows == len(torch.cat([batch.token_ids, batch.loss_mask.long()], 1).unique(dim=0))
        assert batch.old_logprobs is not None
        assert batch.old_values is not None
        gap = (batch.old_logprobs - batch.sampler_logprobs)[batch.loss_mask].abs().max()
        assert float(gap) < 1e-4
    assert known[-1].old_values is not None
    assert float(known[-1].old_values.abs().max()) > 1e-4


def test_an_adapted_policy_s_critic_learns_whole_in_float32(folder: Path, tmp_path: Path) -> None:
    """AdamW works on its weights themselves; the base weights below the adapter alone are in bfloat16."""
    model = {"path": str(folder / "model"), "lora": {"rank": 2}}
    cfg = configured(folder, "ppo", tmp_path / "run", model=model, backend={"dtype": "bfloat16"})
    value = value_model_of(cfg, cfg.model.path, "critic")
    assert {p.dtype for p in value.model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in value.model.parameters())


def test_a_verifier_that_tells_of_no_steps_is_named(folder: Path, tmp_path: Path) -> None:
    verifier = tmp_path / "verifier.py"
    verifier.write_text(
        "from grpo_math.types import Verdict\nEXAMPLES = []\n"
        "def verify(problem, completion):\n    return Verdict(1.0, 'correct')\n"
    )
    cfg = configured(folder, "grpo_process", tmp_path / "run", rewards=[{"verifier": str(verifier)}])
    with pytest.raises(
        UserError, match=r"none of the rewards .*verifier\.py tells of steps: add a process reward model"
    ):
        run(cfg)


# The reward model that goes on learning


def test_a_reward_model_learns_from_the_newest_and_a_share_of_older_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []  # of each update: samples of this step, and of those before
    memory: list[tuple[int, int]] = []  # at each update: samples of this step, and how many older ones are remembered
    scored: list[Any] = []
    batch_of, update = retraining.batch_of, retraining.Retraining.update
    newest: set[tuple[str, str]] = set()

    def seen(reads: Any, pad_id: int) -> Batch:
        texts = [(read.example.prompt.text, read.example.completion.text) for read in reads]
        drawn.append((sum(text in newest for text in texts), sum(text not in newest for text in texts)))
        return batch_of(reads, pad_id)

    def updates(self: Any, step: int, number: int) -> Any:
        newest.clear()
        newest.update((sample.asked.prompt, sample.asked.completion) for sample in self.newest)
        memory.append((len(self.newest), len(self.older)))
        scored.append(self.reward.verdicts([self.newest[0].asked])[0].reward)
        result = update(self, step, number)
        scored.append(self.reward.verdicts([self.newest[0].asked])[0].reward)
        return result

    monkeypatch.setattr(retraining, "batch_of", seen)
    monkeypatch.setattr(retraining.Retraining, "update", updates)
    own = {"every": 1, "updates": 1, "examples": 8, "replay": 0.25, "remembered": 20, "learning_rate": 1e-3}
    cfg = configured(folder, "retraining", tmp_path / "run", retraining=own)
    run(cfg)
    assert memory == [(16, 0), (16, 16), (16, 20)]
    assert drawn == [(8, 0), (6, 2), (6, 2)]  # 8 examples, and 2 of them older as soon as there are some
    for before, after in zip(scored[::2], scored[1::2], strict=True):
        assert before != after
    start = load_file(folder / "outcome" / "model.safetensors")
    assert apart(beside(cfg, "step-1"), start) > 1e-4
    assert apart(beside(cfg), beside(cfg, "step-1")) > 1e-4


def test_a_run_that_an_alarm_has_stopped_can_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has saved, and is not finished: without the stop, the same command ends it as if it had never stopped."""
    alarm = {"gap": None, "above_p99": None, "length_correlation": 1e-9, "patience": 1}
    rewards = [{"verifier": str(folder / "verifier.py")}, {"model": str(folder / "outcome")}]
    stopping, going_on, whole = (
        configured(folder, "rloo", tmp_path / name, rewards=rewards, guards=alarm | {"stop": stop})
        for name, stop in (("run", True), ("run", False), ("whole", False))
    )
    run(stopping)
    done = len(lines(stopping))
    assert done < stopping.steps
    said = capsys.readouterr().out
    assert f"stopped after step {done}: guards.stop=true ends the run: guard/length_correlation is" in said
    run(going_on)
    run(whole)
    assert lines(going_on) == lines(whole)
    assert distance(going_on, whole) == 0
