"""An estimate of a run's peak memory, by part, from the model's config.json alone: no torch, no weights loaded.

Left out: what Python and its libraries take (about half a GiB), fragmentation, and short-lived copies inside one
operation. The formula of each part is shown beside it, so that a reader can disagree with it.
"""

# P parameters, H hidden size, I intermediate size, L layers, V vocabulary, A heads x head size, K the same of the keys

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.types import UserError

PROMPT_TOKENS = 512  # nothing is tokenised here, so prompts are taken to have this many tokens at most
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

    def parameters(self) -> int:
        attention = 2 * self.hidden * (self.queries + self.keys) + 2 * self.head_size * self.qk_norm
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden + self.bias
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class ModelSize:
    """What is known of a model before it is loaded; None where it is not."""

    kind: str
    parameters: int | None
    context: int | None
    shape: Shape | None


@dataclass(frozen=True)
class Part:
    name: str
    bytes: int
    formula: str


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


def row_tokens(cfg: config.Common, size: ModelSize | None) -> int:
    """Prompt and completion together, at most."""
    wanted = PROMPT_TOKENS + cfg.sampling.max_tokens
    return min(wanted, size.context) if size and size.context else wanted


def group_size(cfg: config.Common) -> int:
    return cfg.group_size if isinstance(cfg, config.GRPO) else 1


def rows_per_update(cfg: config.Common) -> int:
    return cfg.prompts_per_step * group_size(cfg) // (cfg.updates_per_step if isinstance(cfg, config.GRPO) else 1)


def always(cfg: config.Common, parameters: int) -> list[Part]:
    parts = [
        Part("weights", 4 * parameters, "P x 4 bytes (float32)"),
        Part("Adam states", 8 * parameters, "P x 2 x 4 bytes"),
    ]
    if isinstance(cfg, config.GRPO) and cfg.kl.coefficient:
        parts.append(Part("reference", 4 * parameters, "P x 4 bytes (kl.coefficient is not 0)"))
    return parts


def in_update(cfg: config.Common, parameters: int, shape: Shape | None, row: int) -> list[Part]:
    parts = [Part("gradients", 4 * parameters, "P x 4 bytes")]
    half = cfg.backend.dtype == "bfloat16"
    if half:
        parts.append(Part("bfloat16 weights", 2 * parameters, "P x 2 bytes (autocast's copy)"))
    if shape is None:
        return parts
    tokens = max(row, min(cfg.micro_batch_tokens, rows_per_update(cfg) * row))
    # what autograd keeps of one layer, per token; measured on transformers' own layers, see tests/test_plan.py
    layer = 6 * shape.hidden + 3 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    formula = "6H + 3A + 2K + 4I"
    if shape.qk_norm:
        layer, formula = layer + 2 * (shape.queries + shape.keys), "6H + 5A + 4K + 4I"
    if cfg.model.attention == "eager":
        layer, formula = layer + 3 * shape.heads * row, f"{formula} + 3 x heads x row"
    if cfg.backend.gradient_checkpointing:
        values, formula = (shape.layers + 1) * shape.hidden + layer, f"(L + 1)H + ({formula}), checkpointed"
    else:
        values, formula = shape.layers * layer, f"L x ({formula})"
    width = 2 if half else 4
    parts.append(Part("activations", tokens * values * width, f"{tokens:,} tokens x {formula} x {width} bytes"))
    chunk = min(cfg.backend.logprob_chunk, tokens)
    head = 12 * chunk * shape.vocabulary + 4 * shape.vocabulary * shape.hidden
    parts.append(
        Part("log-probabilities", head, f"3 x chunk of {chunk:,} x V x 4 bytes, + V x H x 4 for the head's gradient")
    )
    return parts


def in_sampling(cfg: config.Common, shape: Shape | None, row: int) -> list[Part]:
    rows = 0
    if isinstance(cfg, config.GRPO):
        rows = cfg.prompts_per_step * cfg.group_size
    elif isinstance(cfg, config.SFT) and cfg.stop:
        rows = cfg.stop.problems
    if cfg.evaluation.every:
        rows = max(rows, (cfg.evaluation.limit or cfg.rollout.max_rows) * cfg.evaluation.n)
    rows = min(rows, cfg.rollout.max_rows)
    if shape is None or rows == 0:
        return []
    # under autocast the rotated keys come out in float32, the values in bfloat16
    width = 6 if cfg.backend.dtype == "bfloat16" else 8
    cache = rows * row * shape.layers * shape.keys * width
    return [
        Part("key-value cache", cache, f"{rows:,} rows x {row:,} tokens x L x K x {width} bytes (keys and values)"),
        Part("next-token table", 16 * rows * shape.vocabulary, f"{rows:,} rows x V x 16 bytes"),
    ]
