"""`grpo-math evaluate-steps`: a process model against files of step labels.

Left out: what the files may look like (steps/formats.py), the figures (step_figures.py), and what a model's scores are
good for beside a policy (`grpo-math evaluate --reward-model`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo_math.evaluation.ask import model_path
from grpo_math.evaluation.manifest import versions
from grpo_math.evaluation.reward_models import Chosen, RewardSpec, named_paths, on_device, reward_specs
from grpo_math.evaluation.reward_scores import load
from grpo_math.evaluation.show import Line
from grpo_math.evaluation.show_steps import step_table
from grpo_math.evaluation.step_figures import ScoredSteps, step_figures
from grpo_math.evaluation.write import write_lines
from grpo_math.examples.raw import Text
from grpo_math.learned.reading import InSteps, Steps
from grpo_math.learned.score import RewardModel
from grpo_math.log import write_whole
from grpo_math.preflight import check_writable
from grpo_math.steps.example import StepExample
from grpo_math.steps.formats import Reading
from grpo_math.steps.read import read_steps
from grpo_math.types import UserError

KEY = "process-model"  # what errors of learned/ call MODEL; arguments.FLAGS puts that in its place
RESULTS, SCORES = "step_results.json", "step_scores.jsonl"
BLOCK = 64  # solutions that are read together


@dataclass(frozen=True)
class Solution:
    """scores: the probability that each step is right; None where the model cannot read it, and `unread` says why."""

    example: StepExample
    scores: tuple[float, ...] | None
    unread: str = ""

    @property
    def scored(self) -> ScoredSteps:
        assert self.scores is not None
        named = self.example.problem
        problem = f"{self.example.task}: {named}" if named else repr(self.example.prompt)
        return ScoredSteps(problem, self.example.labels, self.scores)


def steps_command(
    model: str, files: Sequence[str], reading: Reading, threshold: float, chosen: Chosen, out: Path | None
) -> str:
    """What to show. Writes step_results.json and step_scores.jsonl into `out`. Raises UserError."""
    found = read_steps(files, reading, "FILE")
    ((name, path),) = named_paths([model], "MODEL").items()
    path = model_path(path)
    out = out or Path("runs/evaluate-steps") / "-".join([name, *(Path(file).name.partition(".")[0] for file in files)])
    check_writable(out, "--out")
    (spec,) = reward_specs({name: path}, on_device(chosen, "auto", "--device"), KEY)
    if spec.reward.kind != "process":
        raise UserError(
            f"MODEL={model} is an outcome model, which says nothing of steps; how well it tells right completions from "
            f"wrong ones is seen with grpo-math evaluate --samples SAMPLES --reward-model {model}"
        )
    solutions = score_solutions(spec, found.examples)
    read = [solution.scored for solution in solutions if solution.scores is not None]
    if not read:
        raise UserError(f"MODEL={model} can read none of {len(solutions):,} solutions; the first: {_why(solutions[0])}")
    results = {
        "manifest": manifest_of(spec, files, reading, threshold),
        "unread": len(solutions) - len(read),
        "unused_lines": found.unused,
        **step_figures(read, threshold),
    }
    write(out, results, solutions, threshold)
    return f"{path} on {', '.join(files)}\n\n{step_table(results)}\n\nall of it is in {out}"


def score_solutions(spec: RewardSpec, examples: Sequence[StepExample]) -> list[Solution]:
    """In their order. Raises UserError for a score that is no number."""
    model = load(spec, KEY)
    found: list[Solution] = []
    with Line() as line:
        for start in range(0, len(examples), BLOCK):
            found += score_block(model, examples[start : start + BLOCK])
            line.show(f"{len(found):,}/{len(examples):,} solutions")
    model.model.close()
    return found


def score_block(model: RewardModel, examples: Sequence[StepExample]) -> list[Solution]:
    reader = model.read
    assert isinstance(reader, InSteps), "the model is of kind process"
    reads = [model.read_or_why_not(partial(steps_of, reader, example)) for example in examples]
    values = iter(model.model.values([steps.read for steps in reads if isinstance(steps, Steps)]))
    return [
        Solution(example, None, steps)
        if isinstance(steps, str)
        else Solution(example, tuple(model.probabilities(next(values))))
        for example, steps in zip(examples, reads, strict=True)
    ]


def steps_of(reader: InSteps, example: StepExample) -> Steps:
    """As in training, in the steps of the file. A plain problem becomes a conversation where the model reads those."""
    reader.check(example.text)
    prompt: Text = example.prompt
    text: Text = [{"role": "assistant", "content": example.text}] if example.chat else example.text
    if isinstance(prompt, str) and reader.chat:
        prompt = [{"role": "user", "content": prompt.strip()}]
    return Steps(reader.texts.steps(prompt, text, example.ends), example.ends)


def manifest_of(spec: RewardSpec, files: Sequence[str], reading: Reading, threshold: float) -> dict[str, Any]:
    """All that decides the figures. The steps are those of the files, and have no aggregate."""
    decided_by = {key: value for key, value in spec.manifest.items() if key not in ("aggregate", "boundary")}
    return {
        "model": decided_by,
        "files": {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files},
        "reading": asdict(reading),
        "threshold": threshold,
        "versions": versions(),
    }


def write(out: Path, results: Mapping[str, Any], solutions: Sequence[Solution], threshold: float) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_lines(out / SCORES, lines_of(solutions, threshold))
        write_whole(out / RESULTS, json.dumps(results, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error}); give another folder") from error


def lines_of(solutions: Sequence[Solution], threshold: float) -> Iterator[dict[str, Any]]:
    """first_wrong: the first step labelled wrong, from 0; named: the first that the model calls wrong; None: none."""
    for solution in solutions:
        example = solution.example
        line: dict[str, Any] = {
            "where": example.where,
            "problem": example.problem,
            "prompt": example.prompt,
            "steps": example.steps,
            "labels": example.labels,
            "scores": solution.scores,
        }
        if solution.scores is None:
            yield {**line, "unread": solution.unread}
        else:
            yield {**line, "first_wrong": solution.scored.first_wrong, "named": solution.scored.named(threshold)}


def _why(solution: Solution) -> str:
    return f"{solution.example.where}: {solution.unread}"
