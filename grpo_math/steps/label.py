"""`grpo-math label-steps`: samples -> labels of their steps, by going on from each step with a model.

Math-Shepherd, arXiv:2312.08935; OmegaPRM's binary search, arXiv:2406.06592. Left out: the values themselves
(values.py), how a model goes on (go_on.py), what is written (write.py), and training on it (recipes/).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from grpo_math import __version__, config
from grpo_math.arguments import parse_options
from grpo_math.evaluation.ask import Arguments, make_sampler, path_of
from grpo_math.evaluation.job import one_of, task_of
from grpo_math.evaluation.journal import Journal
from grpo_math.evaluation.manifest import model_manifest, verifier_manifest
from grpo_math.evaluation.prepare import MAX_TOKENS
from grpo_math.evaluation.sampler import Sampler
from grpo_math.filtering.candidate import Candidate
from grpo_math.filtering.read import read_candidates
from grpo_math.filtering.write import refuse_out, write_rows, write_summary
from grpo_math.find import find_task, verifier_of
from grpo_math.forms import form_of
from grpo_math.problems import load_problems, refuse_another
from grpo_math.scoring import Scorer, check_options
from grpo_math.steps.go_on import Beginner, Beginning, Continuer
from grpo_math.steps.split import BOUNDARIES, boundary
from grpo_math.steps.values import LABELS, Solution, estimate, first_wrong
from grpo_math.steps.write import Labelled, Labelling, Written, counts_of, rows_of, table
from grpo_math.types import Problem, Sampling, UserError, Verdict

LOOK = 1_000_000  # problems of an endless task in which those of the samples are looked for


def label_command(
    paths: Sequence[Path], arguments: Arguments, labelling: Labelling, out: Path, fresh: bool = False
) -> str:
    """Write `out` and its summary; what to show. Interrupted, the same call goes on where it stopped. Raises UserError,
    also where no step gets a label."""
    refuse_out(out, paths)
    if labelling.method == "binary" and labelling.labels == "soft":
        raise UserError("--method binary finds out whether a step is right, no share; give --labels hard")
    if labelling.budget is not None and labelling.budget < arguments.n:
        raise UserError(f"--budget {labelling.budget} is less than the -n {arguments.n} of one step; raise it")
    split = boundary(labelling.boundary)
    model = path_of(arguments)
    task, reward, stop = asked_of(arguments)
    candidates, inputs = read_candidates(paths)
    chosen = distinct(candidates)[: arguments.limit]
    problems = look_up(task, chosen)
    written = [Written(c, problems[c.problem], split(c.completion)) for c in chosen]
    if written and all(len(w.ends) < 2 for w in written):
        raise UserError(
            f"--boundary {labelling.boundary} finds no step in any of {len(written):,} completions but the whole; give "
            f"the one that they have: {', '.join(BOUNDARIES)}"
        )
    sampler, _ = make_sampler(replace(arguments, chat=False), model, [], None, tokens=True)
    scoring = config.Scoring(workers=arguments.workers, timeout_s=arguments.timeout_s, max_error_share=1.0)
    with closing(sampler), Scorer([reward], scoring, arguments.sandbox) as scorer:
        sampling = sampling_of(arguments, sampler)
        request = {
            "grpo_math": __version__,
            "settings": asdict(labelling),
            "task": task.model_dump(mode="json", exclude_defaults=True),
            "limit": arguments.limit,
            "model": {**model_manifest(str(arguments.model), model), **sampler.identity()},
            "sampling": asdict(replace(sampling, n=arguments.n, seed=arguments.seed, stop=stop)),
            "verifier": verifier_manifest(reward, arguments.sandbox),
            "inputs": [asdict(each) for each in inputs],
        }
        request = json.loads(json.dumps(request, default=str))  # as it is read back
        with closing(work_in(out, request, fresh)) as journal:
            found, too_long = label(written, sampler, scorer, journal, sampling, stop, arguments, labelling)
        counts = counts_of(written, found, len(candidates), too_long, labelling)
        refuse_nothing(counts, journal)
        lines, sha256 = write_rows(out, rows_of(written, found, labelling))
        output = {"path": str(out), "lines": lines, "sha256": sha256}
        summary = write_summary(out, {**request, "made": counts, "output": output})
    journal.path.unlink()
    with suppress(OSError):
        journal.path.parent.rmdir()
    return f"{table(counts)}\n\n{lines:,} completions -> {out} ({summary.name} beside it)"


def refuse_nothing(counts: Mapping[str, int | float], journal: Journal) -> None:
    """Raises UserError where the continuations say nothing."""
    if counts["continuations"] and counts["undecided"] == counts["continuations"]:
        said = next(v.detail or v.reason for found in journal.verdicts.values() for row in found.values() for v in row)
        raise UserError(f"none of the {counts['continuations']:,} continuations could be judged; the first: {said}")
    if not counts["labelled"]:
        raise UserError(f"no step has a label:\n{table(counts)}")


# ---- what is asked


def asked_of(arguments: Arguments) -> tuple[config.Task, config.Reward, tuple[str, ...]]:
    """The task, who judges, and what ends a completion."""
    assert arguments.task is not None
    name = arguments.task
    options = parse_options("--option", arguments.option)
    task = task_of(name, arguments.split, arguments.path, options, prompt=one_of("--prompt", name, arguments.prompt))
    _, form = form_of(task, find_task(task.name))
    verifier = verifier_of(task.name, arguments.verifier)
    reward = config.Reward(verifier=verifier, options=parse_options("--set", arguments.verifier_options))
    check_options(reward)
    return task, reward, form.stop


def distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without empty completions, and each text of a problem once."""
    first: dict[tuple[str, str, str, str], Candidate] = {}
    for c in candidates:
        if c.completion.strip():
            first.setdefault((*c.asked, c.completion), c)
    return list(first.values())


def look_up(task: config.Task, candidates: Sequence[Candidate]) -> dict[str, Problem]:
    """Their problems, by id. Raises UserError where the task does not have one."""
    wanted: dict[str, Candidate] = {}
    for candidate in candidates:
        wanted.setdefault(candidate.problem, candidate)
    source = load_problems(task)
    found: dict[str, Problem] = {}
    for looked, problem in enumerate(source.start() if source.problems is None else source.problems):
        if len(found) == len(wanted) or looked == LOOK:
            break
        if problem.id in wanted:
            found[problem.id] = problem
    if missing := [c for id, c in wanted.items() if id not in found]:
        raise UserError(
            f"{missing[0].source}: problem {missing[0].problem!r} is not one of --task {task.name}, split "
            f"{task.split!r} ({len(missing)} of {len(wanted)} problems are not); give --task, --split, --path and "
            "--option as they were when the samples were made"
        )
    for candidate in candidates:
        refuse_another(found[candidate.problem], candidate.source, task.name, candidate.prompt, candidate.gold)
    return found


def sampling_of(arguments: Arguments, sampler: Sampler) -> Sampling:
    most = arguments.max_tokens or min(MAX_TOKENS, (sampler.context or 2 * MAX_TOKENS) // 2)
    return Sampling(1, most, arguments.temperature, arguments.top_p, arguments.top_k)


def work_in(out: Path, request: Mapping[str, Any], fresh: bool) -> Journal:
    """The journal of FILE is in the folder FILE.work."""
    folder = out.with_name(f"{out.name}.work")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {folder} cannot be made ({error.strerror}); give another file") from error
    return Journal(folder, request, fresh)


def label(
    written: Sequence[Written],
    sampler: Sampler,
    scorer: Scorer,
    journal: Journal,
    sampling: Sampling,
    stop: tuple[str, ...],
    arguments: Arguments,
    labelling: Labelling,
) -> tuple[list[Labelled], int]:
    """One for each completion; and how many prefixes were too long to be asked."""
    beginner = Beginner(sampler, arguments.engine)
    beginnings: dict[tuple[str, str], Beginning] = {}
    solutions = []
    for w in written:
        begun = [beginner.begin(w.problem, w.candidate.prompt, w.candidate.completion[:end]) for end in w.ends[:-1]]
        beginnings |= {(w.problem.id, b.prefix.text): b for b in begun}
        verdict = Verdict(w.candidate.reward, w.candidate.reason)  # type: ignore[arg-type]
        solutions.append(Solution(tuple(b.prefix for b in begun), verdict))
    go_on = Continuer(sampler, scorer, journal, sampling, stop, beginnings, beginner.tokenizer)
    asked = solutions, arguments.n, go_on, arguments.seed, labelling.budget
    if labelling.method == "binary":
        return [Labelled(s.values, s.labels, s.first_wrong) for s in first_wrong(*asked)], go_on.too_long
    labels = LABELS[labelling.labels]
    return [Labelled(values, labels(values)) for values in estimate(*asked)], go_on.too_long
