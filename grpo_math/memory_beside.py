"""Memory of the models beside the policy: a critic, reward models, and a reward model that goes on learning.

They take their turns with the policy: what only one of them needs while it learns or scores is there for that time
alone. Left out: the formulas, which are the policy's (memory.py), and a critic that is a head on the policy, whose
H + 1 numbers are not worth a line.
"""

# P parameters of the model that a block is about

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from grpo_math import config, memory
from grpo_math.memory import Part
from grpo_math.model_at import model_size
from grpo_math.model_size import ModelSize, without_vocabulary_head


@dataclass(frozen=True)
class Block:
    """Parts of one model. throughout: from the first step to the last, and not while this one learns or scores."""

    title: str
    parts: list[Part]
    throughout: bool = False


@dataclass(frozen=True)
class Beside:
    """elsewhere: what is not in the blocks, and why."""

    blocks: list[Block]
    elsewhere: list[str]

    @property
    def throughout(self) -> list[Part]:
        return [part for block in self.blocks if block.throughout for part in block.parts]

    @property
    def in_turn(self) -> list[list[Part]]:
        return [block.parts for block in self.blocks if not block.throughout]


NOTHING = Beside([], [])


def beside(cfg: config.Common, size: ModelSize, row: int, ranks: int) -> Beside:
    """size: of the policy. row: tokens of prompt and completion together."""
    if not isinstance(cfg, config.GRPO):
        return NOTHING
    found = [_critic(cfg, size, row, ranks)] if cfg.advantage == "gae" and not cfg.critic.shared else []
    for number, reward in enumerate(cfg.rewards or ()):
        if isinstance(reward, config.LearnedReward):
            found.append(_reward_model(cfg, reward, f"rewards.{number}", row, ranks))
    return Beside([block for one in found for block in one.blocks], [line for one in found for line in one.elsewhere])


def _critic(cfg: config.GRPO, policy: ModelSize, row: int, ranks: int) -> Beside:
    path = cfg.critic.path
    size = policy if path is None else model_size(config.Model(path=path))
    blocks = _learner(cfg, size, row, ranks, f"the critic, {path or 'as large as the policy'}", "the critic learns")
    return Beside(blocks, []) if blocks else _unknown(f"critic.path={path}")


def _reward_model(cfg: config.GRPO, reward: config.LearnedReward, key: str, row: int, ranks: int) -> Beside:
    name = f"{key}, {reward.model}"
    if reward.url is not None:
        return Beside([], [f"{name}: on its server"])
    if reward.device not in ("auto", "cpu", "cuda"):
        return Beside([], [f"{name}: on {reward.device}, with a share of its own"])
    size = model_size(config.Model(path=reward.model))
    if size is None or size.parameters is None:
        return _unknown(f"{key}.model={reward.model}")
    size = without_vocabulary_head(size)
    assert size.parameters is not None
    if cfg.retraining is not None and reward.kind == "outcome":
        blocks = _learner(_split_at_most_by_gradients(cfg), size, row, ranks, name, f"{key} learns (retraining)")
        return Beside([*blocks, _scoring(cfg, reward, size, key, row, ranks)], [])
    dtype = cfg.backend.dtype if reward.dtype == "auto" else reward.dtype
    bytes_each = 2 if dtype == "bfloat16" else 4
    weights = Part("weights", bytes_each * size.parameters, f"{size.parameters:,} x {bytes_each} bytes ({dtype})")
    scoring = _scoring(cfg, reward, size, key, row, ranks)
    if reward.device == "cpu":
        blocks = [Block(name, [replace(weights, on_cpu=True)], throughout=True)]
    elif reward.offload:
        own = Block(name, [replace(weights, on_cpu=True, formula=f"{weights.formula}, while it rests")], True)
        blocks = [own, replace(scoring, parts=[weights, *scoring.parts])]
    else:
        blocks = [Block(name, [weights], throughout=True), scoring]
    return Beside([block for block in blocks if block.parts], [])


def _scoring(cfg: config.GRPO, reward: config.LearnedReward, size: ModelSize, key: str, row: int, ranks: int) -> Block:
    """Without a gradient one layer's numbers are there at a time."""
    title = f"{key} scores"
    if size.shape is None:
        return Block(title, [])
    tokens = max(row, min(reward.micro_batch_tokens or cfg.micro_batch_tokens, _rows(cfg, ranks) * row))
    layer, formula = memory.of_layer(cfg, size.shape, row, tokens)
    bytes_each = 2 if (cfg.backend.dtype if reward.dtype == "auto" else reward.dtype) == "bfloat16" else 4
    formula = f"{tokens:,} tokens x ({formula}) x {bytes_each} bytes, of one layer"
    return Block(title, [Part("activations", tokens * layer * bytes_each, formula)])


def _rows(cfg: config.GRPO, ranks: int) -> int:
    return -(-cfg.prompts_per_step * cfg.group_size // ranks)


def _learner(cfg: config.GRPO, size: ModelSize | None, row: int, ranks: int, title: str, when: str) -> list[Block]:
    """A model that is trained whole by a back end like the policy's; none where its size is not known."""
    size = None if size is None else without_vocabulary_head(size)
    if size is None or size.parameters is None:
        return []
    whole = config.Model(path=cfg.model.path, attention=cfg.model.attention)
    own = cfg.model_copy(update={"model": whole, "kl": config.KL()})
    always = memory.always(own, size.parameters, size.shape, ranks)
    update = memory.learning(own, size.parameters, size.shape, row, ranks)
    blocks = [Block(title, always, throughout=True), Block(when, update)]
    return [replace(block, parts=[_spelled(part, size.parameters) for part in block.parts]) for block in blocks]


def _split_at_most_by_gradients(cfg: config.GRPO) -> config.GRPO:
    """The reward model that learns is scored with on every rank from whole weights (recipes/retraining.py)."""
    own = {"zero": min(cfg.backend.deepspeed.zero, 2), "offload_parameters": False}
    deepspeed = cfg.backend.deepspeed.model_copy(update=own)
    return cfg.model_copy(update={"backend": cfg.backend.model_copy(update={"deepspeed": deepspeed})})


def _spelled(part: Part, parameters: int) -> Part:
    """P is the policy's in the legend, so that this model's number stands in its place."""
    return replace(part, formula=re.sub(r"\bP\b", f"{parameters:,}", part.formula))


def _unknown(which: str) -> Beside:
    return Beside([], [f"{which}: unknown until the model is on this machine"])
