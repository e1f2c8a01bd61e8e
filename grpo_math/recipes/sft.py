"""Supervised fine-tuning on worked solutions: maximum likelihood of the completion tokens, prompts untrained.

A problem brings its solution in metadata["solution"]. Left out: packing, files of samples and preferences.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from grpo_math import config
from grpo_math.batch import Batch, pad_rows
from grpo_math.losses import token_mean
from grpo_math.recipes.parts import Parts, StepResult, Stopwatch, held_out_prompts, step_seed
from grpo_math.recipes.records import accuracy
from grpo_math.types import Completion, Prompt, Sampling, UserError


class SFT:
    """The state of a run between steps, and `step`, which takes it one update on."""

    def __init__(self, cfg: config.SFT, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        self.between_updates = True
        # held-out problems, so that `stop` measures what was learnt and not what was seen
        self.held_out: list[Prompt] = []
        if cfg.stop is not None:
            task = cfg.task.model_copy(update={"split": "test", "exclude": None, "limit": cfg.stop.problems})
            self.held_out = held_out_prompts(task, cfg, parts)

    def step(self, step: int) -> StepResult:
        watch = Stopwatch(self.parts.watchdog)
        self.between_updates = False
        with watch("update"):
            rows = [(prompt, self.solution(prompt)) for prompt in self.parts.stream.take(self.cfg.prompts_per_step)]
            batch = pad_rows(rows, [True] * len(rows), self.parts.policy.pad_id)
            batch = replace(batch, weights=token_mean(batch.loss_mask, 1))
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
            metrics["eval/accuracy"] = accuracy([s for group in groups for s in group.scores])
            finished = metrics["eval/accuracy"] >= stop.accuracy
        metrics |= watch.metrics()
        return StepResult(metrics, finished=finished, stream=self.parts.stream.state())

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

    def sync(self, step: int) -> None:
        self.parts.engine.update_weights(self.parts.backend.weights(), version=step)

    def save(self, path: Path) -> dict[str, Any]:
        return {}

    def load(self, path: Path, state: dict[str, Any], step: int) -> None:
        pass

    def close(self) -> None:
        pass


def negative_log_likelihood(logprobs: Tensor, entropy: Tensor | None, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """-sum_t w_t log p_t, with the mean over the tokens of the update as weights."""
    return -(logprobs * batch.weights).sum(), {}
