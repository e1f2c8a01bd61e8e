"""Steps of this trainer, timed: `GRPO.step` from prompts to synced weights, with verifiers in their own processes."""

from __future__ import annotations

import random
import time

import numpy as np
import torch

from benchmarks.setting import Result, Setting, Update, children_memory, measured, memory, reset_peak, serve
from grpo_math.backend.make import starting_policy
from grpo_math.backend.torch import TorchBackend
from grpo_math.batch import Batch
from grpo_math.losses import REDUCTIONS, make_loss
from grpo_math.problems import load_problems
from grpo_math.ranks import Ranks
from grpo_math.recipes.grpo import GRPO
from grpo_math.recipes.parts import build_parts, gold_check
from grpo_math.recipes.run import updates_of


def measure(setting: Setting) -> Result:
    torch.set_num_threads(setting.threads)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(setting.seed)
    cfg = setting.config()
    source = load_problems(cfg.task, gold_check(cfg))
    parts = build_parts(cfg, starting_policy(cfg), updates_of(cfg), source, Ranks())
    result = Result()
    with parts.scorer, parts.watchdog:
        recipe = GRPO(cfg, parts)
        generate = parts.engine.generate

        def noted(prompts, sampling):
            if not result.prompts:
                result.prompts = [list(p.token_ids) for p in prompts]
            return generate(prompts, sampling)

        parts.engine.generate = noted
        result.baseline = reset_peak()
        for step in range(1, cfg.steps + 1):
            began, cpu = time.perf_counter(), time.process_time()
            metrics = recipe.step(step).metrics
            recipe.sync(step)
            if step > setting.warmup:
                result.seconds.append(time.perf_counter() - began)
                result.cpu_seconds.append(time.process_time() - cpu)
                result.tokens.append(round(metrics["completion/length"] * metrics["completion/count"]))
                for name in ("generate", "verify", "update"):
                    result.phases.setdefault(name, []).append(metrics[f"time/{name}"])
        result.peak, result.workers = memory("VmHWM"), children_memory()
    return result


def measure_update(update: Update) -> Result:
    torch.set_num_threads(update.threads)
    cfg = update.setting().config()
    policy = starting_policy(cfg)
    backend = TorchBackend(policy, cfg.backend, cfg.optimizer, 2, cfg.micro_batch_tokens, cfg.sampling.temperature)
    loss = make_loss(cfg.loss, cfg.kl, cfg.correction)
    prompts, completions, advantages = update.draw(policy.model.config.vocab_size)
    token_ids = torch.cat([prompts, completions], dim=1)
    mask = torch.zeros(token_ids.shape, dtype=torch.bool)
    mask[:, update.prompt_tokens :] = True
    lengths, zeros = torch.full((len(mask),), mask.shape[1]), torch.zeros(mask.shape)
    batch = Batch(token_ids, lengths, mask, REDUCTIONS["sequence_mean"](mask, update.tokens), zeros, zeros)
    batch = batch.with_advantages(advantages)

    def step(part: Batch) -> None:
        backend.step(part, lambda logprobs, entropy, part: loss(logprobs, entropy, part, 0.0))

    return measured(lambda: step(batch.rows([0])), lambda: step(batch))


if __name__ == "__main__":
    serve({"step": (Setting, measure), "update": (Update, measure_update)})
