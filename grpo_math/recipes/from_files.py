"""The examples of section `data`: read and checked before a model is loaded, and then a stream of them in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo_math import config
from grpo_math.examples.raw import Kind, RawExample
from grpo_math.examples.read import kind_of, read_examples
from grpo_math.examples.stream import ExampleStream
from grpo_math.examples.tokens import encoder
from grpo_math.recipes.parts import Parts
from grpo_math.recipes.reward_files import reward_examples
from grpo_math.types import UserError

METHODS: dict[Kind, str] = {"sft": "example", "preference": "pair", "kto": "labelled"}  # of Encoder


def learns_from_files(cfg: config.Common) -> bool:
    return isinstance(cfg, config.SFT | config.Preference) and cfg.data is not None


def data_of(cfg: config.Common) -> config.Data | None:
    """The files that a run learns from, or learns from besides."""
    if isinstance(cfg, config.GRPO):
        return None if cfg.pretraining is None else cfg.pretraining.data
    return cfg.data if isinstance(cfg, config.SFT | config.Preference | config.RewardCommon) else None


def examples_of(cfg: config.Common) -> tuple[list[RawExample], list[RawExample]]:
    """(learnt from, held out) of the files; none where the run has no `data`. Raises UserError, with file:line."""
    data = data_of(cfg)
    if isinstance(cfg, config.RewardCommon):
        return reward_examples(cfg)
    if data is None:
        return [], []
    found = read_examples(data, kind_of(cfg))
    if isinstance(cfg, config.Preference):
        check_behaviour(cfg, found.rows)
        check_reference(cfg, found.rows)
    if found.report:
        print(found.report)
    return found.rows, []


def check_behaviour(cfg: config.Preference, rows: Sequence[RawExample]) -> None:
    """A loss that compares with whoever sampled the completions needs to be told what that one said of them."""
    p3o = cfg.losses & config.BEHAVIOUR
    needed = {"logprobs": bool(p3o) or cfg.chosen_reference == "behaviour", "reward": bool(p3o)}
    columns = {"logprobs": "chosen_logps and rejected_logps", "reward": "chosen_reward and rejected_reward"}
    why = cfg.said if p3o else "reference=behaviour"
    for name in (name for name, wanted in needed.items() if wanted):
        lacking = next((r for r in rows if any(getattr(c, name) is None for c in r.completions)), None)
        if lacking is not None:
            raise UserError(
                f"{lacking.where} lacks {columns[name]}, which {why} compares with; make the file with grpo-math "
                "sample (temperature 1, top_p and top_k off) and grpo-math filter --to pairs, which write them, or "
                "take another loss or reference"
            )


def check_reference(cfg: config.Preference, rows: Sequence[RawExample]) -> None:
    """A reference that the files give for some pairs and not for others would be two."""
    if cfg.chosen_reference != "precomputed":
        return
    given = [all(c.ref_logprobs is not None for c in row.completions) for row in rows]
    if any(given) and not all(given):
        raise UserError(
            f"{rows[given.index(False)].where} lacks ref_chosen_logps and ref_rejected_logps, which "
            f"{rows[given.index(True)].where} has: the one reference would be this model's, the other the file's; "
            "write them for every pair, or for none"
        )


def room_of(cfg: config.Common, parts: Parts) -> int:
    """Tokens that prompt and completion may have together."""
    data = data_of(cfg)
    return min(parts.policy.context, data.max_length if data and data.max_length else parts.policy.context)


def example_stream(cfg: config.Common, parts: Parts, data: config.Data, stages: int = 1) -> ExampleStream[Any]:
    """Those that fit the model's context, and data.max_length."""
    encode = encoder(parts.policy.tokenizer, parts.policy.eos_ids)
    return ExampleStream(
        parts.examples,
        getattr(encode, METHODS[kind_of(cfg)]),
        cfg.seed,
        room_of(cfg, parts),
        truncate=data.too_long == "truncate",
        check=encode.check,
        parts=stages,
    )
