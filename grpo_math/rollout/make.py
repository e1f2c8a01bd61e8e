"""The configured engine. Each part is imported only where it is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grpo_math import config
from grpo_math.backend.torch import DTYPES
from grpo_math.policy import Policy, load_policy
from grpo_math.ranks import Ranks
from grpo_math.rollout.engine import RolloutEngine
from grpo_math.rollout.none import NoEngine
from grpo_math.rollout.shared import SharedEngine
from grpo_math.value_model import ValueModel


def make_engine(cfg: config.Common, policy: Policy | ValueModel, ranks: Ranks, trainer: Ranks) -> RolloutEngine:
    """What samples from `policy`, on all ranks together. ranks: for what is told while sampling, trainer: for what is
    told while weights are sent; two lines, since both may happen at once."""
    if isinstance(policy, ValueModel):
        return NoEngine(policy.context)
    engine = ENGINES[cfg.rollout.engine](cfg, policy, trainer)
    split = cfg.rollout.vllm.tensor_parallel if cfg.rollout.engine == "vllm" else 1
    return SharedEngine(engine, ranks, split) if ranks.size > 1 else engine


def _hf(cfg: config.Common, policy: Policy, ranks: Ranks) -> RolloutEngine:
    from grpo_math.rollout.hf import HFEngine

    autocast = DTYPES[cfg.backend.dtype]
    if cfg.backend.name == "deepspeed" and cfg.backend.deepspeed.zero == 3:
        # no rank has the trainer's weights whole: sample from a copy
        whole = cfg.model.model_copy(update={"lora": config.LoRA()})
        return HFEngine(load_policy(whole, policy.device, policy.model.dtype), cfg.rollout.max_rows, autocast)
    return HFEngine(policy, cfg.rollout.max_rows, autocast, shares_weights=True)


def _vllm(cfg: config.Common, policy: Policy, ranks: Ranks) -> RolloutEngine:
    from grpo_math.rollout.vllm_local import VLLMEngine

    assert cfg.model.path is not None
    return VLLMEngine(policy, cfg.model.path, cfg.rollout, cfg.backend.dtype, ranks)


def _vllm_server(cfg: config.Common, policy: Policy, ranks: Ranks) -> RolloutEngine:
    from grpo_math.rollout.vllm_server import VLLMServerEngine

    folder = Path(cfg.rollout.server.folder or Path(cfg.run_dir) / "weights")
    return VLLMServerEngine(policy, cfg.rollout, folder, ranks)


ENGINES: dict[str, Callable[[config.Common, Policy, Ranks], RolloutEngine]] = {
    "hf": _hf,
    "vllm": _vllm,
    "vllm_server": _vllm_server,
}
