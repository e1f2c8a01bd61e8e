"""Which tokens a reward is put down to, by hand: steps of a vine and of a verifier, distances, imitated rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from grpo_math import config
from grpo_math.advantages import group_norm
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch, make_batch, pad_rows
from grpo_math.losses import make_loss, token_mean
from grpo_math.recipes.credit import ByGroup, ByStep, Rewards
from grpo_math.recipes.imitation import Imitation
from grpo_math.recipes.parts import Stopwatch
from grpo_math.recipes.run import updates_of
from grpo_math.recipes.vine import ByVine, by_room
from grpo_math.recipes.watchdog import Watchdog
from grpo_math.rewards import group_rewards
from grpo_math.types import Completion, Group, Problem, Prompt, Sampling, Scored, Verdict
from tests.credit import configured
from tests.test_steps import byte_level
from tests.tiny import prompt, tiny_policy


def spelled(text: str, policy: Any, reason: Any = "stop") -> Completion:
    """With the end-of-sequence token, where it was not cut."""
    ids = tuple(policy.tokenizer(text)["input_ids"])
    ids += (policy.tokenizer.eos_token_id,) if reason == "stop" else ()
    return Completion(ids, (-1.0,) * len(ids), text, reason, 0)


def judged(asked: Sequence[Prompt], rows: Sequence[Sequence[Completion]], before: Sequence[Group] = ()) -> list[Group]:
    """Right with a 1 in it."""

    def score(completion: Completion) -> Scored:
        good = "1" in completion.text
        verdict = Verdict(float(good), "correct" if good else "wrong")
        return Scored(verdict.reward, verdict, {"digits": verdict})

    return [Group(p, tuple(row), tuple(map(score, row))) for p, row in zip(asked, rows, strict=True)]


class Script:
    """An engine that goes on from each text as it was told."""

    context = 128

    def __init__(self, policy: Any, says: dict[str, list[str]]) -> None:
        self.policy, self.says = policy, says
        self.calls: list[tuple[list[str], Sampling]] = []

    def generate(self, prefixes: list[Prompt], sampling: Sampling) -> list[list[Completion]]:
        texts = [self.policy.tokenizer.decode(prefix.token_ids) for prefix in prefixes]
        self.calls.append((texts, sampling))
        return [[spelled(text, self.policy) for text in self.says[prefix]] for prefix in texts]


def test_a_vine_s_values_are_those_of_its_continuations(tmp_path: Path) -> None:
    """Four siblings; V of the prompt from the other three. One continuation has its 1 behind max_tokens: it is cut, and
    wrong. The last sibling is an end of sequence and nothing else: one step, from the prompt to its own reward."""
    policy = tiny_policy()
    asked = prompt(policy, "?")
    texts = ["a\n1\nc", "a\nb\nc", "a\nb\n1", ""]
    (group,) = judged([asked], [[spelled(text, policy) for text in texts]])
    engine = Script(
        policy,
        {
            "?a\n": ["1", "2\n3", "bbbbbbb1", ""],  # .25: the third has 2 + 8 tokens, and room for 8
            "?a\n1\n": ["0", "", "7", "8"],  # 1: the 1 is there
            "?a\nb\n": ["1", "21", "3", "4"],  # .5
        },
    )
    cfg = configured(tmp_path, "vineppo", tmp_path / "run", vine={"continuations": 4}, whiten=False)
    parts: Any = SimpleNamespace(policy=policy, engine=engine, score=judged, context=128)
    vine = ByVine(cfg, parts)
    metrics = vine.look([group], 1, Stopwatch(Watchdog(60.0)))
    assert sorted(text for texts, _ in engine.calls for text in texts) == ["?a\n", "?a\n1\n", "?a\nb\n"]  # each once
    for prefixes, sampling in engine.calls:
        assert sampling.n == 4
        assert sampling.max_tokens == 8 - min(len(text) - 1 for text in prefixes)
    assert metrics == {"vine/continuations": 12.0, "vine/steps": (3 + 3 + 3 + 1) / 4, "vine/lost": 0.0}
    batch = make_batch([group], token_mean, 8, policy.pad_id, mask_truncated=False)
    found = vine.assign([group], Rewards(group_rewards([group], 8, 0, 0.0)), batch)
    expected = [
        [(2, 0.25 - 1 / 3), (2, 1 - 0.25), (2, 1 - 1)],  # (tokens, V after - V before); the last has the end token
        [(2, 0.25 - 2 / 3), (2, 0.5 - 0.25), (2, 0 - 0.5)],
        [(2, 0.25 - 1 / 3), (2, 0.5 - 0.25), (2, 1 - 0.5)],
        [(1, 0 - 2 / 3)],
    ]
    for row, steps in enumerate(expected):
        tokens = [value for count, value in steps for _ in range(count)]
        assert found.advantages[row, 1 : 1 + len(tokens)].tolist() == pytest.approx(tokens, abs=1e-6)
        assert not found.advantages[row, 1 + len(tokens) :].any()


def test_a_step_ends_at_its_token_in_a_text_of_several_bytes_a_letter(tmp_path: Path) -> None:
    """Each token has the sum of the normalised rewards of the steps that are not complete before it."""
    tokenizer = byte_level()
    cfg = configured(tmp_path, "grpo_process", tmp_path / "run")
    text, other = "na\u00efve \u0434\u0430\n\U0001f600 3.5\nok\u0434", "\U0001f468\u200d\U0001f469\n5"
    ends = [(9, 1.0), (15, -0.5), (18, 0.25)], [(4, 0.0), (5, 1.0)]
    rows, scores = [], []
    for spoken, steps in zip((text, other), ends, strict=True):
        ids = (*tokenizer(spoken)["input_ids"], tokenizer.convert_tokens_to_ids("<eos>"))
        verdict = Verdict(steps[-1][1], "correct", step_rewards=tuple(steps))
        rows.append(Completion(ids, (-1.0,) * len(ids), spoken, "stop", 0))
        scores.append(Scored(verdict.reward, verdict, {"steps": verdict}))
        assert steps[-1][0] == len(spoken)
    group = Group(Prompt(Problem("p", "t", "q", "1"), (5, 6), "q"), tuple(rows), tuple(scores))
    batch = make_batch([group], token_mean, 8, 0, mask_truncated=False)
    parts: Any = SimpleNamespace(policy=SimpleNamespace(tokenizer=tokenizer))
    rewards = Rewards(group_rewards([group], 8, 0, 0.0))
    found = ByStep(cfg, parts).assign([group], rewards, batch)
    every = torch.tensor([reward for steps in ends for _, reward in steps])
    outcome = group_norm(rewards.of_completions)[0]
    for row, (completion, steps) in enumerate(zip(rows, ends, strict=True)):
        ids = completion.token_ids
        said = [tokenizer.decode(ids[: t + 1], skip_special_tokens=True) for t in range(len(ids))]
        # complete after the first token whose text has it all; the end of the text is the end of the sequence
        last = [next(t for t, so_far in enumerate(said) if so_far[:end] == completion.text[:end]) for end, _ in steps]
        last[-1] = len(ids) - 1
        assert len({*last}) == len(last)
        for t in range(len(ids)):
            process = sum(
                (reward - float(every.mean())) / (float(every.std()) + 1e-6)
                for end, (_, reward) in zip(last, steps, strict=True)
                if end >= t
            )
            mixed = 0.5 * float(outcome[row]) + 0.5 * process
            assert float(found.advantages[row, 2 + t]) == pytest.approx(mixed, abs=1e-5)


def test_each_token_answers_for_its_distance_and_those_after_it(tmp_path: Path) -> None:
    """RLOO of rewards 1 and 0 is 1 and -1; from it the penalties of the token and of all behind it."""
    cfg = configured(tmp_path, "rloo", tmp_path / "run")
    (group,) = judged([prompt(tiny_policy(), "?")], [[spelled("1a", tiny_policy()), spelled("b", tiny_policy())]])
    batch = make_batch([group], token_mean, 8, 0, mask_truncated=False)
    penalty = torch.tensor([[0.0, 0.5, 0.25, 1.0], [0.0, -0.5, 2.0, 0.0]])
    rewards = Rewards(group_rewards([group], 8, 0, 0.0), penalty)
    parts: Any = None
    found = ByGroup(cfg, parts).assign([group], rewards, batch).advantages
    assert torch.allclose(found, torch.tensor([[0, 1 - 1.75, 1 - 1.25, 1 - 1], [0, -1 - 1.5, -1 - 2, 0]]))
    assert rewards.in_all.tolist() == [[1 - 1.75, -1.5]]
    whole = cfg.model_copy(update={"kl": cfg.kl.model_copy(update={"per_token": False})})
    found = ByGroup(whole, parts).assign([group], rewards, batch).advantages
    assert torch.allclose(found, batch.loss_mask * torch.tensor([[0.75], [-0.75]]))  # -.75 less -1.5


def test_imitation_adds_its_gradient(tmp_path: Path) -> None:
    """d (policy's loss + c * NLL) = d policy's loss + c * d NLL, the latter by plain transformers."""
    cfg = configured(tmp_path, "pretraining", tmp_path / "run")
    asked = prompt(tiny_policy(), "1+1=")
    rows = [
        (asked, Completion((20, 21, 1), (-1.0,) * 3, "", "stop", 0)),
        (asked, Completion((22,), (-2.0,), "", "length", 0)),
    ]
    batch = pad_rows(rows, [True, True], 0)
    batch = replace(batch, weights=token_mean(batch.loss_mask, 1)).with_advantages(torch.tensor([1.0, -0.5]))
    policy_loss = make_loss(cfg.loss, cfg.kl, cfg.correction)
    term: Any = SimpleNamespace(settings=cfg.pretraining, pad_id=0)
    term.stream = SimpleNamespace(take=lambda n: [SimpleNamespace(prompt=p, completion=c) for p, c in rows[::-1]])
    imitated = Imitation.term(term)
    assert cfg.pretraining is not None
    assert cfg.pretraining.coefficient == 0.5

    def gradient(first: Batch, also: Sequence[Any]) -> dict[str, torch.Tensor]:
        policy, kept = tiny_policy(sharp=2.0), {}
        spec = config.Optimizer(max_grad_norm=1e9)
        backend = TorchBackend(policy, config.Backend(device="cpu"), spec, 1, 12, 1.0)
        parameters = dict(policy.model.named_parameters())
        backend.optimizer.register_step_pre_hook(
            lambda *_: kept.update({name: p.grad.clone() for name, p in parameters.items()})
        )
        backend.step(first, lambda logprobs, entropy, part: policy_loss(logprobs, entropy, part, 0.0), also=also)
        return kept

    together, alone = gradient(batch, [imitated]), gradient(batch, [])
    model = tiny_policy(sharp=2.0).model
    losses = []
    for p, c in rows:
        logits = model(torch.tensor([p.token_ids + c.token_ids])).logits[0, len(p.token_ids) - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(c.token_ids), reduction="sum"))
    (sum(losses) / 4).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(together[name], alone[name] + 0.5 * parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_policy_s_schedule_is_that_of_the_steps_in_which_it_learns(tmp_path: Path) -> None:
    cfg = configured(tmp_path, "ppo", tmp_path / "run")
    assert updates_of(cfg) == (3 - 1) * 2 * 2  # a step of the critic alone; updates_per_step x passes


def test_prefixes_that_are_sampled_together_have_room_for_each() -> None:
    """A long prompt would otherwise shorten everybody's continuations, and what is cut is wrong."""
    room, context, at_once = 400, 512, 5
    starts = [20, 112, 20, 112, 60] * 6
    used = [(37 * i) % 390 for i in range(len(starts))]
    lengths = [start + tokens for start, tokens in zip(starts, used, strict=True)]
    lists = by_room(lengths, used, room, context, at_once)
    assert sorted(place for places in lists for place in places) == list(range(len(used)))
    for places in lists:
        most = room - min(used[i] for i in places)  # as ByVine.continued has it
        assert len(places) <= at_once
        assert all(lengths[i] + most <= context and most >= room - used[i] for i in places)
        assert max(used[i] for i in places) - min(used[i] for i in places) <= room // 4
    assert len(lists) < len(used)


def test_a_completion_that_another_verifier_failed_on_is_no_sibling(tmp_path: Path) -> None:
    """With one step each, the process advantage is the outcome's, of those that are trained."""
    policy = tiny_policy()
    rewards = [1.0, None, 0.0, 1.0]
    rows = [spelled("12", policy) for _ in rewards]
    step = [Verdict(r, "unknown", step_rewards=((2, r),)) for r in (1.0, 9.0, 0.0, 1.0)]
    scores = [
        Scored(reward, Verdict(reward, "error" if reward is None else "correct"), {"steps": verdict})
        for reward, verdict in zip(rewards, step, strict=True)
    ]
    group = Group(prompt(policy, "?"), tuple(rows), tuple(scores))
    cfg = configured(tmp_path, "grpo_process", tmp_path / "run", process={"share": 1.0})
    batch = make_batch([group], token_mean, 8, policy.pad_id, mask_truncated=False)
    parts: Any = SimpleNamespace(policy=policy)
    found = ByStep(cfg, parts).assign([group], Rewards(group_rewards([group], 8, 0, 0.0)), batch)
    outcome = group_norm(torch.tensor([[1.0, float("nan"), 0.0, 1.0]]))[0, [0, 2, 3]]
    assert torch.allclose(found.advantages[found.loss_mask].view(3, -1), outcome[:, None].expand(3, 3))
