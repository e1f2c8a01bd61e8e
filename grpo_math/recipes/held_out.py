"""The policy's score on problems that it is not trained on, as a run measures it on its way.

Left out: `grpo-math evaluate`, which keeps every sample and gives intervals.
"""

from __future__ import annotations

from grpo_math import config
from grpo_math.evaluation.summary import judged, summarise
from grpo_math.find import find_task
from grpo_math.preflight import held_out_task
from grpo_math.problems import load_problems
from grpo_math.prompts import prompt_maker
from grpo_math.recipes.parts import Parts, gold_check, step_seed
from grpo_math.types import Prompt, Sampling, UserError


class HeldOut:
    """What the section `evaluation` asks for: its problems, and the policy's score on them."""

    def __init__(self, cfg: config.Common, parts: Parts) -> None:
        self.cfg, self.parts = cfg, parts
        task = cfg.evaluation.task or held_out_task(cfg)
        if cfg.evaluation.limit and not task.limit:
            task = task.model_copy(update={"limit": cfg.evaluation.limit})
        self.prompts = held_out_prompts(task, cfg, parts)

    def measure(self) -> dict[str, float]:
        """eval/accuracy, eval/pass@k and the like, of the weights that the engine has. The same seed each time."""
        chosen = self.cfg.evaluation
        temperature = self.cfg.sampling.temperature if chosen.temperature is None else chosen.temperature
        seed = step_seed(self.cfg.seed, "evaluate")
        sampling = Sampling(chosen.n, self.cfg.sampling.max_tokens, temperature, seed=seed)
        groups = self.parts.score(self.prompts, self.parts.engine.generate(self.prompts, sampling))
        summary = summarise(judged(groups), chosen.k)
        return {f"eval/{name}": float(value) for name, value in summary.items() if isinstance(value, int | float)}


def held_out_prompts(task: config.Task, cfg: config.Common, parts: Parts) -> list[Prompt]:
    """The problems of a finite split as prompts, in order, without those whose answer the verifier cannot use or whose
    prompt does not fit the context; says how many those are."""
    source = load_problems(task, gold_check(cfg))
    if source.problems is None:
        raise UserError(
            f"task {task.name}, split {task.split!r}, has no end and cannot be evaluated on; take another split"
        )
    make = prompt_maker(task, find_task(task.name), parts.policy.tokenizer)
    room = parts.context - cfg.sampling.max_tokens
    prompts = [make(problem) for problem in source.problems]
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= room]
    left_out = len(source.refused) + len(prompts) - len(fitting)
    if left_out:
        print(
            f"evaluation on {task.name}, split {task.split}: {len(source.refused)} problems with answers of no use to "
            f"the verifier and {len(prompts) - len(fitting)} prompts of more than {room} tokens are left out"
        )
    if not fitting:
        raise UserError(
            f"task {task.name}, split {task.split!r}: nothing is left to evaluate on; lower sampling.max_tokens="
            f"{cfg.sampling.max_tokens} or take another task"
        )
    return fitting
