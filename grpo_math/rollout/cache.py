"""transformers' dynamic cache with room to grow: appending a token writes one slot instead of copying all before it,
and rows that move, split or end copy only themselves.

The stock layer joins old and new tensors at every token, which is quadratic in the length. Layers of other kinds
(sliding windows, state spaces) keep their own behaviour.
"""

# S rows in use, T tokens so far

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values are views (S, heads, T, head size) of buffers with room for more rows and tokens; what is full is
    doubled, up to max_rows and max_tokens."""

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        super().__init__()
        self.limits = (max_rows, max_tokens)
        self.rows = self.filled = 0
        self.buffers: list[Tensor] = []  # keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, size = key_states.shape
            self.rows = rows
            self.buffers = [states.new_empty(rows, heads, 0, size) for states in (key_states, value_states)]
        start, end = self.filled, self.filled + key_states.shape[-2]
        self._make_room(self.rows, end)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: self.rows, :, start:end] = states
        self.filled = end
        return self._show()

    def select(self, index: Tensor) -> None:
        """Row i becomes what row index[i] was; rows that stay in their place cost nothing."""
        self._make_room(len(index), self.filled)
        moved = (index != torch.arange(len(index), device=index.device)).nonzero().squeeze(-1)
        for buffer in self.buffers:
            buffer[moved, :, : self.filled] = buffer[index[moved], :, : self.filled]
        self.rows = len(index)
        self._show()

    def _make_room(self, rows: int, tokens: int) -> None:
        have = self.buffers[0].shape[0], self.buffers[0].shape[2]
        if rows <= have[0] and tokens <= have[1]:
            return
        # doubling, up to the most there can be: most completions end long before max_tokens
        room = [
            old if need <= old else max(need, min(2 * old, limit))
            for need, old, limit in zip((rows, tokens), have, self.limits, strict=True)
        ]
        for i, buffer in enumerate(self.buffers):
            larger = buffer.new_empty(room[0], buffer.shape[1], room[1], buffer.shape[3])
            larger[: self.rows, :, : self.filled] = buffer[: self.rows, :, : self.filled]
            self.buffers[i] = larger

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[: self.rows, :, : self.filled] for buffer in self.buffers)
        return self.keys, self.values


def growing(cache: DynamicCache, max_rows: int, max_tokens: int) -> DynamicCache:
    """Swap every plain layer of an empty cache for one with room to grow."""
    if not cache.layers:  # a config without layer types: layers are made as they are needed
        cache.layer_class_to_replicate = lambda *_: GrowingLayer(max_rows, max_tokens)  # type: ignore[assignment]
    cache.layers = [
        GrowingLayer(max_rows, max_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def select_rows(cache: DynamicCache, index: Tensor) -> None:
    """Row i of every layer becomes what row index[i] was; an index may come several times."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.select(index)
        else:
            layer.reorder_cache(index)  # moves recurrent states too, which batch_select_indices leaves out
