"""Files of samples -> candidates: samples.jsonl of `sample` and of `evaluate`, a run's completions.jsonl.

Only what the rules need is kept, and each prompt once, so that a million lines fit into a few gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math.filtering.candidate import NEAR, Candidate
from grpo_math.find import nearest
from grpo_math.rows import read_rows
from grpo_math.types import UserError

NEEDED = ("problem", "prompt", "completion", "reward", "reason")
FINISHES = ("stop", "length")
# What leaves a model's distribution as it is. At temperature 0 the log-probabilities are those of temperature 1, but
# the completion is no draw from it.
AS_IT_IS: dict[str, Callable[[float], bool]] = {
    "temperature": lambda value: value == 1,
    "top_p": lambda value: value >= 1,
    "top_k": lambda value: value <= 0,  # vLLM's "off" is -1
}


@dataclass(frozen=True)
class Input:
    path: str
    lines: int
    sha256: str


def read_candidates(paths: Sequence[Path]) -> tuple[list[Candidate], list[Input]]:
    """All lines of the files, in their order. Raises UserError: a file that is missing, empty or given twice, and
    file:line where a field is missing or of a wrong type."""
    candidates: list[Candidate] = []
    inputs: list[Input] = []
    prompts: dict[str, str] = {}
    for path in paths:
        before = len(candidates)
        _refuse(path, [Path(i.path) for i in inputs])
        size = path.stat().st_size
        for number, row in read_rows(path, ()):
            candidates.append(_candidate(str(path), number, row, prompts))
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if path.stat().st_size != size:
            raise UserError(f"{path} grew while it was read: a run still writes it; wait for its end, or give a copy")
        inputs.append(Input(str(path), len(candidates) - before, digest))
    return candidates, inputs


def _refuse(path: Path, earlier: Sequence[Path]) -> None:
    if not path.exists():
        folder = path.parent
        near = nearest(path.name, [p.name for p in folder.iterdir()]) if folder.is_dir() else None
        raise UserError(
            f"{path} does not exist; "
            + (f"did you mean {folder / near}?" if near else "give a samples.jsonl or a run's completions.jsonl")
        )
    if path.is_file() and not path.stat().st_size:
        raise UserError(f"{path} has no samples, it is empty; give a file of a run that has sampled something")
    if any(path.samefile(other) for other in earlier):
        raise UserError(f"{path} is given twice, and each of its samples would count twice; give it once")


def _candidate(file: str, line: int, row: Mapping[str, Any], prompts: dict[str, str]) -> Candidate:
    where = f"{file}:{line}"
    for name in NEEDED:
        if name not in row:
            near = nearest(name, row)
            raise UserError(
                f"{where} has no field {name!r}, only {', '.join(map(repr, row)) or 'an empty object'}; "
                + (f"did you mean to name {near!r} {name!r}?" if near else f"a sample has {', '.join(NEEDED)}")
            )
    prompt = _text(where, row, "prompt")
    reason = _text(where, row, "reason")
    finish = _finish(where, row)
    logprob = _logprob(where, row)
    reshaped = logprob is not None and _reshaped(where, row)
    return Candidate(
        file=file,
        line=line,
        task=sys.intern(_text(where, row, "task") if row.get("task") is not None else ""),
        problem=sys.intern(_text(where, row, "problem")),
        prompt=prompts.setdefault(prompt, prompt),
        completion=_text(where, row, "completion", empty=True),
        reward=_reward(where, row["reward"]),
        reason=sys.intern(reason),
        answer=None if row.get("answer") is None else _text(where, row, "answer", empty=True),
        gold=sys.intern(row["gold"]) if isinstance(row.get("gold"), str) else None,
        tokens=_whole(where, row, "tokens"),
        truncated=finish == "length" or reason == "truncated",
        model=sys.intern(_text(where, row, "model") if row.get("model") is not None else ""),
        policy_version=_whole(where, row, "policy_version"),
        finish_reason=finish,
        logprob=None if reshaped else logprob,
        reshaped=reshaped,
    )


def _text(where: str, row: Mapping[str, Any], name: str, empty: bool = False) -> str:
    value = row[name]
    if not isinstance(value, str):
        chat = "; render a list of messages with the chat template first" if isinstance(value, list) else ""
        raise UserError(f"{where}: {name}={_shown(value)}: give a string{chat}")
    if not value and not empty:
        raise UserError(f"{where}: {name!r} is empty; fill it in or delete the line")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a "\ud83d\ude00" pair, which no file in UTF-8 can hold
        raise UserError(f"{where}: {name!r} holds half a Unicode pair, {error.reason}; mend the line") from error
    return value


def _reward(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{where}: reward={_shown(value)}: give a finite number, or null where nobody could decide")
    return float(value)


def _finish(where: str, row: Mapping[str, Any]) -> str:
    """stop, length, or "" where the line does not say."""
    finish = row.get("finish_reason")
    if finish is None:
        return ""
    if finish not in FINISHES:
        raise UserError(f"{where}: finish_reason={_shown(finish)}: give stop or length, or leave it out")
    return sys.intern(finish)


def _logprob(where: str, row: Mapping[str, Any]) -> float | None:
    value = row.get("logprob")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value <= NEAR:
        raise UserError(
            f"{where}: logprob={_shown(value)}: give the completion's log-probability, which is finite and not above "
            "0, or leave it out"
        )
    return float(value)


def _reshaped(where: str, row: Mapping[str, Any]) -> bool:
    """Whether a line says that it was drawn from another distribution than the model's own. One that does not say is
    taken to be drawn from that."""
    sampling = row.get("sampling")
    if sampling is None:
        return False
    if not isinstance(sampling, dict):
        raise UserError(f"{where}: sampling={_shown(sampling)}: give an object with {', '.join(AS_IT_IS)}, or nothing")
    return not all(as_it_is(_setting(where, sampling, name)) for name, as_it_is in AS_IT_IS.items() if name in sampling)


def _setting(where: str, sampling: Mapping[str, Any], name: str) -> float:
    value = sampling[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: sampling.{name}={_shown(value)}: give a number, or leave it out")
    return value


def _whole(where: str, row: Mapping[str, Any], name: str) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: {name}={_shown(value)}: give a whole number from 0, or leave it out")
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
