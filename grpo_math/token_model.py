"""What a back end trains: a network that says one number of each token, a policy's log-probability or a value.

Left out: the networks themselves (policy.py, value_model.py).
"""

# B rows, T tokens, N trained tokens of all rows

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_math import config
from grpo_math.batch import Batch
from grpo_math.packing import Layout


class TokenModel(Protocol):
    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def lora(self) -> config.LoRA: ...
    @property
    def outputs(self) -> int:
        """How many numbers it says of each token; with one, per_token is (B, T), and with more (B, T, outputs)."""

    @property
    def layout(self) -> Layout: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def packing(self) -> bool: ...

    def with_packing(self, packing: bool) -> Self:
        """The same model, reading rows packed or padded."""

    def check(self) -> None:
        """Raises UserError where per_token does not give the model's own numbers. Weights must be whole, or split by
        DeepSpeed with its hooks in place."""

    def per_token(
        self,
        batch: Batch,
        temperature: float,
        chunk: int,
        autocast: torch.dtype | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T) numbers where batch.loss_mask is set, 0 elsewhere, with a gradient; and entropies, or None."""


@torch.no_grad()
def score(
    model: TokenModel,
    batch: Batch,
    temperature: float,
    chunk: int,
    token_budget: int,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """per_token of a batch of any size on the CPU, a micro-batch at a time, without gradients."""
    out = blank(batch, model.outputs)
    for rows in batch.micro_batches(token_budget, model.packing):
        values, _ = model.per_token(batch.rows(rows).to(model.device), temperature, chunk, autocast)
        out[rows, : values.shape[1]] = values.cpu()
    return out


def blank(batch: Batch, outputs: int) -> Tensor:
    """Zeros of the shape of per_token."""
    return torch.zeros(batch.loss_mask.shape if outputs == 1 else (*batch.loss_mask.shape, outputs))


def scatter(mask: Tensor, values: Tensor) -> Tensor:
    """(N,) values at the True places of mask (B, T); 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)
