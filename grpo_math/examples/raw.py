"""An example as its file has it: text, or a conversation's messages, before any tokenizer has been loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grpo_math.types import FinishReason

Kind = Literal["sft", "preference", "kto", "ranked", "judged", "steps"]
Message = dict[str, Any]  # role and content, and what else the chat template may read
Text = str | Sequence[Message]  # plain, or a conversation


@dataclass(frozen=True, slots=True)
class RawCompletion:
    """text: plain, or a list of the one message of the assistant. finish_reason: `length` where it was cut, and has no
    end to be learnt. logprobs: the log-probability of the whole of it, in nats, under whoever sampled it; ref_logprobs:
    under the reference; None where the file does not say, as with reward."""

    text: Text
    finish_reason: FinishReason = "stop"
    reward: float | None = None
    logprobs: float | None = None
    ref_logprobs: float | None = None


@dataclass(frozen=True, slots=True)
class RawExample:
    """One line of a file. completions: one, in a pair the chosen and the rejected one, or some whose rewards order them
    (ranked). label: kto's, None elsewhere; a judged one's label is the reward of its completion.

    where: file:line, for people. problem, task: "" where the file does not say. margin: of a pair, by how much the
    chosen one is better, None where the file does not say. steps: of the completion, where each ends in characters, and
    how right it is, from 0 to 1; None where nobody knows."""

    where: str
    prompt: Text
    completions: tuple[RawCompletion, ...]
    label: bool | None = None
    weight: float = 1.0
    problem: str = ""
    task: str = ""
    margin: float | None = None
    steps: tuple[tuple[int, float | None], ...] = ()

    @property
    def chat(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def learnt(self) -> tuple[object, ...]:
        """What of it is learnt, and so must be the same where a run goes on."""
        values = [value for value in (self.margin, self.steps) if value]
        return (self.prompt, self.completions, self.label, self.weight, *values)
