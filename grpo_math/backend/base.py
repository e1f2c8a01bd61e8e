"""The protocol between the loop and whatever holds the weights and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.reference import Reference

Metrics = dict[str, float]
# (logprobs (B, T), entropy (B, T) or None, batch) -> (loss: the sum to minimise, {name: values}): values of each token,
# (B, T), or of no dimension, a part of a sum
LossFn = Callable[[Tensor, Tensor | None, Batch], tuple[Tensor, dict[str, Tensor]]]


class TrainBackend(Protocol):
    def logprobs(self, batch: Batch) -> Tensor:
        """(B, T) at the sampling temperature, 0 outside batch.loss_mask; no gradient."""

    def step(
        self, batch: Batch, loss: LossFn, with_entropy: bool = False, also: Sequence[tuple[Batch, LossFn]] = ()
    ) -> Metrics:
        """One optimizer update on the whole batch: splits it, accumulates, clips, updates. The loss's values per token
        come back as means over the batch's trained tokens, those of no dimension as their sum. also: further terms of
        the loss, each of rows of its own."""

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """What an engine needs to sample from the policy, as lora.engine_weights says. Every rank must take all."""

    def reference(self, kl: config.KL) -> Reference:
        """The policy as it is now, to compare with later."""

    def save(self, path: Path) -> None:
        """The model and tokenizer in Hugging Face format, and beside them what is needed to go on training. Every rank
        must call it, with a folder that all of them see."""

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""

    def close(self) -> None: ...


def metric_part(values: Tensor, part: Batch, trained: float) -> float:
    """What this part of a batch adds to a metric. trained: for how many sampled tokens the whole batch stands."""
    if values.dim() == 0:
        return float(values)
    return float((values * sampled_tokens(part))[part.loss_mask].sum()) / trained


def sampled_tokens(batch: Batch) -> Tensor:
    """(B, T): for how many sampled tokens each trained one stands."""
    return batch.loss_mask * (1.0 if batch.copies is None else batch.copies[:, None])
