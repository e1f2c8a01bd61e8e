"""grpo-math compare: evaluations of the same problems side by side, each against the first.

Left out: the statistics (paired.py).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any
from zlib import crc32

from grpo_math.evaluation.files import RESULTS, SAMPLES
from grpo_math.evaluation.paired import Answers, compare_at, ks_for, settings_that_differ, share, sign
from grpo_math.log import write_whole
from grpo_math.rows import read_rows
from grpo_math.types import UserError

COMPARE = "compare.json"
SHOWN_SETTINGS = 20
SHOWN_ANSWERS = 4
TAIL = 300  # characters of a prompt

# field of samples.jsonl -> what it may be
FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "problem": (str,),
    "sample": (int,),
    "reason": (str,),
    "reward": (int, float, type(None)),
}


@dataclass(frozen=True)
class Run:
    """An evaluation's folder. tasks: task -> problem -> its answers, in the file's order."""

    folder: str
    manifest: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Answers]]


def read_run(folder: Path) -> Run:
    """What `grpo-math evaluate` left in a folder. Raises UserError: no such folder, unfinished, or not such files."""
    for name in (RESULTS, SAMPLES):
        if not (folder / name).is_file():
            state = "the evaluation has not ended: its command, given again, goes on" if folder.is_dir() else "check it"
            raise UserError(f"{folder / name} does not exist; give the --out folder of an evaluation ({state})")
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RESULTS} cannot be read ({error}); evaluate again with --fresh") from error
    if not isinstance(results, dict) or not isinstance(results.get("manifest"), dict):
        raise UserError(
            f"{folder / RESULTS} has no manifest, so that nobody knows how it was made; evaluate again, or score its "
            f"samples with grpo-math evaluate --samples {folder / SAMPLES}"
        )
    tasks: dict[str, dict[str, Answers]] = {}
    for where, row in _sample_rows(folder / SAMPLES):
        problems = tasks.setdefault(row["task"], {})
        answers = problems.setdefault(row["problem"], Answers(row.get("prompt"), row.get("gold")))
        if row["sample"] in answers.sampled:
            raise UserError(f"{where}: sample {row['sample']} of problem {row['problem']} is there twice; delete one")
        answers.sampled.add(row["sample"])
        answers.answers.append(row.get("answer"))
        answers.text = crc32(repr(row.get("completion")).encode("utf-8", "backslashreplace"), answers.text)
        if row["reward"] is not None:
            answers.n += 1
            answers.c += row["reason"] == "correct"
    return Run(str(folder), results["manifest"], tasks)


def _sample_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row) of samples.jsonl, with each of FIELDS as it should be; further ones are let be."""
    if not path.stat().st_size:
        raise UserError(f"{path} is empty; evaluate again with --fresh")
    for number, row in read_rows(path, ()):
        for name, types in FIELDS.items():
            if name not in row or not isinstance(row[name], types):
                found = f"{name}={json.dumps(row[name])[:40]}" if name in row else f"no field {name!r}"
                raise UserError(
                    f"{path}:{number}: {found}, where {' or '.join(_words(types))} belongs; evaluate again with this "
                    f"version, or score the completions anew with grpo-math evaluate --samples {path}"
                )
        yield f"{path}:{number}", row


def _words(types: tuple[type, ...]) -> list[str]:
    names = {str: "a string", int: "a whole number", float: "a number", type(None): "null"}
    return [names[t] for t in types if not (t is int and float in types)]


def compare_command(runs: Sequence[Path], k: Sequence[int] | None, out: Path | None, examples: int, seed: int) -> str:
    """The report on each run against the first; with the same figures, compare.json in the folder `out` if given.

    k: of pass@k, None for 1 and the largest. examples: of the problems won and of those lost, so many of each task.
    seed: of the resampling and of which examples. Raises UserError."""
    if len(runs) < 2:
        raise UserError("one run is nothing to compare; give two or more folders of evaluations")
    first, *others = read = [read_run(folder) for folder in runs]
    report = {
        "runs": [{"folder": run.folder, "model": run.manifest.get("model", {}).get("name")} for run in read],
        "seed": seed,
        "comparisons": [compare_runs(first, b, number, k, examples, seed) for number, b in enumerate(others, 1)],
    }
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / COMPARE, json.dumps(report, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"--out {out} cannot be written ({error.strerror or error}); give another folder"
            ) from error
    return "\n".join(_text(report))


def compare_runs(a: Run, b: Run, number: int, k: Sequence[int] | None, examples: int, seed: int) -> dict[str, Any]:
    """All that compare.json says of the run `number` (the first is 0) against the first."""
    common = [task for task in a.tasks if task in b.tasks]
    if not common:
        raise UserError(
            f"{a.folder} has the tasks {', '.join(a.tasks)}, and {b.folder} has {', '.join(b.tasks)}: there is none in "
            "both; evaluate both on the same"
        )
    return {
        "run": number,
        "tasks_only_a": [task for task in a.tasks if task not in b.tasks],
        "tasks_only_b": [task for task in b.tasks if task not in a.tasks],
        "settings": settings_that_differ(a.manifest, b.manifest, common),
        "tasks": {task: compare_task(task, a.tasks[task], b.tasks[task], k, examples, seed) for task in common},
    }


def compare_task(
    task: str, a: Mapping[str, Answers], b: Mapping[str, Answers], k: Sequence[int] | None, examples: int, seed: int
) -> dict[str, Any]:
    ks, shared = ks_for(a, b, k, task), share(a, b)
    pairs = [(x, y) for _, x, y in shared.pairs]
    return {
        "pairs": len(pairs),
        "only_a": shared.only_a,
        "only_b": shared.only_b,
        "other_gold": shared.other_gold,
        "other_prompt": shared.other_prompt,
        "pass": [asdict(compare_at(pairs, at, seed)) for at in ks],
        **examples_of(shared.pairs, examples, seed),
    }


def examples_of(pairs: Sequence[tuple[str, Answers, Answers]], number: int, seed: int) -> dict[str, Any]:
    """So many problems that B answers right more often than A, and that it does less often, drawn by `seed`."""
    words = _common_end([x.prompt or "" for _, x, _ in pairs])
    found: dict[str, Any] = {}
    for name, wanted in (("won", 1), ("lost", -1)):
        all_of_them = [(id, x, y) for id, x, y in pairs if x.n and y.n and sign(x, y, 1) == wanted]
        drawn = random.Random(seed).sample(range(len(all_of_them)), min(number, len(all_of_them)))
        found[name] = [
            {
                "problem": id,
                "prompt": _tail((x.prompt or "").removesuffix(words).strip()),
                "gold": x.gold,
                "a": _said(x),
                "b": _said(y),
            }
            for id, x, y in (all_of_them[i] for i in sorted(drawn))
        ]
    return found


def _said(answers: Answers) -> dict[str, Any]:
    """right of judged samples, and the answers with how often each was given, the most frequent first."""
    return {"right": answers.c, "judged": answers.n, "answers": Counter(answers.answers).most_common(SHOWN_ANSWERS)}


def _tail(text: str) -> str:
    return text if len(text) <= TAIL else f"...{text[-TAIL:]}"


def _common_end(prompts: Sequence[str]) -> str:
    """What all prompts end in, from a white space on: words of the template, which say nothing of the problem."""
    if len(set(prompts)) < 2:
        return ""
    backwards = [prompt[::-1] for prompt in prompts]
    # in the order of the alphabet, what the first and the last begin with is what all between them do
    pairs = zip(min(backwards), max(backwards), strict=False)
    end = "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]
    start = next((i for i, letter in enumerate(end) if letter.isspace()), len(end))
    return end[start:]


def _text(report: Mapping[str, Any]) -> Iterator[str]:
    for number, run in enumerate(report["runs"]):
        yield f"{_letter(number)}  {run['folder']}" + (f"  ({run['model']})" if run["model"] else "")
    for comparison in report["comparisons"]:
        name = _letter(comparison["run"])
        yield ""
        yield from _columns([_head(name), *_figures(comparison)])
        yield from _warnings(comparison, name)
        yield from _examples(comparison, name)


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"run {number + 1}"


def _head(b: str) -> tuple[str, ...]:
    return ("task", "", "problems", "A", b, f"{b} - A", "95 % interval", "won", "lost", "tied", "sign test p")


def _figures(comparison: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for task, figures in comparison["tasks"].items():
        for row in figures["pass"]:
            start = (task, f"pass@{row['k']}", f"{row['problems']:,}")
            if row["difference"] is None:
                yield (*start, *"-----", "-", "-", "-")
                continue
            low, high = row["interval"]
            yield (
                *start,
                f"{row['a']:.3f}",
                f"{row['b']:.3f}",
                f"{row['difference']:+.3f}",
                f"[{low:+.3f}, {high:+.3f}]",
                *(f"{row[key]:,}" for key in ("won", "lost", "tied")),
                f"{row['p']:.3f}" if row["p"] >= 0.001 else f"{row['p']:.0e}",
            )


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """The first two flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:{'<' if i < 2 else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _warnings(comparison: Mapping[str, Any], b: str) -> Iterator[str]:
    for name, key in (("A", "tasks_only_a"), (b, "tasks_only_b")):
        if comparison[key]:
            yield f"only {name} has {', '.join(comparison[key])}"
    for task, figures in comparison["tasks"].items():
        said = {
            f"only in A: {figures['only_a']:,}": figures["only_a"],
            f"only in {b}: {figures['only_b']:,}": figures["only_b"],
            f"with another gold answer: {figures['other_gold']:,}": figures["other_gold"],
        }
        if any(said.values()):
            yield f"{task}: problems left out, {', '.join(text for text, number in said.items() if number)}"
        for row in figures["pass"]:
            if row["left_out"]:
                yield f"{task} pass@{row['k']}: problems left out, with fewer judged samples: {row['left_out']:,}"
        if figures["other_prompt"]:
            yield f"{task}: {figures['other_prompt']:,} of {figures['pairs']:,} problems were put in other words"
    settings = comparison["settings"]
    if settings:
        yield "these settings differ too, so that the difference is not the model's alone:"
        for key, (of_a, of_b) in list(settings.items())[:SHOWN_SETTINGS]:
            yield f"  {key}: A {_short(of_a)}, {b} {_short(of_b)}"
        if len(settings) > SHOWN_SETTINGS:
            yield f"  and {len(settings) - SHOWN_SETTINGS} more"


def _examples(comparison: Mapping[str, Any], b: str) -> Iterator[str]:
    for task, figures in comparison["tasks"].items():
        for word in ("won", "lost"):
            for example in figures[word]:
                yield ""
                yield f"{word} by {b}: {task} {example['problem']}, gold {_short(example['gold'])}"
                yield from (f"  | {line}" for line in example["prompt"].splitlines() if line.strip())
                for name, said in (("A", example["a"]), (b, example["b"])):
                    answers = ", ".join(f"{_short(answer)} x{times}" for answer, times in said["answers"])
                    yield f"  {name}: {said['right']} of {said['judged']} right; {answers}"


def _short(value: object, limit: int = 60) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
