"""How large a model is, before it is loaded: from its config.json and the headers of its safetensors files.

Imports neither torch nor transformers. Left out: models that are not on this machine (known_models.py) and what a run
makes of the numbers (memory.py).
"""

# H hidden size, I intermediate size, L layers, V vocabulary, A heads x head size, K the same of the keys

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.types import UserError

CHARACTERS = 258  # the vocabulary of small_model.character_tokenizer
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma")


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder in the manner of Llama: gated MLP, two norms a layer, rotary positions."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    bias: int = 0  # bias parameters per layer
    qk_norm: bool = False

    @property
    def queries(self) -> int:
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_size

    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear layer of a block, under the names that transformers gives them."""
        h, i, a, k = self.hidden, self.intermediate, self.queries, self.keys
        return {
            "q_proj": (h, a), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (a, h),
            "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h),
        }  # fmt: skip

    def linear_parameters(self) -> int:
        """Of the blocks' matrices, without biases."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    def parameters(self) -> int:
        rest = 2 * self.hidden + self.bias + 2 * self.head_size * self.qk_norm
        embedded = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters() + self.layers * rest + self.hidden + embedded


@dataclass(frozen=True)
class ModelSize:
    """What is known of a model before it is loaded; None where it is not."""

    kind: str
    parameters: int | None
    context: int | None
    shape: Shape | None


def without_vocabulary_head(size: ModelSize) -> ModelSize:
    """The same model with a scalar head, whose own parameters are not worth counting. The files of a model that has one
    already hold fewer parameters than a language model's."""
    if size.shape is None or size.shape.tied or size.parameters is None or size.parameters < size.shape.parameters():
        return size
    return replace(size, parameters=size.parameters - size.shape.vocabulary * size.shape.hidden)


def size_of_new(spec: config.NewModel) -> ModelSize:
    """The Qwen2-type model that small_model.py makes: tied embeddings, biases on queries, keys and values."""
    head_size = spec.hidden_size // spec.heads
    shape = Shape(
        spec.hidden_size, spec.intermediate_size, spec.layers, spec.heads, spec.kv_heads, head_size, CHARACTERS,
        tied=True, bias=(spec.heads + 2 * spec.kv_heads) * head_size,
    )  # fmt: skip
    return ModelSize("qwen2", shape.parameters(), spec.context, shape)


def size_of_folder(folder: Path) -> ModelSize:
    """Of a Hugging Face folder. Parameters are counted in the safetensors headers where there are some."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}") from error
    settings = settings.get("text_config", settings)  # of a model that also reads images
    kind = str(settings.get("model_type", "unknown"))
    try:
        shape = _llama_shape(kind, settings) if kind in LLAMA_LIKE else None
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} has no {error.args[0]}, as a model of type {kind} must") from error
    parameters = _stored_parameters(folder)
    if parameters is None and shape is not None:
        parameters = shape.parameters()
    return ModelSize(kind, parameters, settings.get("max_position_embeddings"), shape)


def _llama_shape(kind: str, settings: Mapping[str, Any]) -> Shape:
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    kv_heads = settings.get("num_key_value_heads") or heads
    head_size = settings.get("head_dim") or hidden // heads
    queries, keys = heads * head_size, kv_heads * head_size
    bias = 0
    if kind == "qwen2" or settings.get("attention_bias"):
        bias += queries + 2 * keys + (hidden if kind != "qwen2" else 0)
    if settings.get("mlp_bias"):
        bias += 2 * settings["intermediate_size"] + hidden
    return Shape(
        hidden, settings["intermediate_size"], settings["num_hidden_layers"], heads, kv_heads, head_size,
        settings["vocab_size"], settings.get("tie_word_embeddings", kind == "gemma"), bias, qk_norm=kind == "qwen3",
    )  # fmt: skip


def _stored_parameters(folder: Path) -> int | None:
    """A safetensors file begins with the length of its header in 8 bytes, then the header, which is JSON."""
    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with file.open("rb") as stream:
                header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            total += sum(math.prod(item["shape"]) for name, item in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            return None  # whoever loads the weights will say what is wrong with them
    return total or None
