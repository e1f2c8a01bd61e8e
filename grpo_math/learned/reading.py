"""A prompt and a completion as a reward model reads them, and at which tokens its values are read.

A model of ours reads plain text, prompt.text and completion.text, the same tokens as in its training (value_input.py).
Anyone else's that has a chat template reads the problem's question and the completion as a conversation, whole as
apply_chat_template makes it. Left out: the values (local.py, server.py) and what is made of them (score.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_math.config_learned import LearnedReward
from grpo_math.examples.example import Example
from grpo_math.examples.raw import Text
from grpo_math.learned.checks import DEFAULT_BOUNDARY, Trained
from grpo_math.prompts import one_bos
from grpo_math.steps.split import boundary
from grpo_math.types import Completion, FinishReason, Problem, Prompt, UserError
from grpo_math.value_input import Read, ValueReader


@dataclass(frozen=True)
class Asked:
    """Whatever decides a score. Two that are equal are scored once."""

    question: str
    prompt: str
    completion: str
    finish_reason: FinishReason

    @staticmethod
    def of(prompt: Prompt, completion: Completion) -> Asked:
        return Asked(prompt.problem.question, prompt.text, completion.text, completion.finish_reason)


@dataclass(frozen=True)
class Steps:
    """ends: where each value stands, in characters of the completion; for an outcome its whole length."""

    read: Read
    ends: tuple[int, ...]


class Values(Protocol):
    """What reads values: a model in this process, or a server."""

    context: int  # tokens of prompt and completion together that it reads

    def values(self, reads: Sequence[Read]) -> list[list[float]]:
        """For each the value at each of its places, float32 and without a gradient."""

    def close(self) -> None: ...


Reader = Callable[[Asked], Steps]  # raises UserError for what cannot be scored


def reader(tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], reward: LearnedReward, how: Trained) -> Reader:
    """ends: every token that ends a completion. Raises UserError."""
    chat = reward.chat if reward.chat is not None else bool(tokenizer.chat_template) and not how.plain
    if chat and not tokenizer.chat_template:
        raise UserError("chat=true, and its tokenizer has no chat template; leave chat out")
    plain = ValueReader(tokenizer, ends)
    if reward.kind == "outcome":
        return Conversation(tokenizer, plain.encoder.special) if chat else PlainText(plain)
    return InSteps(plain, reward.boundary or how.boundary or DEFAULT_BOUNDARY, chat)


class PlainText:
    def __init__(self, texts: ValueReader) -> None:
        self.texts = texts

    def __call__(self, asked: Asked) -> Steps:
        read = self.texts.outcome(asked.prompt, asked.completion, asked.finish_reason)
        return Steps(read, (len(asked.completion),))


class Conversation:
    """The value is at the last token of the template, as with a batch of one in transformers. A completion that was
    cut ends its turn too: these models know no other texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special: Sequence[str]) -> None:
        self.tokenizer, self.special = tokenizer, special

    def __call__(self, asked: Asked) -> Steps:
        if inside := next((token for token in self.special if token in asked.completion), None):
            raise UserError(f"the completion spells out {inside!r}, with which it could speak in another's name")
        turns = [{"role": "user", "content": asked.question}, {"role": "assistant", "content": asked.completion}]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError as error:
            raise UserError(f"the chat template refuses it: {error}") from error
        assert isinstance(text, str)
        ids = one_bos(tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]), self.tokenizer)
        prompt = Prompt(Problem("", "", asked.question, ""), ids[:-1], text)
        last = Completion(ids[-1:], (0.0,), "", asked.finish_reason, 0)
        return Steps(Read(Example(prompt, last), (0,)), (len(asked.completion),))


class InSteps:
    def __init__(self, texts: ValueReader, name: str, chat: bool) -> None:
        self.texts, self.split, self.chat = texts, boundary(name), chat

    def __call__(self, asked: Asked) -> Steps:
        ends = self.split(asked.completion)
        if not ends:
            raise UserError("the completion is empty, and has no steps")
        self.check(asked.completion)
        prompt: Text = [{"role": "user", "content": asked.question}] if self.chat else asked.prompt
        return Steps(self.texts.steps(prompt, asked.completion, ends, asked.finish_reason), ends)

    def check(self, completion: str) -> None:
        """Raises UserError for a text that is another one in the model's tokens."""
        tokenizer = self.texts.tokenizer
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
        if tokenizer.decode(ids, skip_special_tokens=True) != completion:
            raise UserError("its tokenizer makes another text of the completion, in which the steps end elsewhere")
