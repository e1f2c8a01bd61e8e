"""Supervised fine-tuning: maximum likelihood of the completion tokens, prompts untrained.

Completions are those of files (data), or a task's worked solutions, metadata["solution"] of its problems. Left out:
packing, which is the back end's (backend.packing).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grpo_math import config
from grpo_math.batch import pad_rows
from grpo_math.examples.example import Example
from grpo_math.examples.stream import ExampleStream
from grpo_math.losses import negative_log_likelihood, token_mean
from grpo_math.recipes.from_files import example_stream
from grpo_math.recipes.held_out import held_out_prompts
from grpo_math.recipes.parts import Parts, PromptStream, StepResult, Stopwatch, step_seed
from grpo_math.recipes.records import accuracy
from grpo_math.types import Completion, Prompt, Sampling, UserError


class SFT:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.SFT, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.between_updates = True
        self.stream: ExampleStream[Example] | PromptStream
        if cfg.data is not None:
            self.stream = example_stream(cfg, parts, cfg.data)
        else:
            assert parts.stream is not None
            self.stream = parts.stream
        # held-out problems, so that `stop` measures what was learnt and not what was seen
        self.held_out: list[Prompt] = []
        if cfg.stop is not None:
            assert cfg.task is not None
            task = cfg.task.model_copy(update={"split": "test", "exclude": None, "limit": cfg.stop.problems})
            self.held_out = held_out_prompts(task, cfg, parts)

    def step(self, step: int) -> StepResult:
        watch = Stopwatch(self.parts.watchdog)
        self.between_updates = False
        with watch("update"):
            examples = self.take(self.cfg.prompts_per_step)
            rows = [(example.prompt, example.completion) for example in examples]
            batch = pad_rows(rows, [True] * len(rows), self.parts.policy.pad_id)
            weights = torch.tensor([[example.weight] for example in examples])
            batch = replace(batch, weights=token_mean(batch.loss_mask, 1) * weights)
            metrics = self.parts.backend.step(batch, negative_log_likelihood)
        metrics["completion/length"] = float(batch.loss_mask.sum()) / len(batch)

        finished, stop = False, self.cfg.stop
        if stop is not None and step % stop.every == 0:
            self.sync(step)
            with watch("generate"):
                sampling = Sampling(1, self.cfg.sampling.max_tokens, 1.0, seed=step_seed(self.cfg.seed, "stop", step))
                completions = self.parts.engine.generate(self.held_out, sampling)
            with watch("verify"):
                groups = self.parts.score(self.held_out, completions)
            self.parts.engine.sleep()
            metrics["eval/accuracy"] = accuracy([s for group in groups for s in group.scores])
            finished = metrics["eval/accuracy"] >= stop.accuracy
        metrics |= watch.metrics()
        return StepResult(metrics, finished=finished, stream=self.stream.state())

    def take(self, count: int) -> list[Example]:
        """From the files, or else the task's solutions."""
        if isinstance(self.stream, ExampleStream):
            return self.stream.take(count)
        return [Example(prompt, self.solution(prompt)) for prompt in self.stream.take(count)]

    def solution(self, prompt: Prompt) -> Completion:
        """The worked solution as a completion, ended by the end-of-sequence token, which is trained."""
        text = prompt.problem.metadata.get("solution")
        if not isinstance(text, str):
            where = prompt.problem.metadata.get("source", prompt.problem.id)
            raise UserError(
                f"{where}: no worked solution to learn from; recipe sft needs metadata['solution'] in every problem"
            )
        tokenizer = self.parts.policy.tokenizer
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
        if len(ids) > self.cfg.sampling.max_tokens:
            raise UserError(
                f"problem {prompt.problem.id}: its solution has {len(ids)} tokens, more than sampling.max_tokens="
                f"{self.cfg.sampling.max_tokens}, and would be learnt without its end; set "
                f"sampling.max_tokens={len(ids)} or more"
            )
        return Completion(ids, (0.0,) * len(ids), text, "stop", 0)

    def samples_in(self, step: int) -> bool:
        return False  # but for `stop`, which sees to it itself

    def sync(self, step: int) -> None:
        self.parts.engine.update_weights(self.parts.backend.weights(), version=step)

    def save(self, path: Path) -> dict[str, Any]:
        return {}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        pass

    def close(self) -> None:
        pass
