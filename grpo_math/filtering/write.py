"""Candidates and pairs -> lines as TRL's trainers and `datasets` take them, and a file that is whole or not there.

prompt + completion, prompt + chosen + rejected, or prompt + completion + label, all plain text; and where each came
from, in columns that no trainer of TRL reads. finish_reason tells ours which completions have no end-of-sequence token,
and logps what the sampler thought of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpo_math.filtering.candidate import NEAR, Candidate, by_problem
from grpo_math.log import write_whole
from grpo_math.types import UserError

Row = dict[str, Any]

# Of where a completion came from, what is written where its sample does not say, if those of others do. Not null:
# `datasets` takes the type of a column from its first lines, and refuses a file whose first nulls turn into strings.
UNKNOWN: dict[str, Any] = {"model": "", "policy_version": -1, "finish_reason": ""}


def known_columns(candidates: Sequence[Candidate]) -> list[str]:
    """Those of task, model, policy_version and finish_reason that at least one of them has, and logps where all have
    it: a number that stands for none would be taken for a log-probability."""
    there: dict[str, Callable[[Candidate], bool]] = {
        "task": lambda c: bool(c.task),
        "model": lambda c: bool(c.model),
        "policy_version": lambda c: c.policy_version is not None,
        "finish_reason": lambda c: bool(_finish(c)),
    }
    some = [name for name, known in there.items() if any(map(known, candidates))]
    return [*some, "logps"] if all(c.logprob is not None for c in candidates) else some


def sft_rows(candidates: Sequence[Candidate]) -> Iterator[Row]:
    """prompt, completion."""
    columns = known_columns(candidates)
    for c in candidates:
        yield {"prompt": c.prompt, "completion": c.completion, **_asked(c, columns), **_origin(c, columns)}


def kto_rows(candidates: Sequence[Candidate], good: float) -> Iterator[Row]:
    """prompt, completion, label: whether the reward is at least `good`.

    Each problem's completions are spread over the file: KTO's reference point is taken of completions behind other
    prompts, which trainers make by moving them on by one line (TRL before it shuffles)."""
    columns = known_columns(candidates)
    for c in spread(list(by_problem(candidates).values())):
        label = c.score >= good - NEAR
        yield {
            "prompt": c.prompt,
            "completion": c.completion,
            "label": label,
            **_asked(c, columns),
            **_origin(c, columns),
        }


def spread(groups: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The i-th of n at (i + 1/2) / n of the way: each group evenly over the whole, and in its order."""
    placed = [((i + 0.5) / len(group), c) for group in groups for i, c in enumerate(group)]
    return [c for _, c in sorted(placed, key=lambda place: place[0])]


def pair_rows(pairs: Sequence[tuple[Candidate, Candidate]]) -> Iterator[Row]:
    """prompt, chosen, rejected."""
    columns = known_columns([c for pair in pairs for c in pair])
    for chosen, rejected in pairs:
        yield {
            "prompt": chosen.prompt,
            "chosen": chosen.completion,
            "rejected": rejected.completion,
            **_asked(chosen, columns),
            **{f"chosen_{name}": value for name, value in _origin(chosen, columns).items()},
            **{f"rejected_{name}": value for name, value in _origin(rejected, columns).items()},
        }


def _asked(c: Candidate, columns: Sequence[str]) -> Row:
    return {**({"task": c.task} if "task" in columns else {}), "problem": c.problem}


def _origin(c: Candidate, columns: Sequence[str]) -> Row:
    known = {"model": c.model, "policy_version": c.policy_version, "finish_reason": _finish(c)}
    return {
        "reward": c.score,
        "source": c.source,
        **{name: UNKNOWN[name] if value is None else value for name, value in known.items() if name in columns},
        **({"logps": c.logprob} if "logps" in columns else {}),
    }


def _finish(c: Candidate) -> str:
    """`length` also where only the verdict says so."""
    return "length" if c.truncated else c.finish_reason


def refuse_out(out: Path, inputs: Sequence[Path]) -> None:
    """Before the work begins. Raises UserError: no plain file, a name that says something else, one of the inputs."""
    if out.suffix in (".json", ".gz"):
        raise UserError(
            f"--out {out}: the file has one object a line, not compressed; name it {out.with_suffix('.jsonl')}"
        )
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out} is no file; give the name of one, such as {out / 'filtered.jsonl'}")
    if any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        raise UserError(f"--out {out} is one of the inputs, which it would replace; give another file")


def write_rows(out: Path, rows: Iterable[Row]) -> tuple[int, str]:
    """How many lines, and the file's sha256. The file is replaced once all is written. Raises UserError."""
    digest, lines = hashlib.sha256(), 0
    partial = _partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                digest.update(line)
                stream.write(line)
                lines += 1
        os.replace(partial, out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        with suppress(OSError):  # its folder may be what is wrong
            partial.unlink(missing_ok=True)
    return lines, digest.hexdigest()


def write_summary(out: Path, summary: Mapping[str, Any]) -> Path:
    """FILE.summary.json beside FILE. Raises UserError."""
    path = out.with_name(f"{out.name}.summary.json")
    try:
        write_whole(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f".tmp-{path.name}-{os.getpid()}")


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"--out {path}: cannot be written ({error.strerror or error}); make room there, or give another file"
    )
