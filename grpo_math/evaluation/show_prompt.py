"""What a model would read of each task's first problem, without loading its weights."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_math.evaluation.job import Job
from grpo_math.evaluation.sampler import Asked
from grpo_math.types import UserError


def prompts_shown(jobs: Sequence[Job], path: str | None) -> str:
    """What is read of each task's first problem: with a model all of it, template and special tokens too."""
    parts = []
    for job in jobs:
        asked = ask_without_model(job, path)
        title = f"{job.label}  {job.form_name}  {asked.problem.id}"
        if asked.token_ids is not None:
            title += f"  {len(asked.token_ids)} tokens"
        notes = [f"stop: {stop!r}" for stop in job.form.stop] + ([f"from {job.form.source}"] if job.form.source else [])
        parts.append("\n".join([f"---- {title}", *notes, "----", asked.text]))
    return "\n".join(parts)


def ask_without_model(job: Job, path: str | None) -> Asked:
    problem = job.problems[0]
    if path is not None:
        from transformers import AutoTokenizer

        from grpo_math.evaluation.hf import rendered

        try:
            return rendered(job.label, 0, problem, job.form, AutoTokenizer.from_pretrained(path))
        except OSError as error:
            raise UserError(f"MODEL={path}: its tokenizer could not be loaded: {error}") from error
    if job.form.chat is False:
        return Asked(job.label, 0, problem, job.form.plain(problem))
    from grpo_math.prompts import messages

    return Asked(
        job.label, 0, problem, "\n".join(f"[{m['role']}]\n{m['content']}" for m in messages(job.form, problem))
    )
