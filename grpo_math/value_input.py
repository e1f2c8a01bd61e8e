"""Prompt and completion as a model of values reads them: the same tokens in training, in the loop, and anywhere else.

A text is put into tokens by the model's own tokenizer, in the way of examples/tokens.py: a completion that was not cut
ends with the end-of-sequence token (in a conversation, with the end of the turn), and its value is read there. Left
out: the values (value_model.py), and where steps end (steps/).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from grpo_math.batch import Batch, pad_rows
from grpo_math.examples.example import Example
from grpo_math.examples.raw import RawCompletion, RawExample, Text
from grpo_math.examples.tokens import Encoder, encoder
from grpo_math.steps.places import offset_ends, step_tokens, token_ends
from grpo_math.types import Completion, FinishReason, UserError


@dataclass(frozen=True)
class Read:
    """A prompt and a completion in tokens. places: at which of the completion's tokens values are read."""

    example: Example
    places: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.example.prompt.token_ids) + len(self.example.completion.token_ids)


class ValueReader:
    """Raises UserError, without saying which line or sample it is about: whoever calls knows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
        """ends: every token that ends a completion."""
        self.tokenizer = tokenizer
        self.encoder: Encoder = encoder(tokenizer, ends)

    def outcome(self, prompt: Text, completion: Text, finish_reason: FinishReason = "stop") -> Read:
        """Its value is at the last token."""
        example = self._example(prompt, completion, finish_reason)
        return Read(example, (len(example.completion.token_ids) - 1,))

    def steps(self, prompt: Text, completion: Text, ends: Sequence[int], finish_reason: FinishReason = "stop") -> Read:
        """ends: where each step ends, in characters of the completion's text; its value is at the token that holds the
        last of them. Two steps that end in the same token are refused: one value cannot speak for both."""
        example = self._example(prompt, completion, finish_reason)
        places = tuple(step_tokens(self._text_ends(example.completion), ends))
        if len(set(places)) < len(places):
            raise UserError("two steps end within one token; join them, or take a boundary that tokens respect")
        return Read(example, places)

    def _text_ends(self, completion: Completion) -> list[int]:
        """How many characters of the text are complete after each token. By the tokenizer's own account, since one that
        normalises makes other characters of some; behind the text stands the end of the sequence, or of the turn."""
        text, ids = completion.text, completion.token_ids
        if self.tokenizer.is_fast:
            told = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            if ids[: len(told["input_ids"])] == tuple(told["input_ids"]):
                known = offset_ends(told["offset_mapping"], len(text))
                return [*known, *[len(text)] * (len(ids) - len(known))]
        ends = token_ends(self.tokenizer, ids)
        if ends[-1] < len(text):
            raise UserError("its tokenizer makes another text of the completion, in which the steps end elsewhere")
        return ends

    def _example(self, prompt: Text, completion: Text, finish_reason: FinishReason) -> Example:
        raw = RawExample("", prompt, (RawCompletion(completion, finish_reason),))
        return self.encoder.example(raw)


def batch_of(reads: Sequence[Read], pad_id: int) -> Batch:
    """Rows of prompt + completion whose loss_mask is True at the places where values are read; no weights yet."""
    rows = [(read.example.prompt, read.example.completion) for read in reads]
    batch = pad_rows(rows, [False] * len(rows), pad_id)
    for i, read in enumerate(reads):
        start = len(read.example.prompt.token_ids)
        batch.loss_mask[i, [start + place for place in read.places]] = True
    return batch


def at_places(values: torch.Tensor, batch: Batch) -> list[list[float]]:
    """(B, T) values of a batch -> those at the places of each row, in their order."""
    return [row[mask].tolist() for row, mask in zip(values, batch.loss_mask, strict=True)]
