"""Tokens and masks: pad == eos, one BOS, prompts that are too long, truncation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from grpo_math import config
from grpo_math.batch import make_batch, pad_rows
from grpo_math.losses import token_mean
from grpo_math.prompts import prompt_maker
from grpo_math.recipes.parts import PromptStream
from grpo_math.rollout.hf import HFEngine
from grpo_math.types import Problem, Prompt, Sampling, UserError
from tests.tiny import completion, group, tiny_policy


def test_the_first_eos_is_trained_where_pad_is_eos():
    """[x, eos, eos]: mask [1, 1, 0]."""
    eos = 1
    asked = Prompt(Problem("p", "t", "q", "1"), (7,), "q")
    rows = [(asked, completion([5, eos])), (asked, completion([5, 6, 6, eos]))]
    batch = pad_rows(rows, [True, True], pad_id=eos)
    assert batch.token_ids[0].tolist() == [7, 5, eos, eos, eos]
    assert batch.loss_mask[0].tolist() == [False, True, True, False, False]


def test_a_sampled_completion_keeps_its_eos_and_nothing_after():
    policy = tiny_policy(sharp=3.0)
    asked = Prompt(Problem("p", "t", "q", "1"), (7, 8), "q")
    (row,) = HFEngine(policy, 64).generate([asked], Sampling(64, 100, 1.5, seed=0))
    stopped = [c for c in row if c.finish_reason == "stop"]
    assert stopped
    for c in row:
        assert len(c.token_ids) == len(c.logprobs)
        assert (c.token_ids[-1] in policy.eos_ids) == (c.finish_reason == "stop")
        assert not set(c.token_ids[:-1]) & policy.eos_ids


def tokenizer_with_bos(template):
    tokenizer = tiny_policy().tokenizer
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ bos_token }}{{ messages[0]['content'] }}>",
        "{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}",
    ],
)
def test_one_bos_templated_and_raw_alike(template):
    tokenizer = tokenizer_with_bos(template)
    make = prompt_maker(config.Task(name="t"), SimpleNamespace(TEMPLATE="{question}"), tokenizer)  # type: ignore[arg-type]
    ids = make(Problem("p", "t", "1+1", "2")).token_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_prompts_that_are_too_long_are_passed_over_and_counted():
    class Problems:
        """Every second question is too long."""

        number = 0

        def take(self, count):
            out = []
            for _ in range(count):
                self.number += 1
                out.append(Problem(str(self.number), "t", "q" * (3 if self.number % 2 else 50), "1"))
            return out

    stream = PromptStream(Problems(), lambda p: Prompt(p, tuple(range(len(p.question))), p.question), room=10)  # type: ignore[arg-type]
    prompts = stream.take(4)
    assert [p.problem.id for p in prompts] == ["1", "3", "5", "7"]
    assert stream.too_long == 3


def test_only_prompts_that_are_too_long_is_an_error_with_the_remedy():
    class Problems:
        def take(self, count):
            return [Problem("x", "t", "q" * 50, "1")] * count

    stream = PromptStream(Problems(), lambda p: Prompt(p, tuple(range(50)), ""), room=10)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lower sampling.max_tokens"):
        stream.take(4)


@pytest.mark.parametrize("masked", [True, False])
def test_truncated_completions_are_masked_or_scored_as_configured(masked):
    batch = make_batch([group([1.0, 0.0], [3, 5], reason="length")], token_mean, 16, 0, mask_truncated=masked)
    assert bool(batch.loss_mask.any()) is not masked
    assert len(batch) == 2


def test_a_completion_without_a_score_has_no_row():
    batch = make_batch([group([1.0, None, 0.0], [3, 4, 5])], token_mean, 16, 0, mask_truncated=False)
    assert batch.lengths.tolist() == [6, 8]
