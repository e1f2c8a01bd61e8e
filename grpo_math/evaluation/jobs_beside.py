"""The tasks that a file of samples of ours is of, as the results.json beside it tells.

Left out: tasks that the command names (ask.py), and the samples themselves (foreign.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from grpo_math import config
from grpo_math.evaluation.files import RESULTS
from grpo_math.evaluation.foreign import SampleFile
from grpo_math.evaluation.job import Job, make_job
from grpo_math.preflight import check_task
from grpo_math.types import Problem, UserError


def jobs_of_file(file: SampleFile, verifier: str | None, options: Mapping[str, Any]) -> list[Job]:
    """verifier, options: in place of those that judged it then. Raises UserError where that results.json does not tell,
    or its task is not there any more."""
    beside = file.path.parent / RESULTS
    try:
        tasks = json.loads(beside.read_text(encoding="utf-8"))["manifest"]["tasks"]
    except FileNotFoundError:
        raise UserError(
            f"--samples {file.path}: which task are they of? There is no {RESULTS} beside it that would tell; give "
            "--task, and --path and --option where the task had them"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{beside} is no results.json of grpo-math evaluate ({error!r}); give --task") from error
    jobs = []
    for label, said in tasks.items():
        task = config.Task(
            **{key: said[key] for key in ("split", "path", "limit", "exclude", "options")}, name=said["task"]
        )
        task = task.model_copy(update={"prompt": said["prompt"]["name"].partition("+")[0]})
        check_task(task, "the task's path")
        judged_by = said["verifier"]
        job = make_job(label, task, verifier or judged_by["name"], options or judged_by["options"])
        jobs.append(replace(job, problems=asked_before(job, file, said["problems"]), too_long=said["prompts_too_long"]))
    return jobs


def asked_before(job: Job, file: SampleFile, count: int) -> tuple[Problem, ...]:
    """Those of the problems that were asked when the file was made, if it still has all of these."""
    ids = {row.problem for row in file.rows if row.task == job.label}
    return tuple(p for p in job.problems if p.id in ids) if len(ids) == count else job.problems
