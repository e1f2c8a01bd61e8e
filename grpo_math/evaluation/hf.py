"""Sample with transformers and this package's own decoding. Left out: vLLM (vllm.py) and servers (openai.py)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.backend.torch import DTYPES
from grpo_math.evaluation.sampler import Answered, Asked, Sample, until, with_tokens
from grpo_math.forms import Form
from grpo_math.policy import load_policy, pick_device
from grpo_math.prompts import render
from grpo_math.rollout.hf import HFEngine
from grpo_math.types import Completion, Problem, Prompt, Sampling

Dtype = Literal["float32", "bfloat16"]


class HFSampler:
    """max_rows: completions decoded side by side. tokens: samples with their tokens and log-probabilities."""

    def __init__(self, model: str, max_rows: int, dtype: Dtype, device: str, tokens: bool = False) -> None:
        self.policy = load_policy(config.Model(path=model), pick_device(device))
        self.engine = HFEngine(self.policy, max_rows, DTYPES[dtype])
        self.max_rows, self.dtype, self.tokens = max_rows, dtype, tokens
        self.context: int | None = self.policy.context

    def ask(self, task: str, number: int, problem: Problem, form: Form) -> Asked:
        return rendered(task, number, problem, form, self.policy.tokenizer)

    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> Generator[list[Answered]]:
        per_block = max(1, self.max_rows // sampling.n)
        # by their places in the task: after an interruption the same problems are beside each other, and round alike
        for _, some in groupby(asked, lambda a: a.number // per_block):
            block = list(some)
            stop = block[0].stop
            groups = self.engine.generate([prompt_of(a) for a in block], replace(sampling, stop=stop))
            yield [
                (a.number, [sample_of(c, stop, self.policy.tokenizer, self.tokens) for c in group])
                for a, group in zip(block, groups, strict=True)
            ]

    def identity(self) -> dict[str, Any]:
        device = self.policy.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "engine": "hf",
            "dtype": self.dtype,
            "device": name,
            "max_rows": self.max_rows,
            "revision": getattr(self.policy.model.config, "_commit_hash", None),  # of a Hub id
        }

    def close(self) -> None:
        self.engine.close()


def rendered(task: str, number: int, problem: Problem, form: Form, tokenizer: PreTrainedTokenizerBase) -> Asked:
    prompt = render(form, problem, tokenizer)
    return Asked(task, number, problem, prompt.text, prompt.token_ids, stop=form.stop)


def prompt_of(asked: Asked) -> Prompt:
    assert asked.token_ids is not None
    return Prompt(asked.problem, asked.token_ids, asked.text)


def sample_of(
    completion: Completion, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: bool = False
) -> Sample:
    """tokens: with them and their log-probabilities."""
    sample = _ended(completion, stop, tokenizer)
    return with_tokens(sample, completion) if tokens else sample


def _ended(completion: Completion, stop: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Its tokens are counted up to the one that completes a stop string, wherever the sampler stopped."""
    before = until(completion.text, stop)
    if before is None:
        return Sample(completion.text, len(completion.token_ids), completion.finish_reason)

    def has_stop(count: int) -> bool:
        return until(tokenizer.decode(list(completion.token_ids[:count]), skip_special_tokens=True), stop) is not None

    counts = range(1, len(completion.token_ids) + 1)
    return Sample(before, counts[bisect_left(counts, True, key=has_stop)], "stop")
