"""One side of benchmarks/rollout.py: a process with one sampler, which samples or takes weights when it is told to.

Each side loads the same folder, draws the same prompts and is timed around its own call alone. Left out: turns, tables.
"""

# P prompts, G completions of each

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.models import endless
from grpo_math import config
from grpo_math.lora import engine_weights
from grpo_math.policy import Policy, load_policy
from grpo_math.ranks import Ranks
from grpo_math.rollout.vllm_common import WHOLE_PROMPTS, kv_cache_bytes, sampling_fields
from grpo_math.rollout.vllm_local import ENVIRONMENT, VLLMEngine, free_memory, import_vllm
from grpo_math.types import Problem, Prompt, Sampling

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """The work of one call. url, folder: the server's and where its weights go; a side without a server has none."""

    model: str
    prompts: int
    group_size: int
    prompt_tokens: int
    max_tokens: int
    temperature: float
    threads: int
    url: str = ""
    folder: str = ""

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    def rollout(self) -> config.Rollout:
        engine: dict[str, Any] = {"engine": "vllm_server", "server": {"urls": [self.url], "transfer": "folder"}}
        return config.Rollout(max_rows=self.rows, **(engine if self.url else {}))


@dataclass(frozen=True)
class Sampled:
    """What one call gave. digests: one for each completion's token ids, in order."""

    seconds: float
    cpu_seconds: float
    tokens: int
    digests: list[str]


@dataclass(frozen=True)
class Sent:
    """Weights that went into a sampler."""

    seconds: float
    bytes: int


@dataclass
class Side:
    """ways: by what name the sampler can be called; each takes prompts and sampling and gives a function to be timed,
    which returns the token ids of P x G completions. facts: what must be equal on two sides for a fair race."""

    policy: Policy
    ways: dict[str, Callable[[list[Prompt], Sampling], Callable[[], list[tuple[int, ...]]]]]
    sync: Callable[[Iterator[tuple[str, Tensor]]], None]
    close: Callable[[], None]
    facts: dict[str, Any] = field(default_factory=dict)


def main(kind: str, setting: Setting, line: Connection) -> None:
    """The whole life of the process, which answers ("sample", way, round) and ("sync",) until ("close",) or the end of
    the line."""
    torch.set_num_threads(setting.threads)
    policy = endless(load_policy(config.Model(path=setting.model), CPU))
    side = SIDES[kind](policy, setting)
    try:
        line.send(side.facts | {"threads": torch.get_num_threads()})
        while True:
            what, *arguments = line.recv()
            if what == "close":
                break
            line.send(sample(side, setting, *arguments) if what == "sample" else send(side))
    except EOFError:
        pass
    finally:
        side.close()


def sample(side: Side, setting: Setting, way: str, number: int) -> Sampled:
    sampling = Sampling(setting.group_size, setting.max_tokens, setting.temperature, seed=number)
    call = side.ways[way](draw_prompts(setting, side.policy, number), sampling)
    began, cpu = time.perf_counter(), time.process_time()
    found = call()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    digests = [hashlib.sha1(np.array(ids).tobytes()).hexdigest()[:12] for ids in found]
    return Sampled(seconds, cpu_seconds, sum(map(len, found)), digests)


def send(side: Side) -> Sent:
    model, lora = side.policy.model, side.policy.lora
    size = sum(p.numel() * p.element_size() for p in model.parameters())  # a tied head once
    began = time.perf_counter()
    side.sync(engine_weights(model, lora))
    return Sent(time.perf_counter() - began, size)


def draw_prompts(setting: Setting, policy: Policy, number: int) -> list[Prompt]:
    """Prompts of random tokens, other ones in each round: nothing of an earlier round is in any cache."""
    random = np.random.default_rng((number, setting.prompts, setting.prompt_tokens))
    ids = random.integers(2, len(policy.tokenizer), (setting.prompts, setting.prompt_tokens))
    return [Prompt(Problem(f"{number}-{i}", "bench", "", ""), tuple(row), "") for i, row in enumerate(ids.tolist())]


def of_engine(engine: Any) -> Callable[[list[Prompt], Sampling], Callable[[], list[tuple[int, ...]]]]:
    """As the loop calls it: prompts in, completions with log-probabilities and texts out."""

    def way(prompts: list[Prompt], sampling: Sampling) -> Callable[[], list[tuple[int, ...]]]:
        return lambda: [c.token_ids for group in engine.generate(prompts, sampling) for c in group]

    return way


def of_vllm(llm: Any, policy: Policy, seeded: bool) -> Callable[[list[Prompt], Sampling], Callable[[], Any]]:
    """vLLM's own call with the fields that our engine asks for, which are made before the clock runs."""
    params = import_vllm().SamplingParams

    def way(prompts: list[Prompt], sampling: Sampling) -> Callable[[], list[tuple[int, ...]]]:
        asked = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        fields = [sampling_fields(sampling, prompt, policy.eos_ids) for prompt in prompts]
        each = [params(**(f if seeded else f | {"seed": None}), flat_logprobs=True) for f in fields]
        return lambda: [
            tuple(o.token_ids) for output in llm.generate(asked, each, use_tqdm=False) for o in output.outputs
        ]

    return way


def hf(policy: Policy, setting: Setting) -> Side:
    from grpo_math.rollout.hf import HFEngine

    own = endless(load_policy(config.Model(path=setting.model), CPU))
    engine = HFEngine(own, setting.rows)
    return Side(policy, {"engine": of_engine(engine)}, lambda w: engine.update_weights(w, 1), engine.close)


def ours(policy: Policy, setting: Setting) -> Side:
    engine = VLLMEngine(policy, setting.model, setting.rollout(), "float32", Ranks())
    engine.update_weights(engine_weights(policy.model, policy.lora), 0)
    ways = {"engine": of_engine(engine), "direct": of_vllm(engine.llm, policy, seeded=True)}
    return Side(policy, ways, lambda w: engine.update_weights(w, 1), engine.close, facts_of(engine.llm))


def plain(policy: Policy, setting: Setting) -> Side:
    """vllm.LLM alone, with the options that our engine gives it."""
    # it warns of each thing that it is told to do
    os.environ.update(ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"})
    llm = import_vllm().LLM(
        model=setting.model,
        skip_tokenizer_init=True,
        dtype="float32",
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        distributed_executor_backend="uni",
        max_num_seqs=setting.rows,
        max_model_len=policy.context,
        kv_cache_memory_bytes=kv_cache_bytes(
            policy.model.config, policy.context, setting.rows, torch.float32, free_memory()
        ),
        enable_prefix_caching=True,
        enforce_eager=True,
        **WHOLE_PROMPTS,
    )

    def sync(weights: Iterator[tuple[str, Tensor]]) -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        llm.reset_prefix_cache()

    ways = {"seeded": of_vllm(llm, policy, seeded=True), "unseeded": of_vllm(llm, policy, seeded=False)}
    return Side(policy, ways, sync, llm.llm_engine.engine_core.shutdown, facts_of(llm))


def server(policy: Policy, setting: Setting) -> Side:
    from grpo_math.rollout.vllm_server import VLLMServerEngine

    engine = VLLMServerEngine(policy, setting.rollout(), Path(setting.folder))
    engine.update_weights(engine_weights(policy.model, policy.lora), 0)
    return Side(policy, {"engine": of_engine(engine)}, lambda w: engine.update_weights(w, 1), engine.close)


def facts_of(llm: Any) -> dict[str, Any]:
    """What vLLM has made of its options."""
    chosen = llm.llm_engine.vllm_config
    scheduler, cache, model = chosen.scheduler_config, chosen.cache_config, chosen.model_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "async_scheduling": scheduler.async_scheduling,
        "enable_prefix_caching": cache.enable_prefix_caching,
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "max_model_len": model.max_model_len,
        "dtype": str(model.dtype),
        "logprobs_mode": model.logprobs_mode,
        "enforce_eager": model.enforce_eager,
        "compilation": str(chosen.compilation_config.mode),
    }


SIDES: dict[str, Callable[[Policy, Setting], Side]] = {"hf": hf, "ours": ours, "plain": plain, "server": server}
