"""How the rows of a batch lie before the model: padded side by side, or packed end to end in one row.

Packed, attention must not look across rows. transformers has that for flash attention, and for the others by a mask of
N x N, which costs more than padding does; so with sdpa each row is attended to by itself, without a mask. Left out: the
forward pass (policy.py), which rows share one (batch.py), and whether a model can be packed (packing_checks.py).
"""

# B rows, T tokens of the longest, N tokens of all rows together, D sizes of a head

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo_math.batch import Batch

# (a batch, places in it (B, T)) -> (what the model reads; of the same shape, the states at these places). Either way
# the states come in the order of the rows
Layout = Callable[[Batch, Tensor], tuple[dict[str, Tensor], Tensor]]
BY_ROW = "sdpa_by_row"  # transformers' name for attend_by_row


def padded(batch: Batch, places: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(B, T). Padding is on the right, where causal attention never looks: no mask is needed, and no positions."""
    return {"input_ids": batch.token_ids}, places


def packed(batch: Batch, places: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """(1, N): the rows in their order, positions of each from 0, which is where transformers begins another row."""
    positions = torch.arange(batch.token_ids.shape[1], device=batch.token_ids.device).expand_as(batch.token_ids)
    real = positions < batch.lengths[:, None]
    read = {"input_ids": batch.token_ids[real][None], "position_ids": positions[real][None]}
    return read, places[real][None]


def packed_by_row(batch: Batch, places: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The same for attend_by_row, which is told the lengths in place of a mask: int32 (1, 1, 1, B), on the CPU. Of
    four dimensions, because transformers hands such a mask on to each layer as it is."""
    read, at = packed(batch, places)
    return read | {"attention_mask": batch.lengths.to("cpu", torch.int32)[None, None, None]}, at


def attend_by_row(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention within each of the packed rows. query, key, value: (1, heads, N, D); returns (1, N, heads, D).

    With anything but lengths for a mask it is transformers' own sdpa, which an engine needs that samples from the same
    model."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    lengths = attention_mask.flatten().tolist()
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **options)[0] for row in rows], dim=1), None


AttentionInterface.register(BY_ROW, attend_by_row)
AttentionMaskInterface.register(BY_ROW, sdpa_mask)


def packed_layout(model: PreTrainedModel) -> Layout:
    """The cheapest that suits the model. One with sdpa throughout is set to attend by row."""
    settings = model.config
    # a window is a mask within the row, which is transformers' to make
    windows = "sliding_attention" in (getattr(settings, "layer_types", None) or ()) or bool(
        getattr(settings, "sliding_window", None)
    )
    if settings._attn_implementation == "sdpa" and model._supports_attention_backend and not windows:
        model.set_attn_implementation(BY_ROW)
    return packed_by_row if settings._attn_implementation == BY_ROW else packed


def before_the_trained(batch: Batch) -> Tensor:
    """(B, T): where the next token is trained. None is in the first column, so what comes round from it is False."""
    return batch.loss_mask.roll(-1, dims=1)
