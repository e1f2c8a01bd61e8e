"""Reward models as rewards: what they read, their scores, what becomes of those in the reward, and the guards."""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from grpo_math import config
from grpo_math.config_file import dump_config, load_config
from grpo_math.config_learned import Guards, LearnedKind, LearnedReward
from grpo_math.learned import guards
from grpo_math.learned.checks import Trained, trained
from grpo_math.learned.local import Local
from grpo_math.learned.make import load_reward_model, make_learned
from grpo_math.learned.normalise import Running, used
from grpo_math.learned.reading import Asked, reader
from grpo_math.learned.rewards import LearnedRewards, combined
from grpo_math.learned.score import AGGREGATES, RewardModel, sigmoid
from grpo_math.learned.watch import FIRST_STEPS, Watch
from grpo_math.preflight import all_rewards, preflight, resolve_rewards
from grpo_math.progress import Progress, progress_line
from grpo_math.ranks import Ranks
from grpo_math.recipes.records import completion_records, group_metrics
from grpo_math.scoring import Scorer
from grpo_math.types import Completion, Group, Problem, Prompt, Scored, UserError, Verdict
from grpo_math.value_model import load_value_model
from tests.tiny import save_tiny, tiny_policy

CPU = torch.device("cpu")
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m['role'] }}:{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant:{% endif %}"
)
T = TypeVar("T")


def save_model(path: Path, base: Path, kind: LearnedKind, said: dict[str, Any] | None = None) -> str:
    """A reward model with a random head, said: what our own training would write into its config.json."""
    value = load_value_model(config.Model(path=str(base)), kind, CPU)
    torch.manual_seed(len(kind))
    for parameter in value.head.parameters():
        torch.nn.init.normal_(parameter.data, std=0.2)
    if said is not None:
        value.model.config.grpo_math = said
    value.model.save_pretrained(path)
    value.tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory, base: Path) -> str:
    said = {"kind": "outcome", "input": "text", "boundary": None, "score_p99": 0.5}
    return save_model(tmp_path_factory.mktemp("outcome"), base, "outcome", said)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, base: Path) -> str:
    said = {"kind": "process", "input": "text", "boundary": "newline", "score_p99": 0.0}
    return save_model(tmp_path_factory.mktemp("process"), base, "process", said)


def load(key: str = "rewards.1", **keys: Any) -> RewardModel:
    return load_reward_model(LearnedReward(**keys), key, CPU)


def asked(completion: str, prompt: str = "1+1=", reason: Any = "stop") -> Asked:
    return Asked("what is " + prompt, prompt, completion, reason)


TEXTS = [
    asked("2"),
    asked("12\n+3\n=15", reason="length"),
    asked("x=1; y=2\nso 3", "a much longer prompt: "),
    asked(""),
]


# ---- the configuration


BASE = "run_dir: r\nmodel: m\ntask: gsm8k\n"


def loaded(tmp_path: Path, text: str, *overrides: str) -> config.Common:
    (tmp_path / "c.yaml").write_text(BASE + text)
    return load_config(tmp_path / "c.yaml", overrides)


def test_rewards_hold_verifiers_and_models(tmp_path: Path) -> None:
    text = "rewards: [math, {model: d, kind: process, aggregate: prod, weight: 0.2, clip: 5}]\n"
    cfg = loaded(tmp_path, text, "rewards.0.weight=2", "rewards.1.normalise=group")
    verifier, model = cfg.rewards or []
    assert verifier == config.Reward(verifier="math", weight=2)
    assert isinstance(model, LearnedReward)
    assert (model.clip, model.normalise, model.aggregate, model.called) == (5, "group", "prod", "process")
    assert all_rewards(cfg) == [verifier, model]
    assert resolve_rewards(cfg) == [verifier]
    (tmp_path / "again.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "again.yaml") == cfg
    # beside models alone the task's verifier is only looked at, and the models keep their places
    alone = loaded(tmp_path, "rewards: {model: d}\n")
    assert [(r.called, r.weight) for r in all_rewards(alone)] == [("outcome", 1.0), ("math", 0.0)]
    again = alone.model_copy(update={"rewards": all_rewards(alone)})
    assert all_rewards(again) == again.rewards
    assert [(r.called, r.weight) for r in all_rewards(loaded(tmp_path, ""))] == [("math", 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rewards: [{model: d, verifier: math}]", "rewards.0=.*: give it one of the keys verifier .* and model"),
        ("rewards: [{weight: 3}]", "rewards.0=.*: give it one of the keys verifier .* and model"),
        ("rewards: [math, {model: d, clipp: 5}]", "rewards.1.clipp=5: unknown key clipp; did you mean rewards.1.clip?"),
        ("rewards: [{model: d, kind: proces}]", r"kind=proces: unknown value; did you mean process\?"),
        ("rewards: [{model: d, clip: 0}]", "rewards.0.clip=0: must be above 0"),
        ("rewards: [{model: d}, {model: e}]", r"lists \['outcome', 'outcome'\].*for several models, a name"),
        ("rewards: [{model: d, name: mean}]", "reward/mean is a metric of its own"),
        ("rewards: [{model: d, aggregate: min}]", "aggregate=min is of steps.* set kind=process"),
        ("rewards: [{model: d, url: 'http://x', device: cpu}]", "device=cpu is the server's.* leave device out"),
        ("rewards: [{model: d}]\nrecipe: sft", "rewards.0.model=d: only the recipe grpo"),
        ("rewards: [{model: d}]\ncombine_rewards: min", "combine_rewards=min is of several.*has 1"),
        ("guards: {gap: 2}", "guards watches reward models, and rewards has none"),
        ("rewards: {model: d}\nguards: {gap: null, above_p99: null, stop: true}", "no threshold is set"),
        ("rewards: {model: d, normalise: group}\ngroup_size: 1\nadvantage: gae", "set normalise=running"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, text)


def test_a_model_that_is_none_is_refused_before_it_is_loaded(base: Path, outcome: str, tmp_path: Path) -> None:
    said = f"rewards.1.model={base} is Qwen2ForCausalLM, which has no head .*recipe: reward_model"
    for reward, message in [
        ({"model": str(base)}, said),
        ({"model": outcome, "kind": "process"}, "is of kind outcome .*; set rewards.1.kind=outcome"),
        ({"model": outcome, "url": "localhost:8000"}, "rewards.1.url=localhost:8000 is no address"),
        ({"model": outcome, "kind": "process", "boundary": "newlin"}, "rewards.1.boundary=newlin: .*did you mean"),
        ({"model": str(tmp_path / "none")}, "rewards.1.model=.*there is no such folder"),
    ]:
        given: dict[str, Any] = {"model": str(base), "task": "arithmetic", "rewards": ["math", reward]}
        cfg = config.GRPO(run_dir=str(tmp_path), **given)
        with pytest.raises(UserError, match=message):
            preflight(cfg)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": str(base)}, said),
        ({"model": outcome, "chat": True}, f"rewards.1.model={outcome}: chat=true, and its tokenizer has no chat"),
        ({"model": outcome, "device": "cuda:7"}, "rewards.1.device=cuda:7, and torch sees .* CUDA devices"),
        ({"model": "nobody/nothing"}, "rewards.1.model=nobody/nothing could not be loaded"),
    ]
    for keys, message in refused:
        with pytest.raises(UserError, match=message):
            load(**keys)
    critic = {"architectures": ["Qwen2ForTokenClassification"], "grpo_math": {"kind": "critic"}}
    with pytest.raises(UserError, match=r"is of kind critic .* train one with recipe: process_reward_model"):
        trained(critic, LearnedReward(model="d", kind="process"), "rewards.0")


def test_a_head_of_zeros_is_refused(outcome: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(outcome)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(outcome).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its head is all zeros"):
        load(model=str(tmp_path))


# ---- scores


def test_scores_are_those_of_plain_transformers_whatever_the_batch(outcome: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(outcome)
    tokenizer = AutoTokenizer.from_pretrained(outcome)
    written = [t.prompt + t.completion + (tokenizer.eos_token if t.finish_reason == "stop" else "") for t in TEXTS]
    batch = tokenizer(written, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits[:, 0].tolist()
    ours = load(model=outcome)
    verdicts = ours.verdicts(TEXTS)
    assert [v.reward for v in verdicts] == pytest.approx(expected, abs=1e-5)
    assert len({round(e, 3) for e in expected}) == len(TEXTS)
    assert {v.reason for v in verdicts} == {"unknown"}
    # alone, and beside others in another order and in micro-batches of one
    alone = [ours.verdicts([text])[0].reward for text in TEXTS]
    assert isinstance(ours.model, Local)
    ours.model.token_budget = 1
    assert [v.reward for v in ours.verdicts(TEXTS[::-1])][::-1] == alone
    assert alone == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("aggregate", [None, "last", "min", "prod", "mean"])
def test_steps_are_those_of_plain_transformers(process: str, aggregate: Any) -> None:
    model = AutoModelForTokenClassification.from_pretrained(process)
    tokenizer = AutoTokenizer.from_pretrained(process)
    verdicts = load(model=process, kind="process", aggregate=aggregate).verdicts(TEXTS[:3])
    for text, verdict in zip(TEXTS, verdicts, strict=False):
        ends = [i + 1 for i, letter in enumerate(text.completion) if letter == "\n"] + [len(text.completion)]
        # a token a character: the prompt, and the completion up to the step's last
        ids = tokenizer(text.prompt + text.completion, return_tensors="pt")["input_ids"]
        assert ids.shape[1] == len(text.prompt + text.completion)
        with torch.no_grad():
            right = model(input_ids=ids).logits.softmax(-1)[0, :, 1].tolist()
        expected = [right[len(text.prompt) + end - 1] for end in ends]
        assert verdict.step_rewards is not None
        assert [end for end, _ in verdict.step_rewards] == ends
        assert [p for _, p in verdict.step_rewards] == pytest.approx(expected, abs=1e-5)
        assert verdict.reward == AGGREGATES[aggregate or "min"]([p for _, p in verdict.step_rewards])


def test_aggregates_by_hand() -> None:
    steps = [0.9, 0.5, 0.8]
    found = {name: aggregate(steps) for name, aggregate in AGGREGATES.items()}
    assert found == {"last": 0.8, "min": 0.5, "prod": pytest.approx(0.36), "mean": pytest.approx(2.2 / 3)}
    assert (sigmoid(0.0), sigmoid(-1e4), sigmoid(1e4)) == (0.5, 0.0, 1.0)


def test_what_cannot_be_scored_has_no_score_and_says_why(outcome: str, process: str) -> None:
    long = asked("1" * 300)
    short, cut = load(model=outcome).verdicts([TEXTS[0], long])
    assert short.reward is not None
    assert (cut.reward, cut.reason) == (None, "unknown")
    assert cut.detail == "305 tokens are more than the 128 that it reads"
    odd = load(model=process, kind="process").verdicts([asked(""), asked(" \n"), asked("1<pad>2"), TEXTS[0]])
    assert [v.reward is None for v in odd] == [True, True, True, False]
    assert [v.detail for v in odd[:2]] == ["the completion is empty, and has no steps"] * 2
    assert "makes another text of the completion" in odd[2].detail


def test_a_broken_model_is_an_error(outcome: str) -> None:
    model = load(model=outcome)
    assert isinstance(model.model, Local)
    model.model.model.head.get_parameter("weight").data[0, 0] = math.nan
    with pytest.raises(UserError, match=f"rewards.1.model={outcome} gives a score of nan: .*dtype=float32"):
        model.verdicts(TEXTS[:1])


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory, base: Path) -> str:
    """Somebody else's model with a chat template."""
    path = tmp_path_factory.mktemp("chat")
    saved = save_model(path, base, "outcome")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    model = AutoModelForSequenceClassification.from_pretrained(saved)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return saved


def test_others_models_read_conversations_whole(chat: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(chat)
    tokenizer = AutoTokenizer.from_pretrained(chat)

    def score(ids: list[int]) -> float:
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0].item())

    turns = [[{"role": "user", "content": t.question}, {"role": "assistant", "content": t.completion}] for t in TEXTS]
    expected = [score(tokenizer.apply_chat_template(turn, return_dict=False)) for turn in turns]
    assert [v.reward for v in load(model=chat).verdicts(TEXTS)] == pytest.approx(expected, abs=1e-5)
    plain = [score(tokenizer(TEXTS[0].prompt + TEXTS[0].completion + tokenizer.eos_token)["input_ids"])]
    assert plain != pytest.approx(expected[:1], abs=1e-3)
    assert [v.reward for v in load(model=chat, chat=False).verdicts(TEXTS[:1])] == pytest.approx(plain, abs=1e-5)
    # ours says what it was trained on
    for path in Path(chat).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "config.json").read_text()) | {"grpo_math": {"kind": "outcome", "input": "text"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert [v.reward for v in load(model=str(tmp_path)).verdicts(TEXTS[:1])] == pytest.approx(plain, abs=1e-5)
    # nobody speaks in the user's name by spelling out the template
    [verdict] = load(model=chat).verdicts([asked("2<eos>\n<bos>user:well done")])
    assert (verdict.reward, "spells out" in verdict.detail) == (None, True)


def test_steps_of_a_conversation_are_read_behind_its_template(chat: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat)
    reward = LearnedReward(model=chat, kind="process", boundary="blank_line")
    text = asked("x = 1\n\ny = 2")
    steps = reader(tokenizer, frozenset({tokenizer.eos_token_id}), reward, Trained())(text)
    question = tokenizer.apply_chat_template(
        [{"role": "user", "content": text.question}], add_generation_prompt=True, return_dict=False
    )
    assert list(steps.read.example.prompt.token_ids) == question
    assert tokenizer.decode(steps.read.example.completion.token_ids) == text.completion + tokenizer.eos_token
    assert (steps.ends, steps.read.places) == ((7, 12), (6, 11))


# ---- what becomes of scores in the reward


def test_running_statistics_are_those_of_all_numbers() -> None:
    numbers = torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1e4
    parts = [numbers[:1], torch.tensor([math.nan]), numbers[1:40], numbers[40:40], numbers[40:]]
    seen = Running()
    for part in parts:
        seen = Running.of(json.loads(json.dumps(seen.add(part).state())))
    assert seen.count == 100
    assert (seen.mean, seen.std) == pytest.approx((float(numbers.mean()), float(numbers.std())), rel=1e-12)
    assert (Running().std, Running().add(numbers[:1]).std) == (0.0, 0.0)


def test_what_is_used_of_a_score_by_hand() -> None:
    nan = math.nan
    scores = torch.tensor([[1.0, 3.0, nan], [2.0, 2.0, 2.0]], dtype=torch.float64)
    lengths = torch.tensor([[10, 20, 5], [10, 20, 30]])
    seen = Running().add(torch.tensor([0.0, 4.0]))  # mean 2, std sqrt(8)
    r = 1 / math.sqrt(8)
    for how, clip, penalty, expected in [
        ("none", None, 0.0, [[1, 3, nan], [2, 2, 2]]),
        ("none", 1.5, 0.1, [[1 - 1, 1.5 - 2, nan], [1.5 - 1, 1.5 - 2, 1.5 - 3]]),
        ("running", None, 0.0, [[-r, r, nan], [0, 0, 0]]),
        ("running", 0.1, 0.01, [[-0.1 - 0.1, 0.1 - 0.2, nan], [-0.1, -0.2, -0.3]]),
        ("group", None, 0.0, [[-1 / math.sqrt(2), 1 / math.sqrt(2), nan], [0, 0, 0]]),
    ]:
        found = used(scores, lengths, how, seen, clip, penalty)
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0, equal_nan=True
        )
    terms = [torch.tensor([[1.0, 2.0, nan]]), torch.tensor([[3.0, -1.0, 0.0]])]
    torch.testing.assert_close(combined(terms, "sum"), torch.tensor([[4.0, 1.0, nan]]), equal_nan=True)
    torch.testing.assert_close(combined(terms, "min"), torch.tensor([[1.0, -1.0, nan]]), equal_nan=True)


def group_of(texts: Sequence[str], rewards: Sequence[float | None], number: int = 0) -> Group:
    """One prompt's completions, a token a character, as the scorer gives them with the verifier's weight of 2."""
    prompt = Prompt(Problem(f"p{number}", "t", f"q{number}", "1"), (5, 6), f"{number}=")
    scores = [Verdict(r, "error" if r is None else "correct" if r else "wrong") for r in rewards]
    return Group(
        prompt,
        tuple(Completion((5,) * len(text), (0.0,) * len(text), text, "stop", 0) for text in texts),
        tuple(Scored(None if v.reward is None else 2 * v.reward, v, {"math": v}) for v in scores),
    )


def learned_for(
    outcome: str, process: str, ranks: Ranks | None = None, **keys: Any
) -> tuple[config.GRPO, LearnedRewards]:
    keys["rewards"] = [
        {"verifier": "math", "weight": 2},
        {"model": outcome, "weight": 0.5, "normalise": "running", "clip": 1.5},
        {"model": process, "kind": "process", "weight": 3, "length_penalty": 0.01},
        {"model": outcome, "name": "watched", "weight": 0},
    ]
    keys |= {"run_dir": "r", "model": "m", "task": "arithmetic"}
    cfg = config.GRPO(**keys)
    parts: Any = SimpleNamespace(policy=tiny_policy(), ranks=ranks or Ranks())
    made = make_learned(cfg, parts)
    assert made is not None
    return cfg, made


GROUPS = [
    group_of(["1", "12\n3", "x" * 200], [1.0, 0.0, 0.0]),
    group_of(["7\n8\n9", "7\n8\n9", "4"], [0.0, 0.0, None], number=1),
]


def test_models_are_weighed_beside_the_verifier(outcome: str, process: str) -> None:
    cfg, learned = learned_for(outcome, process)
    groups = learned.score(GROUPS)
    scores = [score for group in groups for score in group.scores]
    raw = torch.tensor([s.parts["outcome"].reward or math.nan for s in scores], dtype=torch.float64)
    known = raw[~raw.isnan()]
    for place, score in enumerate(scores):
        before = GROUPS[place // 3].scores[place % 3]
        assert score.verdict is before.verdict
        assert list(score.parts) == ["math", "outcome", "process", "watched"]
        assert score.parts["watched"] == score.parts["outcome"]
        if place in (2, 5):  # too long for the models; without a verified reward
            assert score.reward is None
            continue
        z = min(max((float(raw[place]) - float(known.mean())) / float(known.std()), -1.5), 1.5)
        steps = score.parts["process"]
        assert steps.reward is not None
        assert steps.step_rewards is not None
        length = len(GROUPS[place // 3].completions[place % 3].token_ids)
        expected = (before.reward or 0.0) + 0.5 * z + 3 * (steps.reward - 0.01 * length)
        assert score.reward == pytest.approx(expected, abs=1e-5)
    assert scores[3].reward == pytest.approx(scores[4].reward or 0.0, abs=0)  # the same text
    assert learned.metrics["reward/outcome"] == pytest.approx(float(known.mean()))
    assert learned.metrics["learned/process/unscored"] == pytest.approx(1 / 6)
    # accuracy and the verifier's mean are as if there were no models
    assert group_metrics(groups, cfg.rewards or []) == group_metrics(GROUPS, cfg.rewards or [])
    record = completion_records(1, groups, [], None, None)[0]
    assert record["reason"] == "correct"
    assert record["verifier"] == "math"
    assert record["parts"]["process"] == scores[0].parts["process"].reward


def test_the_least_of_several_models_counts(outcome: str, process: str) -> None:
    _, summed = learned_for(outcome, process)
    _, least = learned_for(outcome, process, combine_rewards="min")
    for a, b in zip(summed.score(GROUPS[:1])[0].scores[:2], least.score(GROUPS[:1])[0].scores[:2], strict=True):
        assert a.reward is not None
        assert b.reward is not None
        verified = 2 * (a.verdict.reward or 0.0)
        length = 1 if a.verdict.reward else 4
        process_term = 3 * ((a.parts["process"].reward or 0.0) - 0.01 * length)
        outcome_term = a.reward - verified - process_term
        assert b.reward - verified == pytest.approx(min(process_term, outcome_term), abs=1e-9)


def test_a_run_goes_on_where_it_was_saved(outcome: str, process: str) -> None:
    steps = [[group_of([f"{i}", f"{i}+{i}\n{2 * i}", "9"], [1.0, 0.0, 0.0], i)] for i in range(4)]

    def go(learned: LearnedRewards, some: Sequence[list[Group]]) -> list[Any]:
        found = []
        for step in some:
            scored = learned.score(step)
            found.append((scored, learned.metrics, learned.watch.look(scored, 0.1)))
        return found

    _, whole = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    expected = go(whole, steps)
    _, first = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    begun = go(first, steps[:2])
    _, second = learned_for(outcome, process, guards={"gap": 0.01, "patience": 2})
    second.restore(json.loads(json.dumps(first.state())))
    assert begun + go(second, steps[2:]) == expected


def test_a_model_that_can_score_nothing_ends_the_run(outcome: str, process: str) -> None:
    _, learned = learned_for(outcome, process)
    with pytest.raises(
        UserError, match=r"can score none of 2 completions; the first: 2.. tokens are more than the 128"
    ):
        learned.score([group_of(["1" * 250, "2" * 260], [0.0, 0.0])])
    assert learned.score([]) == []


class Together(Ranks):
    """Two ranks in two threads."""

    mail: ClassVar[list[Any]] = [None, None]
    barrier: ClassVar[threading.Barrier] = threading.Barrier(2, timeout=30)

    def gather(self, mine: Sequence[T]) -> list[T]:
        Together.mail[self.rank] = mine
        self.barrier.wait()
        found = [item for part in Together.mail for item in part]
        self.barrier.wait()
        return found


def test_ranks_share_the_texts_and_agree(outcome: str, process: str) -> None:
    _, alone = learned_for(outcome, process)
    expected = alone.score(GROUPS)
    found: dict[int, list[Group]] = {}
    read: dict[int, int] = {}

    def go(rank: int) -> None:
        learned = made[rank]
        model = learned.models[0]
        verdicts = model.verdicts
        model.verdicts = lambda texts: read.__setitem__(rank, len(texts)) or verdicts(texts)  # type: ignore
        found[rank] = learned.score(GROUPS)

    made: list[Any] = [None, None]
    loads = [
        threading.Thread(
            target=lambda r: made.__setitem__(r, learned_for(outcome, process, Together(r, 2))[1]), args=(r,)
        )
        for r in (0, 1)
    ]
    for threads in (loads, [threading.Thread(target=go, args=(rank,)) for rank in (0, 1)]):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found[0] == found[1]
    assert read == {0: 2, 1: 3}  # of five texts that differ
    for group, other in zip(found[0], expected, strict=True):
        rewards = [[s.reward or 0.0 for s in g.scores] for g in (group, other)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def test_a_verifier_of_weight_0_is_only_looked_at(tmp_path: Path) -> None:
    (tmp_path / "unsure.py").write_text(
        '"""Cannot tell."""\nfrom grpo_math.types import Verdict\nEXAMPLES = []\n'
        "def verify(problem, completion):\n    return Verdict(None, 'unknown')\n"
    )
    reward = config.Reward(verifier=str(tmp_path / "unsure.py"), weight=0)
    item = (Problem("p", "t", "q", "1"), Completion((5,), (0.0,), "x", "stop", 0))
    for weight, expected in ((0.0, 0.0), (1.0, None)):
        with Scorer([reward.model_copy(update={"weight": weight})], config.Scoring(workers=1)) as scorer:
            assert scorer.score([item])[0].reward == expected


# ---- guards


def test_guards_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    assert guards.correlation(a, b) == pytest.approx(0.8)
    assert guards.correlation(a, -a) == pytest.approx(-1.0)
    assert math.isnan(guards.correlation(a, torch.full((4,), 0.1)))
    assert math.isnan(guards.correlation(a[:1], b[:1]))
    assert guards.rise(3.0, 1.0, 4.0) == 0.5
    assert guards.rise(1.0, 1.0, 0.0) == 0.0
    assert guards.gap(1.5, 0.5) == 1.0
    assert guards.share_above([1.0, 2.0, 3.0], 1.5) == pytest.approx(2 / 3)
    assert math.isnan(guards.share_above([1.0], None))
    assert guards.score_per_kl(2.0, 4.0) == 0.5
    assert math.isnan(guards.score_per_kl(2.0, 0.0))
    assert not guards.beyond("gap", math.nan, 0.5)
    assert guards.beyond("length_correlation", -0.6, 0.5)
    assert guards.beyond("correlation", 0.1, 0.2)
    assert not guards.beyond("correlation", 0.3, 0.2)


def step_of(scores: Sequence[float], verified: Sequence[float], name: str = "outcome") -> list[Group]:
    """One group; completion i has i + 1 tokens."""
    verdicts = [Verdict(v, "correct" if v else "wrong") for v in verified]
    group = group_of(["x" * (i + 1) for i in range(len(scores))], verified)
    parts = [
        Scored(v.reward, v, {"math": v, name: Verdict(s, "unknown")}) for s, v in zip(scores, verdicts, strict=True)
    ]
    return [replace(group, scores=tuple(parts))]


def test_an_alarm_rings_when_only_the_model_is_pleased() -> None:
    watch = Watch(Guards(gap=0.5, above_p99=0.4, length_correlation=0.9, patience=2, stop=True), {"outcome": 3.0})
    for _ in range(FIRST_STEPS):
        calm = watch.look(step_of([0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]), kl=0.5)
    assert calm["guard/gap"] == pytest.approx(0.0)
    assert calm["guard/correlation"] == pytest.approx(1.0)
    assert calm["guard/length_correlation"] == pytest.approx(1 / math.sqrt(5))
    assert (calm["guard/above_p99"], calm["guard/alarms"], calm["guard/score_per_kl"]) == (0.0, 0.0, 0.0)
    # the scores rise by 3 with the length, and no more is right than before
    first = watch.look(step_of([2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 0.0, 1.0]), kl=0.5)
    every = torch.tensor([0.0, 1.0] * 2 * FIRST_STEPS + [2.0, 3.0, 4.0, 5.0])
    assert first["guard/gap"] == pytest.approx(3.0 / float(every.std()))
    assert first["guard/score_per_kl"] == pytest.approx(3.0 / (0.5 * 2.5))
    assert first["guard/above_p99"] == 0.5
    assert first["guard/length_correlation"] == pytest.approx(1.0)
    assert (first["guard/alarms"], watch.stopped) == (0.0, None)
    second = watch.look(step_of([2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 0.0, 1.0]))
    assert (second["guard/alarms"], second["guard/alarm/gap"]) == (3.0, 1.0)
    assert math.isnan(second["guard/score_per_kl"])
    assert "guard/above_p99 is 0.5, past guards.above_p99=0.4 for 2 steps" in str(watch.stopped)
    # where the verified reward rises as well there is no gap
    fine = Watch(Guards(gap=0.5), {"outcome": None})
    for scores, verified in [([0.0, 1.0], [0.0, 0.0])] * FIRST_STEPS + [([1.0, 2.0], [1.0, 1.0])]:
        found = fine.look(step_of(scores, verified))
    assert found["guard/gap"] < 0
    assert math.isnan(found["guard/above_p99"])


def test_a_model_that_has_learnt_since_is_watched_anew() -> None:
    watch = Watch(Guards(gap=0.5, patience=1), {"outcome": 3.0})
    watch.look(step_of([0.0, 1.0], [0.0, 1.0]))
    assert watch.look(step_of([8.0, 9.0], [0.0, 1.0]))["guard/gap"] > 0.5
    watch.begin_anew("outcome")
    watch.restore(json.loads(json.dumps(watch.state())))
    found = watch.look(step_of([8.0, 9.0], [0.0, 1.0]))
    assert (found["guard/gap"], found["guard/alarms"]) == (0.0, 0.0)
    assert math.isnan(found["guard/above_p99"])


def test_of_several_models_the_worst_is_shown() -> None:
    watch = Watch(Guards(), {"a": 0.5, "b": 1.5})
    [group] = step_of([0.0, 1.0, 2.0], [0.0, 1.0, 1.0], "a")
    other = [
        replace(s, parts={**s.parts, "b": Verdict(-(s.parts["a"].reward or 0.0), "unknown")}) for s in group.scores
    ]
    found = watch.look([replace(group, scores=tuple(other))])
    assert found["guard/correlation"] == found["guard/b/correlation"] == pytest.approx(-math.sqrt(3) / 2)
    assert found["guard/above_p99"] == found["guard/a/above_p99"] == pytest.approx(2 / 3)
    assert found["guard/b/above_p99"] == 0.0


def test_the_training_scores_of_steps_are_compared_with_steps(process: str) -> None:
    model = load(model=process, kind="process")
    assert model.how == Trained(plain=True, boundary="newline", p99=0.0)
    assert model.p99 == 0.5  # a logit of 0
    verdicts = model.verdicts([asked("1\n2\n3"), asked("4\n5")])
    steps = [p for v in verdicts for _, p in v.step_rewards or ()]
    scored = tuple(Scored(0.0, Verdict(0.0, "wrong"), {"process": v}) for v in verdicts)
    group = replace(group_of(["1\n2\n3", "4\n5"], [0.0, 0.0]), scores=scored)
    found = Watch(Guards(), {"process": model.p99}).look([group])
    assert found["guard/above_p99"] == pytest.approx(sum(p > 0.5 for p in steps) / 5)


def test_an_alarm_is_on_the_progress_line_and_explained_once() -> None:
    metrics = {"reward/mean": 0.5, "guard/gap": 1.234, "guard/alarm/gap": 1.0, "guard/alarm/above_p99": 0.0}
    assert "ALARM gap 1.23" in progress_line(3, 9, metrics, 3.0)
    quiet = metrics | {"guard/alarm/gap": 0.0}
    assert "ALARM" not in progress_line(3, 9, quiet, 3.0)
    shown = io.StringIO()
    with Progress(9, stream=shown) as progress:
        for step, some in enumerate([quiet, metrics, metrics, quiet, metrics], 1):
            progress.step(step, some)
    notes = [line for line in shown.getvalue().splitlines() if line.startswith("alarm")]
    assert [line.partition(":")[0] for line in notes] == ["alarm at step 2", "alarm at step 5"]
    assert "the verified reward does not keep up (gap 1.23)" in notes[0]
    two = metrics | {"guard/above_p99": 0.5, "guard/alarm/above_p99": 1.0}
    shown = io.StringIO()
    with Progress(9, stream=shown) as progress:
        progress.step(1, two)
    [note] = [line for line in shown.getvalue().splitlines() if line.startswith("alarm")]
    assert "(gap 1.23); the reward models' scores lie where" in note
