"""An example in tokens, as training takes it: one completion, a pair of them, or one with a label."""

from __future__ import annotations

from dataclasses import dataclass, replace

from grpo_math.types import Completion, Prompt


@dataclass(frozen=True, slots=True)
class Example:
    """To imitate. weight: of its loss. reward: None where the file does not say. where: file:line."""

    prompt: Prompt
    completion: Completion
    weight: float = 1.0
    reward: float | None = None
    where: str = ""

    def fitted(self, room: int, truncate: bool) -> Example | None:
        completion = fit(self.prompt, self.completion, room, truncate)
        return None if completion is None else replace(self, completion=completion)


@dataclass(frozen=True, slots=True)
class Pair:
    """Of the better and the worse. In each tuple the chosen one is first; None where the file does not say.

    ref, behaviour: log-probabilities of the whole completions, in nats, under the reference and under whoever sampled
    them."""

    prompt: Prompt
    chosen: Completion
    rejected: Completion
    ref: tuple[float, float] | None = None
    behaviour: tuple[float, float] | None = None
    rewards: tuple[float, float] | None = None
    where: str = ""

    def fitted(self, room: int, truncate: bool) -> Pair | None:
        """None, too, where the cut leaves two equal completions. What was known of the whole ones, their
        log-probabilities, is not known of their beginnings."""
        chosen = fit(self.prompt, self.chosen, room, truncate)
        rejected = fit(self.prompt, self.rejected, room, truncate)
        if chosen is None or rejected is None or chosen.token_ids == rejected.token_ids:
            return None
        if chosen is self.chosen and rejected is self.rejected:
            return self
        return replace(self, chosen=chosen, rejected=rejected, ref=None, behaviour=None)


@dataclass(frozen=True, slots=True)
class Labelled:
    """label: whether it is a good one."""

    prompt: Prompt
    completion: Completion
    label: bool
    where: str = ""

    def fitted(self, room: int, truncate: bool) -> Labelled | None:
        completion = fit(self.prompt, self.completion, room, truncate)
        return None if completion is None else replace(self, completion=completion)


def fit(prompt: Prompt, completion: Completion, room: int, truncate: bool) -> Completion | None:
    """The completion, its end cut so that with the prompt it has at most `room` tokens, or None where it must not be
    cut or nothing of it would be left. A cut one has no end-of-sequence token: nothing is learnt of where to stop."""
    left = room - len(prompt.token_ids)
    if len(completion.token_ids) <= left:
        return completion
    if not truncate or left < 1:
        return None
    return replace(
        completion,
        token_ids=completion.token_ids[:left],
        logprobs=completion.logprobs[:left],
        finish_reason="length",
    )
