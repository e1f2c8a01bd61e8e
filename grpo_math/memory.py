"""An estimate of a run's peak memory on each device, by part, from the model's sizes: no torch, no weights loaded.

Left out: what Python, CUDA and their libraries take, fragmentation, and short-lived copies inside one operation. The
formula of each part is shown beside it, so that a reader can disagree with it. vLLM's share is in memory_vllm.py.
"""

# P parameters, T those trained, N ranks, H hidden size, I intermediate size, L layers, V vocabulary,
# A heads x head size, K the same of the keys

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_math import config
from grpo_math.backend.deepspeed_config import BUCKET, deepspeed_config
from grpo_math.model_size import ModelSize, Shape

PROMPT_TOKENS = 512  # nothing is tokenised here, so prompts are taken to have this many tokens at most
# NF4 with its scales quantised once more: 4 bits, a byte for each 64 weights, a float32 for each 64 x 256
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
GATHERED = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters


@dataclass(frozen=True)
class Part:
    """on_cpu: it lies in the machine's memory, not the device's."""

    name: str
    bytes: int
    formula: str
    on_cpu: bool = False


def total(parts: list[Part], on_cpu: bool = False) -> int:
    return sum(part.bytes for part in parts if part.on_cpu == on_cpu)


def row_tokens(cfg: config.Common, size: ModelSize | None) -> int:
    """Prompt and completion together, at most."""
    data = cfg.data if isinstance(cfg, config.SFT | config.Preference | config.RewardCommon) else None
    wanted = data.max_length if data and data.max_length else PROMPT_TOKENS + cfg.sampling.max_tokens
    return min(wanted, size.context) if size and size.context else wanted


def group_size(cfg: config.Common) -> int:
    """Completions that an update learns from for each of prompts_per_step: a group, a pair, or one."""
    if isinstance(cfg, config.RewardModel):
        return {"bradley_terry": 2, "ranked": cfg.loss.completions}.get(cfg.loss.name, 1)
    if isinstance(cfg, config.Preference):
        return 1 if cfg.losses.intersection(config.UNPAIRED) else 2
    return cfg.group_size if isinstance(cfg, config.GRPO) else 1


def rows_per_update(cfg: config.Common) -> int:
    return cfg.prompts_per_step * group_size(cfg) // (cfg.updates_per_step if isinstance(cfg, config.GRPO) else 1)


def width(cfg: config.Common) -> int:
    """Bytes of a weight of the model: what torch's optimizer works on stays in float32, and autocast lowers it."""
    half = cfg.backend.dtype == "bfloat16"
    return 2 if half and (cfg.backend.name == "deepspeed" or cfg.model.lora.rank) else 4


def trained_width(cfg: config.Common) -> int:
    """Bytes of a weight that is trained, which may be an adapter's."""
    return 2 if cfg.backend.dtype == "bfloat16" and cfg.backend.name == "deepspeed" else 4


def adapter_parameters(lora: config.LoRA, shape: Shape | None) -> int | None:
    """Of the adapters beside every layer that they are put to; None where the layers are not known."""
    if not lora.rank:
        return 0
    if shape is None:
        return None
    chosen = [ends for name, ends in shape.linears().items() if lora.targets == "all-linear" or name in lora.targets]
    return shape.layers * sum(lora.rank * (inputs + outputs) for inputs, outputs in chosen)


def always(cfg: config.Common, parameters: int, shape: Shape | None, ranks: int = 1) -> list[Part]:
    """What a rank holds from the first step to the last."""
    return [*weights(cfg, parameters, shape, ranks), *_states(cfg, parameters, shape, ranks)]


def weights(cfg: config.Common, parameters: int, shape: Shape | None, ranks: int = 1) -> list[Part]:
    """Of the policy on one rank, with its adapter."""
    stage = _stage(cfg)
    of, by = (ranks, f" / {ranks} ranks (ZeRO-3)") if stage == 3 and ranks > 1 else (1, "")
    w = width(cfg)
    on_cpu = stage == 3 and cfg.backend.deepspeed.offload_parameters
    name, kind = ("frozen weights" if cfg.model.lora.rank else "weights"), "bfloat16" if w == 2 else "float32"
    if cfg.model.load_in_4bit and shape is not None:
        linear = shape.linear_parameters()
        held = int(linear * FOUR_BITS) + (parameters - linear) * w
        parts = [Part(name, held, f"{linear:,} in 4 bits x {FOUR_BITS:.3f} bytes, the other of P x {w} bytes")]
    else:
        parts = [Part(name, parameters * w // of, f"P x {w} bytes ({kind}){by}", on_cpu)]
    if cfg.model.lora.rank:
        adapter, w = adapter_parameters(cfg.model.lora, shape) or 0, trained_width(cfg)
        parts.append(Part("adapter", adapter * w // of, f"T x {w} bytes{by}", on_cpu))
    return parts


def _states(cfg: config.Common, parameters: int, shape: Shape | None, ranks: int) -> list[Part]:
    stage, w = _stage(cfg), trained_width(cfg)
    trained, letter = _trained(cfg, parameters, shape)
    of, by = (ranks, f" / {ranks} ranks (ZeRO-{stage})") if stage and ranks > 1 else (1, "")
    on_cpu = bool(stage) and cfg.backend.deepspeed.offload_optimizer
    # ZeRO-1 and 2 clone their part even of float32 weights; the others train those in place
    if w == 4 and (not stage or (stage == 3 and not on_cpu)):
        parts = [Part("Adam states", 8 * trained // of, f"{letter} x 2 x 4 bytes{by}")]
    else:
        parts = [Part("master copy, Adam", 12 * trained // of, f"{letter} x (4 + 2 x 4) bytes{by}", on_cpu)]
    if (why := _reference(cfg)) and not cfg.model.lora.rank:
        of, by = (ranks, f" / {ranks} ranks") if stage == 3 and ranks > 1 else (1, "")
        parts.append(Part("reference", w * parameters // of, f"P x {w} bytes{by} ({why})"))
    return parts


def _reference(cfg: config.Common) -> str:
    """Why a second model is held; "" where none is."""
    if isinstance(cfg, config.GRPO) and cfg.kl.coefficient:
        return "kl.coefficient is not 0"
    return "reference=fixed" if isinstance(cfg, config.Preference) and cfg.chosen_reference == "fixed" else ""


def in_update(cfg: config.Common, parameters: int, shape: Shape | None, row: int, ranks: int = 1) -> list[Part]:
    """What a rank needs beside that during an update."""
    parts = learning(cfg, parameters, shape, row, ranks)
    if shape is None or isinstance(cfg, config.RewardCommon):
        return parts  # a head of one or two numbers at the ends of steps
    chunk = min(cfg.backend.logprob_chunk, micro_batch(cfg, row, ranks))
    head, formula = 12 * chunk * shape.vocabulary, f"3 x chunk of {chunk:,} x V x 4 bytes"
    if not cfg.model.lora.rank:
        head += 4 * shape.vocabulary * shape.hidden
        formula += ", + V x H x 4 for the head's gradient"
    parts.append(Part("log-probabilities", head, formula))
    return parts


def learning(cfg: config.Common, parameters: int, shape: Shape | None, row: int, ranks: int = 1) -> list[Part]:
    """The same without what is computed of the last hidden states."""
    parts = _gradients(cfg, parameters, shape, ranks)
    half = cfg.backend.dtype == "bfloat16"
    if half and width(cfg) == 4:
        parts.append(Part("bfloat16 weights", 2 * parameters, "P x 2 bytes (autocast's copy)"))
    if shape is None:
        return parts
    tokens = micro_batch(cfg, row, ranks)
    layer, formula = of_layer(cfg, shape, row, tokens)
    if cfg.backend.gradient_checkpointing:
        values, formula = (shape.layers + 1) * shape.hidden + layer, f"(L + 1)H + ({formula}), checkpointed"
    else:
        values, formula = shape.layers * layer, f"L x ({formula})"
    bytes_each = 2 if half else 4
    formula = f"{tokens:,} tokens x {formula} x {bytes_each} bytes"
    return [*parts, Part("activations", tokens * values * bytes_each, formula)]


def micro_batch(cfg: config.Common, row: int, ranks: int) -> int:
    """Tokens of the largest, of rows of `row` tokens."""
    return max(row, min(cfg.micro_batch_tokens, -(-rows_per_update(cfg) // ranks) * row))


def of_layer(cfg: config.Common, shape: Shape, row: int, tokens: int) -> tuple[int, str]:
    """What autograd keeps of one layer, in numbers a token; measured on transformers' own, see tests/test_plan.py."""
    layer = 6 * shape.hidden + 3 * shape.queries + 2 * shape.keys + 4 * shape.intermediate
    formula = "6H + 3A + 2K + 4I"
    if shape.qk_norm:
        layer, formula = layer + 2 * (shape.queries + shape.keys), "6H + 5A + 4K + 4I"
    if cfg.model.attention == "eager":
        # packed, the table of a row against itself becomes one of the micro-batch against itself
        wide, name = (tokens, "tokens") if cfg.backend.packing else (row, "row")
        layer, formula = layer + 3 * shape.heads * wide, f"{formula} + 3 x heads x {name}"
    return layer, formula


def _gradients(cfg: config.Common, parameters: int, shape: Shape | None, ranks: int) -> list[Part]:
    trained, letter = _trained(cfg, parameters, shape)
    stage, w = _stage(cfg), trained_width(cfg)
    if stage is None:
        return [Part("gradients", 4 * trained, f"{letter} x 4 bytes")]
    zero = deepspeed_config(cfg.backend, cfg.optimizer)["zero_optimization"]
    of, by = (ranks, f" / {ranks} ranks (ZeRO-{stage})") if stage >= 2 and ranks > 1 else (1, "")
    on_cpu = stage >= 2 and cfg.backend.deepspeed.offload_optimizer
    # added up in float32; stage 0 alone adds up in the weights' own dtype, and turns the sum into float32
    parts = [Part("gradients", 4 * trained // of, f"{letter} x 4 bytes{by}", on_cpu)]
    if w == 2 and stage < 2:
        parts.append(Part("bfloat16 gradients", 2 * trained, f"{letter} x 2 bytes, of a micro-batch"))
    if stage and ranks > 1:
        bucket = min(_elements(zero, "reduce_bucket_size", BUCKET), trained)
        parts.append(Part("reduce buckets", 2 * bucket * w, f"2 x {bucket:,} x {w} bytes (zero reduce_bucket_size)"))
    if stage == 3 and (ranks > 1 or cfg.backend.deepspeed.offload_parameters):
        gathered, w = min(_elements(zero, "stage3_max_live_parameters", GATHERED), parameters), width(cfg)
        formula = f"{gathered:,} x {w} bytes (stage3_max_live_parameters)"
        parts.append(Part("gathered weights", gathered * w, formula))
    return parts


def in_sampling(cfg: config.Common, shape: Shape | None, row: int, ranks: int = 1) -> list[Part]:
    """What the engine hf needs beside the weights while it samples; the others have memory of their own."""
    rows = 0
    if isinstance(cfg, config.GRPO | config.REST) or (isinstance(cfg, config.Preference) and cfg.online):
        rows = cfg.prompts_per_step * cfg.group_size
        if isinstance(cfg, config.GRPO) and cfg.advantage == "vine":
            rows *= cfg.vine.continuations  # of each completion's steps, as many at a time as there is room for
    elif isinstance(cfg, config.SFT) and cfg.stop:
        rows = cfg.stop.problems
    if cfg.evaluation.every or isinstance(cfg, config.REST):
        rows = max(rows, (cfg.evaluation.limit or cfg.rollout.max_rows * ranks) * cfg.evaluation.n)
    rows = min(-(-rows // ranks), cfg.rollout.max_rows)
    if shape is None or rows == 0 or cfg.rollout.engine != "hf":
        return []
    # under autocast the rotated keys come out in float32, the values in bfloat16
    pair = 8 if cfg.backend.dtype == "float32" else 4 if width(cfg) == 2 else 6
    cache = rows * row * shape.layers * shape.keys * pair
    return [
        Part("key-value cache", cache, f"{rows:,} rows x {row:,} tokens x L x K x {pair} bytes (keys and values)"),
        Part("next-token table", 16 * rows * shape.vocabulary, f"{rows:,} rows x V x 16 bytes"),
    ]


def _stage(cfg: config.Common) -> int | None:
    """ZeRO's stage; None for plain torch."""
    return cfg.backend.deepspeed.zero if cfg.backend.name == "deepspeed" else None


def _trained(cfg: config.Common, parameters: int, shape: Shape | None) -> tuple[int, str]:
    if not cfg.model.lora.rank:
        return parameters, "P"
    return adapter_parameters(cfg.model.lora, shape) or 0, "T"


def _elements(zero: dict[str, Any], key: str, default: int) -> int:
    value = zero.get(key, default)
    return int(value) if isinstance(value, int | float) else default
