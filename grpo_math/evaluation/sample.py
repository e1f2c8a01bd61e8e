"""`grpo-math sample`: an evaluation's run, kept for the samples' sake: each line says all that a trainer may ask of it.

Sampling, judging, the journal and the files are those of `evaluate` (run.py). Left out: pass@k beyond k = 1, and which
samples are worth learning from (filtering/).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from grpo_math.evaluation.ask import (
    Arguments,
    default_out,
    make_jobs,
    make_sampler,
    path_of,
    refuse_idle,
    refuse_nothing,
    sampling_of,
    wanted_of,
)
from grpo_math.evaluation.files import SAMPLES
from grpo_math.evaluation.prepare import Plan
from grpo_math.evaluation.run import evaluate
from grpo_math.evaluation.sampler import Sample, summed
from grpo_math.evaluation.show import Row, table
from grpo_math.evaluation.summary import Judged, counts_of, summarise
from grpo_math.evaluation.write import speeds
from grpo_math.preflight import check_writable
from grpo_math.types import UserError

CHECKPOINT_STATE = "run.json"  # in a checkpoint of a run: recipes/loop.py writes it
SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed")

ROWS: tuple[Row, ...] = (
    ("problems", "problems", "{:,}"),
    ("  always solved", "solved_always", "{:,}"),
    ("  sometimes solved", "solved_sometimes", "{:,}"),
    ("  never solved", "solved_never", "{:,}"),
    ("completions", "completions", "{:,}"),
    ("  correct", "correct", "{:,}"),
    ("  truncated", "truncated", "{:.3f}"),
    ("mean tokens", "mean_tokens", "{:.1f}"),
)


def command(arguments: Arguments) -> None:
    """Sample as asked, print what came of it and the next command. Raises UserError, at the end where nothing of a task
    could be judged."""
    assert arguments.model is not None
    refuse_idle(arguments)
    path = path_of(arguments)
    jobs = make_jobs(arguments, None)
    out = arguments.out or default_out(arguments, jobs, "sample")
    check_writable(out, "--out")
    origin = Origin(arguments.model, 0 if path is None else policy_version(path))
    sampler, jobs = make_sampler(arguments, path, jobs, None, tokens=True)
    wanted = replace(
        wanted_of(arguments, jobs, path, sampling_of(arguments), [1], out),
        figures=figures,
        fields=origin.fields,
        of_model={"policy_version": origin.policy_version},
    )
    with closing(sampler):
        results = evaluate(wanted, sampler)
    print(f"{wanted.model}\n\n{table(results, speeds(out), rows=ROWS)}\n\n{where_next(results, out)}")
    refuse_nothing(results, out)


@dataclass(frozen=True)
class Origin:
    """model: as it was given. policy_version: the step of the run whose checkpoint it is, 0 for any other model."""

    model: str
    policy_version: int

    def fields(self, plan: Plan, sample: Sample) -> dict[str, Any]:
        """What a line of samples.jsonl says besides evaluation's fields.

        logprob: the sum of logprobs. sampling, verifier: the same in all lines of a task, and there all the same, since
        files are put together and sorted; they are a tenth of a line or less, of which tokens and log-probabilities are
        the most. What is longer (the verifier's options and conventions, the words of the prompt, the versions of the
        packages) is in the manifest of results.json alone."""
        assert plan.sampling is not None
        drawn = asdict(plan.sampling)
        return {
            "model": self.model,
            "policy_version": self.policy_version,
            "sampling": {name: drawn[name] for name in SAMPLING},
            "verifier": plan.job.reward.verifier,
            "logprob": None if sample.logprobs is None else summed(sample.logprobs),
            "token_ids": None if sample.token_ids is None else sample.token_ids.tolist(),
            "logprobs": None if sample.logprobs is None else sample.logprobs.tolist(),
        }


def policy_version(path: str) -> int:
    """The step of a run's checkpoint, which its run.json tells; 0 for a model that is none. Raises UserError where that
    file cannot be read."""
    file = Path(path) / CHECKPOINT_STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: a run's checkpoint says there which step it is of, and it cannot be read ({error}); give another "
            "checkpoint, or delete the file, and the model counts as step 0"
        ) from error
    step = state.get("step") if isinstance(state, dict) else None
    return step if isinstance(step, int) else 0


def figures(problems: Sequence[Sequence[Judged]], ks: Sequence[int]) -> dict[str, Any]:
    """Evaluation's figures, how many completions are right, and how many problems have only right ones, some, or none.
    Problems of which nothing could be judged are in none of the three."""
    counts = [(n, c) for n, c in counts_of(problems) if n]
    return {
        **summarise(problems, ks),
        "correct": sum(c for _, c in counts),
        "solved_always": sum(c == n for n, c in counts),
        "solved_sometimes": sum(0 < c < n for n, c in counts),
        "solved_never": sum(c == 0 for _, c in counts),
    }


def where_next(results: Mapping[str, Any], out: Path) -> str:
    """Where the samples are, and the command that makes data of them; what to do where none is right."""
    here = f"all of it is in {out}"
    if not any(found["correct"] for found in results["tasks"].values()):
        return f"{here}\nno completion is right: try easier problems, a better model, or more samples (-n)"
    words = ["grpo-math", "filter", str(out / SAMPLES), "--to", "sft", "--out", str(out / "sft.jsonl")]
    return f"{here}\nnext: {shlex.join(words)}"
