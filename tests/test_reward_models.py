"""reward_model and process_reward_model as runs: what they learn and save, that nothing is lost, what they refuse."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from grpo_math import config
from grpo_math.config_file import dump_config, load_config
from grpo_math.examples.example import Example
from grpo_math.examples.judged import dealt, judged_samples, once_each, ranked_samples
from grpo_math.examples.raw import RawCompletion, RawExample
from grpo_math.filtering.candidate import Candidate
from grpo_math.plan import plan
from grpo_math.recipes.reward_examples import Judged, every_token
from grpo_math.recipes.reward_files import held_out_share, reward_examples
from grpo_math.recipes.reward_training import RewardTraining, spread
from grpo_math.recipes.run import run
from grpo_math.small_model import small_model
from grpo_math.types import Completion, Problem, Prompt, UserError
from grpo_math.value_input import Read, ValueReader, at_places, batch_of
from grpo_math.value_model import load_value_model
from tests.offline import distance, lines
from tests.test_kill import ROOT
from tests.tiny import TINY, save_tiny

BASE: dict[str, Any] = {
    "steps": 24,
    "prompts_per_step": 16,
    "micro_batch_tokens": 200,
    "optimizer": {"learning_rate": 5e-3},
    "checkpoint": {"every": 0},
    "held_out": {"share": 0.2, "every": 12},
}
# (recipe, what is told of the data and the loss)
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pairs": ("reward_model", {"data": "pairs.jsonl"}),
    "ranked": ("reward_model", {"data": "ranked.jsonl", "loss": {"name": "ranked", "centre": 0.01}}),
    "labels": ("reward_model", {"data": "labels.jsonl", "loss": {"name": "binary", "balance": True}, "steps": 36}),
    "samples, each": ("reward_model", {"data": "samples.jsonl", "loss": "binary"}),
    "samples, ranked": ("reward_model", {"data": "samples.jsonl", "loss": {"name": "ranked", "completions": 3}}),
    "samples, paired": ("reward_model", {"data": {"files": "samples.jsonl", "filter": {}}}),
    "steps": ("process_reward_model", {"data": "steps.jsonl"}),
}


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(rng: random.Random, good: bool) -> str:
    """A good one has a 7, which is all that there is to learn."""
    letters = [rng.choice("123456") for _ in range(rng.randint(3, 6))]
    return "".join(["7" if good and i == 1 else letter for i, letter in enumerate(letters)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("reward"), random.Random(0)
    save_tiny(path / "model")
    prompts = [f"{i}+{j}=" for i in range(1, 11) for j in range(10)]
    write(
        path / "pairs.jsonl",
        ({"prompt": p, "chosen": answer(rng, True), "rejected": answer(rng, False)} for p in prompts),
    )
    ranked = []
    for p in prompts:
        goods = [rng.random() < 0.5 for _ in range(4)] + [True, False]
        ranked.append({"prompt": p, "completions": [answer(rng, g) for g in goods], "ranks": [2 - g for g in goods]})
    write(path / "ranked.jsonl", ranked)
    goods = [i % 4 == 0 for i in range(4 * len(prompts))]
    labels = [{"prompt": prompts[i // 4], "completion": answer(rng, g), "label": g} for i, g in enumerate(goods)]
    write(path / "labels.jsonl", labels)
    samples = []
    for p in prompts[:60]:
        for i in range(4):
            verdict = {"reward": float(i % 2), "reason": "correct" if i % 2 else "wrong"}
            text = {"prompt": p, "completion": answer(rng, bool(i % 2)), "finish_reason": "stop"}
            samples.append({"problem": p, "task": "sums", "tokens": 4} | text | verdict)
    write(path / "samples.jsonl", samples)
    steps = []
    for p in prompts:
        first_wrong = rng.randint(0, 4)
        texts = [answer(rng, i != first_wrong) + "\n" for i in range(4)]
        known = [True if i < first_wrong else False if i == first_wrong else None for i in range(4)]
        steps.append({"prompt": p, "completions": texts, "labels": known, "separator": ""})
    write(path / "steps.jsonl", steps)
    return path


def configured(folder: Path, name: str, run_dir: Path, **changes: Any) -> config.RewardCommon:
    recipe, own = RUNS[name]
    tree = {"recipe": recipe, "run_dir": str(run_dir), "model": str(folder / "model")} | BASE | own | changes
    data = {"files": tree["data"]} if isinstance(tree["data"], str) else dict(tree["data"])
    data["files"] = str(folder / data["files"])
    cfg = config.RECIPES[recipe].model_validate(tree | {"data": data})
    assert isinstance(cfg, config.RewardCommon)
    return cfg


@pytest.mark.parametrize("name", list(RUNS))
def test_each_kind_of_data_teaches_what_is_good(folder: Path, tmp_path: Path, name: str) -> None:
    """On prompts that were never learnt from: after a few updates it tells the good from the bad."""
    cfg = configured(folder, name, tmp_path / "run")
    run(cfg)
    rows = lines(cfg)
    assert [row["step"] for row in rows if "eval/loss" in row] == list(range(12, cfg.steps + 1, 12))
    if name != "labels":  # the weights of balanced ones have a mean of 1 over the run, not over a step
        assert rows[0]["loss/total"] == pytest.approx(0.6931, abs=1e-4)  # a new head says 0 of everything
    assert rows[-1]["loss/total"] < 0.35
    assert rows[-1]["eval/accuracy"] > 0.93
    if "eval/auc" in rows[-1]:
        assert rows[-1]["eval/auc"] > 0.98
    if name == "steps":
        assert rows[-1]["eval/first_error_f1"] > 0.9


def test_every_token_has_the_label_of_its_step() -> None:
    read = Read(Example(*text_of_six_tokens()), (1, 3))
    dense = every_token(Judged((read,), (1.0, 0.0)))
    assert dense.reads[0].places == (0, 1, 2, 3)
    assert dense.targets == (1.0, 1.0, 0.0, 0.0)
    assert dense.reads[0].example == read.example


def text_of_six_tokens() -> tuple[Prompt, Completion]:
    return Prompt(Problem("p", "t", "q", "a"), (3,), "q"), Completion((4, 5, 6, 7, 8, 9), (0.0,) * 6, "c", "stop", 0)


@pytest.mark.parametrize(("name", "loss"), [("samples, each", {"name": "binary"}), ("steps", {})])
def test_labels_of_every_token_teach_the_ends_too(
    folder: Path, tmp_path: Path, name: str, loss: dict[str, Any]
) -> None:
    cfg = configured(folder, name, tmp_path / "run", loss=loss | {"every_token": True}, steps=36)
    run(cfg)
    assert lines(cfg)[-1]["eval/auc"] > 0.95  # measured where the value is read, at the ends alone


def said_of(cfg: config.Common) -> dict[str, Any]:
    said = json.loads((Path(cfg.run_dir) / "model" / "config.json").read_text())["grpo_math"]
    assert isinstance(said, dict)
    return said


def test_plain_transformers_give_an_outcome_model_s_scores_whatever_the_batch(folder: Path, tmp_path: Path) -> None:
    """prompt + completion + end of sequence, alone, padded on either side, and as training reads them."""
    cfg = configured(folder, "pairs", tmp_path / "run")
    run(cfg)
    where = str(tmp_path / "run" / "model")
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModelForSequenceClassification.from_pretrained(where).eval()
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:12]
    texts = [row["prompt"] + row[side] + tokenizer.eos_token for row in rows for side in ("chosen", "rejected")]
    assert len(set(map(len, texts))) > 2  # of several lengths, so that there is padding
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[:, 0] for text in texts])
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batch = tokenizer(texts, return_tensors="pt", padding=True)
            torch.testing.assert_close(model(**batch).logits[:, 0], alone, atol=1e-5, rtol=1e-5)
    ours = load_value_model(config.Model(path=where), "outcome", torch.device("cpu"))
    reader = ValueReader(ours.tokenizer, ours.eos_ids)
    reads = [reader.outcome(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    for budget in (10, 100_000):
        batch_of_all = batch_of(reads, ours.pad_id)
        values = ours.score(batch_of_all, budget)
        found = torch.tensor([value for (value,) in at_places(values, batch_of_all)])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    assert float(alone[0::2].min()) > float(alone[1::2].max())


@pytest.mark.parametrize("rendered", [False, True])
def test_the_document_s_snippet_reads_what_training_reads(tmp_path: Path, rendered: bool) -> None:
    """With a tokenizer that merges over the border of prompt and completion, and puts a beginning in front of texts;
    a chat template has written that beginning already."""
    tokenizer = merging(template="<bos>{{ messages[0]['content'] }}" if rendered else None)
    small_model(TINY, tokenizer, 0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = load_value_model(config.Model(path=str(tmp_path)), "outcome", torch.device("cpu"))
    torch.nn.init.normal_(ours.head.get_parameter("weight"), generator=torch.Generator().manual_seed(0))
    ours.model.save_pretrained(tmp_path)
    ours.tokenizer.save_pretrained(tmp_path)
    text = (ROOT / "docs" / "reward_models.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace("runs/reward_model/model", str(tmp_path)), names)
    reader, bos = ValueReader(ours.tokenizer, ours.eos_ids), "<bos>" if rendered else ""
    for asked, said in [("1+1=\n", "\n2"), ("6*7= ", "42"), ("1+1=", "2")]:
        prompt = bos + asked
        read = reader.outcome(prompt, said)
        ids = [*read.example.prompt.token_ids, *read.example.completion.token_ids]
        assert ids[:2] == [tokenizer.bos_token_id, *tokenizer(asked[0], add_special_tokens=False)["input_ids"]]
        whole = tokenizer(asked + said)["input_ids"]
        assert (ids == [*whole, tokenizer.eos_token_id]) == (asked == "1+1=" and said == "2")
        batch = batch_of([read], ours.pad_id)
        ((value,),) = at_places(ours.score(batch, 100), batch)
        assert names["score"](prompt, said, rendered) == pytest.approx(value, abs=1e-5)


def merging(template: str | None) -> PreTrainedTokenizerBase:
    """Like GPT-2's, without its borders between words: two line breaks are one token, and a space and 42."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=263, initial_alphabet=alphabet, special_tokens=special)
    tokenizer.train_from_iterator(["\n\n", " 42"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 1)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


def test_plain_transformers_give_a_process_model_s_scores_at_the_ends_of_steps(folder: Path, tmp_path: Path) -> None:
    cfg = configured(folder, "steps", tmp_path / "run")
    run(cfg)
    where = str(tmp_path / "run" / "model")
    assert said_of(cfg)["boundary"] == "newline"
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModelForTokenClassification.from_pretrained(where).eval()
    assert model.config.id2label == {0: "wrong", 1: "right"}
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()][:10]
    texts = [row["prompt"] + "".join(row["completions"]) + tokenizer.eos_token for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**batch).logits
    values = logits[..., 1] - logits[..., 0]
    newline = tokenizer("\n")["input_ids"][-1]
    theirs = [row[ids == newline].tolist() for row, ids in zip(values, batch["input_ids"], strict=True)]
    ours = load_value_model(config.Model(path=where), "process", torch.device("cpu"))
    reader = ValueReader(ours.tokenizer, ours.eos_ids)
    reads = []
    for row in rows:
        ends = [sum(map(len, row["completions"][: i + 1])) for i in range(4)]
        reads.append(reader.steps(row["prompt"], "".join(row["completions"]), ends))
    together = batch_of(reads, ours.pad_id)
    for found, expected in zip(at_places(ours.score(together, 100), together), theirs, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["pairs", "steps"])
def test_a_saved_model_tells_which_scores_its_training_data_get(folder: Path, tmp_path: Path, name: str) -> None:
    """Of the weights that are saved, on all the examples, counted anew."""
    cfg = configured(folder, name, tmp_path / "run", held_out={"every": 0})
    run(cfg)
    said = said_of(cfg)
    kind: Any = {"pairs": "outcome", "steps": "process"}[name]
    assert (said["kind"], said["input"]) == (kind, "text")
    ours = load_value_model(config.Model(path=str(tmp_path / "run" / "model")), kind, torch.device("cpu"))
    reader, reads = ValueReader(ours.tokenizer, ours.eos_ids), []
    for row in reward_examples(cfg)[0]:
        (text, *others) = [completion.text for completion in row.completions]
        ends = [end for end, _ in row.steps]
        reads += [reader.steps(row.prompt, text, ends)] if ends else []
        reads += [] if ends else [reader.outcome(row.prompt, each) for each in (text, *others)]
    batch = batch_of(reads, ours.pad_id)
    scores = ours.score(batch, 4000)[batch.loss_mask]
    assert said["scores"] == len(scores) == {"pairs": 200, "steps": 400}[name]
    assert said["score_mean"] == pytest.approx(float(scores.mean()), abs=1e-4)
    assert said["score_std"] == pytest.approx(float(scores.std()), abs=1e-4)
    assert said["score_p99"] == pytest.approx(float(scores.quantile(0.99)), abs=1e-4)


@pytest.mark.parametrize("name", ["samples, ranked", "steps"])
def test_a_run_that_breaks_off_goes_on_as_if_nothing_had_been(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"steps": 6, "checkpoint": {"every": 1, "keep": 9}, "held_out": {"every": 2}}
    whole, broken = (configured(folder, name, tmp_path / half, **changes) for half in ("whole", "broken"))
    run(whole)
    step = RewardTraining.step

    def breaks(self: RewardTraining, number: int) -> Any:
        result = step(self, number)
        if number == 4:  # its weights have changed, and nothing of it is on disk
            raise RuntimeError("the power is gone")
        return result

    monkeypatch.setattr(RewardTraining, "step", breaks)
    with pytest.raises(RuntimeError, match="the power is gone"):
        run(broken)
    monkeypatch.undo()
    assert len(lines(broken)) == 3
    run(broken)
    assert lines(whole) == lines(broken)
    assert distance(whole, broken) == 0
    assert said_of(whole) == said_of(broken)


@pytest.mark.parametrize("name", ["ranked", "steps"])
def test_micro_batches_change_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    one, other = (
        configured(folder, name, tmp_path / str(size), micro_batch_tokens=size, steps=4) for size in (20, 20_000)
    )
    run(one)
    run(other)
    assert distance(one, other) < 1e-5
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a == pytest.approx(b, abs=1e-4, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "zero"), [("ranked", 3), ("steps", 2)])
def test_two_processes_of_deepspeed_learn_what_one_of_torch_does(
    folder: Path, tmp_path: Path, name: str, zero: int
) -> None:
    changes = {"backend": {"name": "deepspeed", "deepspeed": {"zero": zero}}}
    alone, both = (
        configured(folder, name, tmp_path / half, steps=4, **more) for half, more in (("alone", {}), ("both", changes))
    )
    run(alone)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(both))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, "-m", "grpo_math", "train", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert distance(alone, both) < 1e-5
    for one, other in zip(lines(alone), lines(both), strict=True):
        assert one == pytest.approx(other, abs=1e-4, nan_ok=True)
    assert said_of(alone) == pytest.approx(said_of(both), abs=1e-4)


def test_a_reward_model_is_trained_on(folder: Path, tmp_path: Path) -> None:
    """Another run begins with the scores that the first has ended with."""
    first = configured(folder, "pairs", tmp_path / "first", held_out={"every": 0})
    run(first)
    model = str(tmp_path / "first" / "model")
    run(second := configured(folder, "pairs", tmp_path / "second", model=model, held_out={"every": 0}, steps=1))
    assert lines(second)[0]["loss/total"] < 0.1


def test_a_head_that_was_lost_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The architecture says that there is one, and the weights are a language model's."""
    settings = json.loads((folder / "model" / "config.json").read_text())
    shutil.copytree(folder / "model", tmp_path / "lost")
    (tmp_path / "lost" / "config.json").write_text(
        json.dumps(settings | {"architectures": ["Qwen2ForSequenceClassification"], "num_labels": 1})
    )
    for model, told in ((tmp_path / "lost", True), (folder / "model", False)):
        run(cfg := configured(folder, "pairs", tmp_path / f"run-{told}", model=str(model), steps=1))
        assert ("lost is Qwen2ForSequenceClassification, and its files have no head" in capsys.readouterr().out) == told
        assert lines(cfg)[0]["loss/total"] == pytest.approx(0.6931, abs=1e-4)
    again = configured(folder, "pairs", tmp_path / "again", model=str(tmp_path / "run-True" / "model"), steps=1)
    run(again)
    assert "no head" not in capsys.readouterr().out


def test_epochs_become_steps_and_the_margin_is_the_file_s(folder: Path, tmp_path: Path) -> None:
    """A margin of 1 makes the first loss log(1 + e); 100 pairs, 16 a step, are 7 steps an epoch."""
    rows = [json.loads(line) | {"margin": 1.0} for line in (folder / "pairs.jsonl").read_text().splitlines()]
    write(folder / "margins.jsonl", rows)
    changes = {"data": "margins.jsonl", "steps": 0, "epochs": 1.0, "held_out": {"every": 0}}
    cfg = configured(folder, "pairs", tmp_path / "run", **changes)
    run(cfg)
    assert len(lines(cfg)) == 7
    assert lines(cfg)[0]["loss/total"] == pytest.approx(1.313262, abs=1e-5)
    written = load_config(tmp_path / "run" / "config.yaml", ["rewards=null"])
    assert (written.steps, written.epochs) == (0, 1.0)  # type: ignore[attr-defined]


# What is held out


def raw(prompt: str, *rewards: float) -> RawExample:
    return RawExample("f:1", prompt, tuple(RawCompletion(f"{reward:g}", reward=reward) for reward in rewards))


def test_a_prompt_is_learnt_from_or_held_out() -> None:
    rows = [raw(f"p{i % 20}", i) for i in range(100)]
    learnt, held_out = held_out_share(rows, config.HeldOut(share=0.2), seed=3)
    assert len(held_out) == 20
    assert not {row.prompt for row in learnt} & {row.prompt for row in held_out}
    assert sorted(map(repr, learnt + held_out)) == sorted(map(repr, rows))
    assert held_out_share(rows, config.HeldOut(share=0.2), seed=3) == (learnt, held_out)
    assert held_out_share(rows, config.HeldOut(share=0.2), seed=4)[1] != held_out
    few, some = held_out_share(rows, config.HeldOut(share=0.2, limit=7), seed=3)
    assert (len(few), len(some)) == (95, 5)
    assert held_out_share(rows, config.HeldOut(every=0), seed=3) == (rows, [])
    with pytest.raises(UserError, match="all examples have one prompt"):
        held_out_share(rows[::20], config.HeldOut(), seed=3)


def test_files_of_their_own_are_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "1+0=", "chosen": "1", "rejected": "2"}, {"prompt": "50+50=", "chosen": "1", "rejected": "2"}]
    files = str(write(folder / "other.jsonl", rows))
    cfg = configured(folder, "pairs", folder / "run", held_out={"files": files})
    learnt, held_out = reward_examples(cfg)
    assert (len(learnt), [row.prompt for row in held_out]) == (100, ["1+0=", "50+50="])
    assert "held_out.files: 1 of 2 examples have a prompt that is learnt from too" in capsys.readouterr().out
    assert len(spread(learnt, 7)) == 7


# Samples


def sample(
    text: str, reward: float | None, problem: str = "p", reason: str = "correct", truncated: bool = False
) -> Candidate:
    return Candidate("s.jsonl", 1, "t", problem, problem, text, reward, reason, truncated=truncated)


def test_rules_make_right_and_wrong_of_samples(folder: Path) -> None:
    data = {"files": "samples.jsonl", "filter": {"per_problem": 1}}
    rows, _ = reward_examples(configured(folder, "samples, each", folder / "run", data=data, held_out={"every": 0}))
    assert sorted(row.completions[0].reward or 0 for row in rows) == [0] * 60 + [1] * 60


def test_a_text_counts_once_with_the_mean_of_its_rewards() -> None:
    candidates = [sample("a", 1.0), sample("b", 0.0), sample("a", 0.0), sample("c", None), sample("", 0.0)]
    candidates += [sample("", 0.0, truncated=True), sample("a", 0.0, problem="q"), sample("b", 0.0, truncated=True)]
    found = [(c.problem, c.completion, c.truncated, reward) for c, reward in once_each(candidates, lambda c: c.score)]
    of_p = [("p", "a", False, 0.5), ("p", "b", False, 0.0), ("p", "", False, 0.0)]
    assert found == [*of_p, ("q", "a", False, 0.0), ("p", "b", True, 0.0)]
    # float32 has 0.7 as 0.699999988, which is no other reward
    near = [sample("a", 0.7), sample("b", 0.699999988)]
    assert [reward for _, reward in once_each(near, lambda c: c.score)] == [0.7, 0.7]


def test_samples_are_judged_each_or_ranked_among_their_siblings() -> None:
    """The label is the verdict, whatever a run has taken from the reward or added to it."""
    wrong = "wrong"
    candidates = [sample("a", 0.4), sample("b", 0.5, reason=wrong), sample("a", 1.0, "q"), sample("b", 1.0, "q", wrong)]
    assert [e.completions[0].reward for e in judged_samples(candidates)] == [1, 0, 1, 0]
    (only,) = ranked_samples(candidates)  # all of the other problem's rewards are equal
    assert [(c.text, c.reward) for c in only.completions] == [("a", 0.4), ("b", 0.5)]
    with pytest.raises(UserError, match="no problem has two whose rewards differ"):
        ranked_samples(candidates[2:])
    with pytest.raises(UserError, match="none of 1 samples is judged"):
        judged_samples([sample("a", None)])


def test_many_completions_are_dealt_out_so_that_each_hand_has_good_and_bad_ones() -> None:
    hands = dealt(raw("p", 0, 1, 0, 1, 1, 0, 0.5), 3)
    assert [[c.reward for c in hand.completions] for hand in hands] == [[0, 0.5, 1], [0, 1], [0, 1]]
    assert dealt(raw("p", 0, 1), 2) == [raw("p", 0, 1)]
    # three of one hand would be equal, and teach nothing
    assert [[c.reward for c in h.completions] for h in dealt(raw("p", 0, 0, 0, 0, 1), 3)] == [[0, 0, 1]]


# What is refused


def test_the_command_line_says_how_long_in_the_file_s_place(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for said, override, expected in (("epochs: 3", "steps=5", (5, None)), ("steps: 5", "epochs=3", (0, 3.0))):
        path.write_text(outcome(said))
        cfg = load_config(path, [override])
        assert isinstance(cfg, config.RewardCommon)
        assert (cfg.steps, cfg.epochs) == expected
    with pytest.raises(UserError, match="steps=5 and epochs=3 both say how long"):
        load_config(path, ["epochs=3", "steps=5"])


def outcome(text: str) -> str:
    return f"recipe: reward_model\nrun_dir: r\nmodel: m\ndata: a.jsonl\n{text}\n"


def process(text: str) -> str:
    return f"recipe: process_reward_model\nrun_dir: r\nmodel: m\ndata: a.jsonl\n{text}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (outcome("").replace("model: m\n", "model: {}\n"), "model.path is missing"),
        (outcome("").replace("data: a.jsonl\n", ""), "data is missing"),
        (outcome("").replace("model: m", "model: {new: {}}"), "model.path is missing"),
        (outcome("").replace("model: m", "model: {path: m, lora: {rank: 8}}"), "set model.lora.rank=0"),
        (outcome("task: arithmetic"), "task is set, and a reward model learns from files alone"),
        (outcome("sampling: {max_tokens: 9}"), "sampling is set"),
        (outcome("evaluation: {every: 5, task: arithmetic}"), "set held_out to measure on its way"),
        (outcome("steps: 5\nepochs: 2"), "steps=5 and epochs=2 both say how long"),
        (outcome("loss: {name: binary, centre: 0.1}"), "centre=0.1 is read by bradley_terry and ranked"),
        (outcome("loss: {balance: true}"), "balance=True is read by binary, and not by bradley_terry"),
        (outcome("loss: {margin_scale: 2}"), "set margin=rewards, or leave it out"),
        (outcome("loss: {name: ranked, margin: column}"), "set margin=rewards"),
        (outcome("loss: {name: bradly_terry}"), "did you mean bradley_terry"),
        (outcome("held_out: {files: b, share: 0.1}"), "say twice what is held out"),
        (outcome("held_out: {files: []}"), "set share=0.05"),
        (outcome("loss: ranked").replace("a.jsonl", "{files: a, filter: {}}"), "takes samples as they are"),
        (outcome("").replace("a.jsonl", "{files: a, too_long: truncate}"), "set data.too_long=drop"),
        (process("").replace("a.jsonl", "{files: a, filter: {}}"), "label them with grpo-math label-steps"),
        (process("boundary: blankline"), "did you mean 'blank_line'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_remedy(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert says in str(caught.value)


PAIR = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
STEPS = [
    {"prompt": f"{i}+1=", "completions": ["1\n", "2\n"], "labels": [True, label], "separator": ""}
    for i, label in enumerate([True, None, False])
]
LABELS = [{"prompt": f"{i}+1=", "completion": "2", "label": i < 2} for i in range(3)]


@pytest.mark.parametrize(
    ("name", "rows", "changes", "says"),
    [
        ("pairs", [{"prompt": "1+1=", "completions": ["2", "3"], "rewards": [1, 0]}], {}, "loss.name=ranked"),
        ("pairs", [PAIR | {"margin": 1}, PAIR], {}, "bad.jsonl:2 lacks the column 'margin', which"),
        ("pairs", [PAIR | {"margin": -1}], {}, "bad.jsonl:1: margin=-1 would have the rejected one score higher"),
        ("pairs", [PAIR], {"loss": {"margin": "rewards"}}, "bad.jsonl:1 lacks chosen_reward and rejected_reward"),
        (
            "pairs",
            [PAIR | {"chosen_reward": 0, "rejected_reward": 1}],
            {"loss": {"margin": "rewards"}},
            "chosen_reward=0 is not above rejected_reward=1",
        ),
        ("ranked", [PAIR], {}, "bad.jsonl:1: no column 'completions', only 'prompt', 'chosen', 'rejected'; pairs are"),
        ("ranked", [{"prompt": "1", "completions": ["2"], "rewards": [1]}], {}, "of the same length, 2 or more"),
        ("ranked", [{"prompt": "1", "completions": ["2", "3"], "rewards": [1, 1]}], {}, "all 2 rewards are equal"),
        (
            "ranked",
            [{"prompt": "1", "completions": ["2", "3"], "ranks": [1, None]}],
            {},
            "ranks[1]=null: give a finite",
        ),
        ("labels", [PAIR], {}, "pairs are for loss.name=bradley_terry"),
        ("labels", [{"prompt": "1", "completion": "2", "label": 3}], {}, "label=3: give true or false, or a number"),
        ("labels", [{"prompt": "1", "completion": "2", "label": True}], {}, "all 1 labels are true"),
        ("steps", [PAIR], {}, "no labels of steps, only 'prompt', 'chosen', 'rejected'"),
        ("pairs", [PAIR], {"held_out": {"every": 1}}, "all examples have one prompt"),
        ("steps", STEPS[:2], {"held_out": {"every": 0}}, "bad.jsonl: all 3 labels are right, of which nothing is"),
        ("steps", STEPS, {"held_out": {"share": 0.5}, "seed": 1}, "held_out.share=0.5 takes all that is wrong away"),
        ("steps", STEPS, {"held_out": {"share": 0.5}, "loss": {"balance": True}, "seed": 1}, "set held_out.every=0"),
        ("labels", LABELS, {"held_out": {"share": 0.5}, "seed": 1}, "labels right alone nothing is learnt"),
    ],
)
def test_a_broken_file_is_refused_before_anything_is_loaded_or_written(
    folder: Path, tmp_path: Path, name: str, rows: list[dict[str, Any]], changes: dict[str, Any], says: str
) -> None:
    write(folder / "bad.jsonl", rows)
    with pytest.raises(UserError) as caught:
        run(configured(folder, name, tmp_path / "run", data="bad.jsonl", **changes))
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_has_no_room_is_told(folder: Path, tmp_path: Path) -> None:
    data = {"files": "pairs.jsonl", "max_length": 5}
    with pytest.raises(UserError, match=r"held_out: none of its .* examples has at most 5 tokens; raise data.max_leng"):
        run(configured(folder, "pairs", tmp_path / "run", data=data))
    with pytest.raises(UserError, match=r"held_out.files=.*none.jsonl: there is no such file"):
        run(configured(folder, "pairs", tmp_path / "run", held_out={"files": str(tmp_path / "none.jsonl")}))


def test_plan_answers_without_a_vocabulary_s_logits_or_a_sampler(folder: Path, tmp_path: Path) -> None:
    said = plan(configured(folder, "ranked", tmp_path / "run"), ranks=1)
    assert "16 prompts x 8 completions = 128 completions" in said
    assert "24 in 24 steps" in said
    assert "log-probabilities" not in said
    assert "key-value cache" not in said
    said = plan(configured(folder, "steps", tmp_path / "run", steps=0, epochs=2), ranks=1)
    assert "as many steps as 2 epochs of the files take" in said


@pytest.mark.parametrize("name", list(RUNS))
def test_a_written_configuration_loads_again(folder: Path, tmp_path: Path, name: str) -> None:
    cfg = configured(folder, name, tmp_path / "run")
    (tmp_path / "run.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "run.yaml") == cfg
