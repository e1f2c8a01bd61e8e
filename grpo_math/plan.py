"""What a run will do and need, before anything is loaded: `grpo-math plan`.

Imports neither torch nor transformers. Left out: the memory formulas (memory.py), and the checks (preflight.py).
"""

from __future__ import annotations

import os

from grpo_math import config, memory
from grpo_math.config_file import dump_config
from grpo_math.memory_report import device_of, memory_report, table
from grpo_math.model_at import model_size
from grpo_math.model_size import ModelSize, without_vocabulary_head
from grpo_math.preflight import is_path


def plan(cfg: config.Common, ranks: int | None = None, gpu_memory: float | None = None) -> str:
    """The report of `grpo-math plan`: configuration, batch arithmetic, memory.

    ranks: processes that train, one a GPU; WORLD_SIZE, or one, where it is not given. gpu_memory: of each, in GiB."""
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if ranks is None else ranks
    size = model_size(cfg.model)
    if size is not None and isinstance(cfg, config.RewardCommon):
        size = without_vocabulary_head(size)
    sections = (
        ("Configuration", dump_config(cfg).rstrip().splitlines()),
        ("Batch", table(_batch(cfg, size, ranks))),
        ("Peak memory, estimated" if ranks == 1 else f"Peak memory of each of {ranks} ranks, estimated",
         _memory(cfg, size, ranks, gpu_memory)),
    )  # fmt: skip
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections if lines)


def _batch(cfg: config.Common, size: ModelSize | None, ranks: int) -> list[tuple[str, ...]]:
    row, group = memory.row_tokens(cfg, size), memory.group_size(cfg)
    completions, of_update = cfg.prompts_per_step * group, memory.rows_per_update(cfg)
    grpo = cfg if isinstance(cfg, config.GRPO) else None
    updates = grpo.updates_per_step * grpo.passes if grpo else 1
    first = f"{cfg.prompts_per_step:,} examples"
    if group > 1:
        first = f"{cfg.prompts_per_step:,} prompts x {group:,} completions = {completions:,} completions"
    context = f", within the context of {size.context:,}" if size and size.context == row else ""
    content = f"prompt (taken to be {memory.PROMPT_TOKENS} at most) + sampling.max_tokens{context}"
    length = f"{updates * cfg.steps:,} in {cfg.steps:,} steps"
    if isinstance(cfg, config.RewardCommon):
        content = "data.max_length" if cfg.data.max_length else f"taken to be {row:,}; data.max_length bounds it"
        length = length if cfg.epochs is None else f"as many steps as {cfg.epochs:g} epochs of the files take"
    lines: list[tuple[str, ...]] = [
        *_round(cfg),
        ("a step", first),
        ("tokens", f"at most {completions:,} x {row:,} = {completions * row:,} a step"),
        ("  a row", content),
        ("updates", f"{updates:,} a step, of {of_update:,} completions each; {length}"),
    ]
    if ranks > 1:
        of_update = -(-of_update // ranks)
        lines.append(
            ("a rank", f"takes {-(-completions // ranks):,} completions of a step, {of_update:,} of an update")
        )
    micro = f"at most {_micro_batches(cfg, of_update, row):,} an update, of {cfg.micro_batch_tokens:,} tokens"
    lines.append(("micro-batches", micro))
    if grpo and grpo.dynamic_sampling.enabled:
        rounds = grpo.dynamic_sampling.max_rounds
        lines.append(
            ("sampled", f"up to {rounds * completions:,} completions a step (dynamic sampling, {rounds} rounds)")
        )
    if grpo and grpo.advantage == "vine":
        n = grpo.vine.continuations
        lines.append(("continued", f"{n:,} times from the end of each step but the last (advantage=vine)"))
    if cfg.evaluation.every:
        limit = cfg.evaluation.limit
        sampled = f"{limit:,} problems x {cfg.evaluation.n}" if limit else f"every problem x {cfg.evaluation.n}"
        lines.append(("evaluation", f"{sampled} completions every {cfg.evaluation.every:,} steps"))
    return lines


def _round(cfg: config.Common) -> list[tuple[str, ...]]:
    """What is sampled at once, where that is for more than a step."""
    if isinstance(cfg, config.REST):
        steps, problems = cfg.steps_per_round, cfg.problems
    elif isinstance(cfg, config.Preference) and cfg.online:
        steps, problems = cfg.online.every, cfg.prompts_per_step * cfg.online.every
    else:
        return []
    sampled = f"{problems:,} problems x {cfg.group_size:,} = {problems * cfg.group_size:,} completions"
    return [("a round", f"{sampled}, then {steps:,} steps; {-(-cfg.steps // steps):,} rounds")]


def _micro_batches(cfg: config.Common, rows: int, row: int) -> int:
    """Whole rows go into a micro-batch, one at least."""
    return -(-rows // max(1, cfg.micro_batch_tokens // row))


def _memory(cfg: config.Common, size: ModelSize | None, ranks: int, gpu_memory: float | None) -> list[str]:
    if size is None:
        path = str(cfg.model.path)
        get = "make it" if is_path(path) else f"download it (hf download {path})"
        return [
            f"unknown until the model is there: {path} is not on this machine.",
            f"For an estimate {get} and run plan again.",
        ]
    if size.parameters is None:
        return [f"not available: model type {size.kind} without safetensors files, whose headers tell the size"]
    if cfg.model.lora.rank and size.shape is None:
        return [f"not available: the layers of model type {size.kind}, and so the adapters' sizes, are not known here"]
    return memory_report(cfg, size, ranks, device_of(cfg, gpu_memory))
