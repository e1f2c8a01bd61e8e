"""transformers' dynamic cache with room to grow: appending a token writes one slot instead of copying all before it.

The stock layer joins old and new tensors at every token, which is quadratic in the length. Layers of other kinds
(sliding windows, state spaces) keep their own behaviour.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values are views of the filled part of buffers (R, heads, room, head size); full room is doubled."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.filled = capacity, 0
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, self.filled = self.filled, self.filled + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            # the first call is the prompt, computed once a group: it stays as it is until the rows are known
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        if self.key_buffer is None or self.value_buffer is None or self.filled > self.key_buffer.shape[-2]:
            assert self.keys is not None
            assert self.values is not None
            self.key_buffer, self.value_buffer = self._grow(self.keys), self._grow(self.values)
        self.key_buffer[:, :, start : self.filled] = key_states
        self.value_buffer[:, :, start : self.filled] = value_states
        self._show()
        return self.keys, self.values

    def select(self, index: Tensor) -> None:
        """Keep these rows, in this order; an index may come several times."""
        if self.key_buffer is None or self.value_buffer is None:
            assert self.keys is not None
            assert self.values is not None
            self.keys, self.values = self.keys[index], self.values[index]
            return
        self.key_buffer, self.value_buffer = (
            self._gather(self.key_buffer, index),
            self._gather(self.value_buffer, index),
        )
        self._show()

    def _show(self) -> None:
        assert self.key_buffer is not None
        assert self.value_buffer is not None
        self.keys, self.values = self.key_buffer[:, :, : self.filled], self.value_buffer[:, :, : self.filled]

    def _grow(self, filled: Tensor) -> Tensor:
        rows, heads, length, size = filled.shape
        # doubling, up to the longest there can be: most completions end long before max_tokens
        room = min(self.capacity, max(2 * length, 64))
        buffer = filled.new_empty(rows, heads, max(room, self.filled), size)
        buffer[:, :, :length] = filled
        return buffer

    def _gather(self, buffer: Tensor, index: Tensor) -> Tensor:
        fresh = buffer.new_empty(len(index), *buffer.shape[1:])
        fresh[:, :, : self.filled] = buffer[index, :, : self.filled]
        return fresh


def growing(cache: DynamicCache, capacity: int) -> DynamicCache:
    """Swap every plain layer of an empty cache for one with room for `capacity` tokens."""
    if not cache.layers:  # a config without layer types: layers are made as they are needed
        cache.layer_class_to_replicate = lambda *_: GrowingLayer(capacity)  # type: ignore[assignment]
    cache.layers = [GrowingLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, index: Tensor) -> None:
    """Keep these rows of every layer."""
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.select(index)
        else:
            layer.batch_select_indices(index)
