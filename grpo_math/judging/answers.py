"""A model in this process that answers a judge's questions: with vLLM, or with transformers and this package's own
decoding. Left out: what is known already, and what it may cost (desk.py).
"""

# B questions, T tokens of the longest, V vocabulary, K likeliest tokens

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_math.evaluation.hf import HFSampler
from grpo_math.evaluation.sampler import Asked
from grpo_math.evaluation.vllm import VLLMSampler
from grpo_math.judging.question import Question, Reply, key, plain
from grpo_math.prompts import one_bos, plain_ids
from grpo_math.types import Problem, Sampling, UserError

Ids = tuple[int, ...]
Top = tuple[tuple[str, float], ...]

TOKENS_AT_ONCE = 1 << 14  # of a forward pass of transformers


class Answerer:
    """sampler: of texts. model: the folder or Hub id that it has loaded. identity: all that decides a reply, besides
    the question."""

    def __init__(self, sampler: HFSampler | VLLMSampler, model: str) -> None:
        self.sampler = sampler
        self.tokenizer = sampler.tokenizer if isinstance(sampler, VLLMSampler) else sampler.policy.tokenizer
        revision = sampler.identity()["revision"]
        self.identity: dict[str, Any] = {
            "model": model, "weights": revision or stamps(Path(model)), "dtype": sampler.dtype,
            "chat": bool(self.tokenizer.chat_template),
        }  # fmt: skip

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Reply]]:
        """The replies by the questions' places, as they come: side by side as far as questions are of one kind."""
        order = sorted(range(len(questions)), key=lambda i: _kind(questions[i]))
        for _, some in groupby(order, lambda i: _kind(questions[i])):
            block = list(some)
            yield from zip(block, self._answer([questions[i] for i in block]), strict=True)

    def close(self) -> None:
        self.sampler.close()

    def _answer(self, questions: Sequence[Question]) -> list[Reply]:
        """Questions of one kind."""
        ids = [rendered(question, self.tokenizer) for question in questions]
        room = self.sampler.context or 1 << 30
        fits = [i for i, prompt in enumerate(ids) if len(prompt) + questions[i].max_tokens <= room]
        found: dict[int, Reply] = {}
        if fits and questions[0].top:
            tops = top_tokens(self.sampler, [ids[i] for i in fits], questions[0].top)
            found = {i: Reply(top=top, tokens=len(ids[i]) + 1) for i, top in zip(fits, tops, strict=True)}
        elif fits:
            found = self._texts({i: (ids[i], questions[i]) for i in fits})
        return [found.get(i) or self._too_long(len(ids[i]), questions[i]) for i in range(len(questions))]

    def _too_long(self, tokens: int, question: Question) -> Reply:
        return Reply(
            failed=f"the question's {tokens} tokens and {question.max_tokens} of an answer do not fit into the judge's "
            f"context of {self.sampler.context}; take a judge that reads more, a shorter template, or fewer tokens for "
            "what it writes (max_tokens)"
        )

    def _texts(self, asked: Mapping[int, tuple[Ids, Question]]) -> dict[int, Reply]:
        one = next(iter(asked.values()))[1]
        sampling = Sampling(1, one.max_tokens, one.temperature, seed=one.seed)
        problems = [
            Asked("judge", i, Problem(key({}, question), "judge", "", ""), "", ids)
            for i, (ids, question) in asked.items()
        ]
        return {
            number: Reply(s.text, (), len(asked[number][0]) + (s.tokens or 0), s.finish_reason == "length", s.failed)
            for block in self.sampler.sample(problems, sampling)
            for number, [s] in block
        }


def _kind(question: Question) -> tuple[int, int, float, int]:
    return question.top, question.max_tokens, question.temperature, question.seed


def stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the weights' files: with other weights in the same folder the replies are others."""
    files = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".bin"))
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def rendered(question: Question, tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The tokens that the model reads: by its chat template where it has one, and what the answer begins with."""
    if not tokenizer.chat_template:
        return plain_ids(plain(question.messages) + question.begins, tokenizer)
    try:
        text = tokenizer.apply_chat_template(list(question.messages), add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise UserError(
            f"the judge's chat template does not take the conversation ({error}); some models know no `system` turn: "
            "leave it out of the template"
        ) from error
    assert isinstance(text, str)
    return one_bos(tuple(tokenizer(text + question.begins, add_special_tokens=False)["input_ids"]), tokenizer)


def top_tokens(sampler: HFSampler | VLLMSampler, prompts: Sequence[Ids], count: int) -> list[Top]:
    """(text, log-probability in nats at temperature 1) of the likeliest tokens after each prompt."""
    return _vllm_top(sampler, prompts, count) if isinstance(sampler, VLLMSampler) else _hf_top(sampler, prompts, count)


def _vllm_top(sampler: VLLMSampler, prompts: Sequence[Ids], count: int) -> list[Top]:
    params = sampler.vllm.SamplingParams(max_tokens=1, temperature=1.0, logprobs=count, seed=0)
    outputs = sampler.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    first = [output.outputs[0].logprobs[0] for output in outputs]
    # the sampled token is told too, whatever its rank
    ranked = [sorted(each.items(), key=lambda pair: -pair[1].logprob)[:count] for each in first]
    return [tuple((sampler.tokenizer.decode([i]), float(p.logprob)) for i, p in each) for each in ranked]


@torch.inference_mode()
def _hf_top(sampler: HFSampler, prompts: Sequence[Ids], count: int) -> list[Top]:
    policy, tokenizer = sampler.policy, sampler.policy.tokenizer
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # equal lengths waste the least padding
    found: dict[int, Top] = {}
    while order:
        rows = max(1, TOKENS_AT_ONCE // len(prompts[order[-1]]))
        block, order = order[-rows:], order[:-rows]
        longest = len(prompts[block[-1]])
        token_ids = torch.full((len(block), longest), policy.pad_id)
        visible = torch.zeros((len(block), longest), dtype=torch.long)
        for row, i in enumerate(block):  # padded on the left: the last column is every prompt's last token
            token_ids[row, longest - len(prompts[i]) :] = torch.tensor(prompts[i])
            visible[row, longest - len(prompts[i]) :] = 1
        token_ids, visible = token_ids.to(policy.device), visible.to(policy.device)
        autocast = sampler.engine.autocast
        with torch.autocast(policy.device.type, dtype=autocast, enabled=autocast is not None):
            output = policy.model(
                input_ids=token_ids,
                attention_mask=visible,
                position_ids=(visible.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=1,
            )
        values, ids = output.logits[:, -1].float().log_softmax(-1).topk(min(count, output.logits.shape[-1]))
        for i, row_values, row_ids in zip(block, values.tolist(), ids.tolist(), strict=True):
            found[i] = tuple((tokenizer.decode([t]), p) for t, p in zip(row_ids, row_values, strict=True))
    return [found[i] for i in range(len(prompts))]
