"""Steps of TRL's GRPOTrainer, timed, with the choices that favour it: no gradient checkpointing, no logging, no saving.

Everything else is its default: generation by transformers, its own loss over a chunked head, its metrics.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.setting import VERIFIERS, Result, Setting, Update, measured, memory, reset_peak, serve
from grpo_math.find import find_task, find_verifier
from grpo_math.problems import ProblemStream, load_problems
from grpo_math.prompts import prompt_maker
from grpo_math.types import Problem, Prompt


class Clock(TrainerCallback):
    """Notes the time at the end of every step: a step is all that lies between two of them."""

    def __init__(self, warmup: int, result: Result) -> None:
        self.warmup, self.result = warmup, result
        self.seconds = self.cpu = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds, cpu = time.perf_counter(), time.process_time()
        if state.global_step > self.warmup:
            self.result.seconds.append(seconds - self.seconds)
            self.result.cpu_seconds.append(cpu - self.cpu)
        self.seconds, self.cpu = seconds, cpu


def trl_config(setting: Setting, folder: str) -> GRPOConfig:
    return GRPOConfig(
        **{  # type: ignore[arg-type]
            "output_dir": folder,
            "use_cpu": True,
            "model_init_kwargs": {"dtype": "float32"},
            "loss_type": "grpo",
            "beta": 0.0,
            "num_generations": setting.group_size,
            "max_completion_length": setting.max_tokens,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "use_vllm": False,
            "per_device_train_batch_size": setting.rows,
            "gradient_accumulation_steps": setting.samples // setting.rows,
            "max_steps": setting.warmup + setting.steps,
            "learning_rate": setting.learning_rate,
            "lr_scheduler_type": "constant",
            "max_grad_norm": setting.max_grad_norm,
            "adam_beta2": 0.98,
            "weight_decay": 0.0,
            "shuffle_dataset": False,
            "dataloader_pin_memory": False,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "seed": setting.seed,
        }
        | ({} if setting.defaults else {"bf16": False, "gradient_checkpointing": False})
    )


def measure(setting: Setting) -> Result:
    torch.set_num_threads(setting.threads)
    result = Result()
    verify = find_verifier(VERIFIERS[setting.reward]).verify

    def reward(completions: list[str], completion_ids: list[list[int]], problem: list[str], **columns: Any):
        result.tokens.append(sum(map(len, completion_ids)))
        return [
            verify(Problem(name, "arithmetic", "", answer), text).reward
            for text, name, answer in zip(completions, problem, columns["answer"], strict=True)
        ]

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=setting.model,
            reward_funcs=reward,
            args=trl_config(setting, folder),
            train_dataset=Dataset.from_list([{"prompt": ""}]),
            callbacks=[Clock(setting.warmup, result)],
        )
        prompts = make_prompts(setting, trainer.processing_class)
        rows = [{"prompt": p.text, "problem": p.problem.id, "answer": p.problem.answer} for p in prompts]
        trainer.train_dataset = Dataset.from_list(rows)
        timed(trainer, "_generate_single_turn", "generate", result)
        timed(trainer, "_calculate_rewards", "verify", result)
        tokenize = trainer._tokenize_prompts

        def noted(texts: list[Any]):
            ids = tokenize(texts)
            if not result.prompts:
                result.prompts = [list(row) for row in ids[0][:: setting.group_size]]
            return ids

        trainer._tokenize_prompts = noted
        result.baseline = reset_peak()
        trainer.train()
        result.peak = memory("VmHWM")
    for values in (result.tokens, *result.phases.values()):
        del values[: setting.warmup]
    others = [sum(values) for values in zip(*result.phases.values(), strict=True)]
    result.phases["update"] = [step - other for step, other in zip(result.seconds, others, strict=True)]
    return result


def make_prompts(setting: Setting, tokenizer: Any) -> list[Prompt]:
    """Those that this trainer's own stream gives, in its order."""
    cfg = setting.config()
    stream = ProblemStream(load_problems(cfg.task, getattr(find_verifier("math"), "check", None)), cfg.seed)
    make = prompt_maker(cfg.task, find_task(cfg.task.name), tokenizer)
    return [make(problem) for _ in range(cfg.steps) for problem in stream.take(setting.prompts)]


def timed(owner: Any, method: str, name: str, result: Result) -> None:
    """Add the seconds of each call of a method to result.phases[name]."""
    inner: Callable[..., Any] = getattr(owner, method)
    seconds = result.phases.setdefault(name, [])

    def outer(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        value = inner(*arguments, **named)
        seconds.append(time.perf_counter() - began)
        return value

    setattr(owner, method, outer)


def measure_update(update: Update) -> Result:
    """The trainer's own loss and optimizer on given completions, as its training step calls them."""
    torch.set_num_threads(update.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=update.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=trl_config(update.setting(), folder),
            train_dataset=Dataset.from_list([{"prompt": ""}]),
        )
    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    prompts, completions, advantages = update.draw(model.config.vocab_size)

    def step(count: int) -> None:
        parts = range(0, count, update.rows)
        trainer.current_gradient_accumulation_steps = len(parts)
        for start in parts:
            rows = slice(start, min(start + update.rows, count))
            inputs = {
                "prompt_ids": prompts[rows],
                "prompt_mask": torch.ones_like(prompts[rows]),
                "completion_ids": completions[rows],
                "completion_mask": torch.ones_like(completions[rows]),
                "advantages": advantages[rows],
                "num_items_in_batch": torch.tensor(count * update.tokens),
            }
            trainer.accelerator.backward(trainer.compute_loss(model, inputs))
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        model.zero_grad()

    return measured(lambda: step(1), lambda: step(update.completions))


if __name__ == "__main__":
    serve({"step": (Setting, measure), "update": (Update, measure_update)})
