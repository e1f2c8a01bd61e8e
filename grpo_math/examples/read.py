"""Files -> RawExamples, all lines checked before a model is loaded; or files of samples, as they are or filtered here.

A file is JSON lines, a .json list (either may be .gz), or .parquet. Left out: what a row's columns mean (columns.py),
and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_math import config
from grpo_math.config_data import Data, Target, keys_for_flags
from grpo_math.examples.columns import example_of
from grpo_math.examples.complaints import Complaints
from grpo_math.examples.judged import FROM_SAMPLES
from grpo_math.examples.raw import Kind, RawExample
from grpo_math.filtering.command import filtered, table
from grpo_math.filtering.read import NEEDED, read_candidates
from grpo_math.find import nearest
from grpo_math.rows import read_rows
from grpo_math.types import UserError

Row = dict[str, Any]
Lines = Iterable[tuple[str, Row]]  # file:line, and what stands there

# of `grpo-math filter --to`
TARGETS: dict[Kind, Target] = {"sft": "sft", "preference": "pairs", "kto": "kto", "judged": "kto"}
LOADERS = {".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}  # by datasets.load_dataset's names


@dataclass(frozen=True)
class Found:
    """rows: in the order of the files. report: what the filter kept and dropped, for people; "" without one."""

    rows: list[RawExample]
    report: str = ""


OF_LOSS: dict[config.RewardLossName, Kind] = {"bradley_terry": "preference", "ranked": "ranked", "binary": "judged"}


def kind_of(cfg: config.Common) -> Kind:
    """What a line of the files must be."""
    if isinstance(cfg, config.RewardModel):
        return OF_LOSS[cfg.loss.name]
    if not isinstance(cfg, config.Preference):
        return "sft"
    return "kto" if cfg.losses.intersection(config.UNPAIRED) else "preference"


def read_examples(data: Data, kind: Kind) -> Found:
    """All that `data` names, as examples of one kind. Raises UserError, with file:line for each kind of mistake."""
    check_files(data.files)
    report = ""
    if data.filter is None:
        samples = [name for name in data.files if kind in FROM_SAMPLES and _holds_samples(name)]
        others = [name for name in data.files if name not in samples]
        rows = _converted(kind, file_lines(others)) if others else []
        rows += FROM_SAMPLES[kind](read_candidates([Path(name) for name in samples])[0]) if samples else []
    else:
        settings = data.filter.settings(TARGETS[kind])
        try:
            found = filtered([Path(name) for name in data.files], settings)
        except UserError as error:
            raise UserError(keys_for_flags(str(error))) from error
        rows = _converted(kind, ((_source(row), row) for row in found.result.rows))
        report = keys_for_flags("\n".join([table(found.counts), "", found.made, *found.result.notes]))
    _one_manner(rows)
    if kind in ("kto", "judged"):
        _both_classes(rows)
    return Found(rows, report)


def check_files(files: Sequence[str], key: str = "data.files") -> None:
    """Each is a file of a kind that is read, and is given once. Raises UserError."""
    seen: list[Path] = []
    for name in files:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{key}={name}: there is no such file; {_instead(path)}")
        if not path.is_file():
            inside = sorted(p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".gz", ".parquet"))
            remedy = f"such as {path / inside[0]}" if inside else _from_datasets(f"load_from_disk({name!r})")
            raise UserError(f"{key}={name} is a folder; give a file in it, {remedy}")
        if path.suffix in LOADERS:
            loader = f"load_dataset({LOADERS[path.suffix]!r}, data_files={name!r})['train']"
            raise UserError(f"{key}={name}: {path.suffix} is not read; make JSON lines of it, {_from_datasets(loader)}")
        if any(path.samefile(other) for other in seen):
            raise UserError(f"{key}={name} is given twice, and each of its examples would count twice; give it once")
        seen.append(path)


def _instead(path: Path) -> str:
    near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else None
    if near:
        return f"did you mean {path.parent / near}?"
    return f"for a data set of the Hub write one, {_from_datasets('load_dataset(ID, split=NAME)')}"


def _from_datasets(load: str) -> str:
    return f"for example datasets.{load}.to_json('examples.jsonl')"


def file_lines(files: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for name in files:
        rows = _parquet_rows if name.endswith(".parquet") else _json_rows
        for number, row in rows(name):
            yield f"{name}:{number}", row


def _holds_samples(name: str) -> bool:
    return set(NEEDED) <= set(next(iter(file_lines([name])))[1])


def _json_rows(name: str) -> Iterator[tuple[int, Row]]:
    return read_rows(name, ())


def _parquet_rows(name: str) -> Iterator[tuple[int, Row]]:
    """(number from 1, row). Not by way of `datasets`, which would first write all of it to its cache."""
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with parquet.ParquetFile(name) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, ArrowException) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} cannot be read ({first}); check that it is whole, and parquet") from error
    if not number:
        raise UserError(f"{name} has no rows; give a file with some")


def _source(row: Row) -> str:
    """Where a filtered row's samples stand."""
    return str(row.get("source") or f"{row['chosen_source']} and {row['rejected_source']}")


def _converted(kind: Kind, lines: Lines) -> list[RawExample]:
    rows: list[RawExample] = []
    complaints = Complaints()
    once: dict[str, str] = {}  # equal prompts are one object: a million pairs of a thousand problems fit into memory
    for where, row in lines:
        if isinstance(prompt := row.get("prompt"), str):
            row["prompt"] = once.setdefault(prompt, prompt)
        with complaints.of(where):
            rows.append(example_of(kind, row, where))
    complaints.raise_if_any()
    assert rows  # a file without is refused by whoever reads it
    return rows


def _first(rows: Sequence[RawExample], is_it: Callable[[RawExample], bool]) -> RawExample | None:
    return next((row for row in rows if is_it(row)), None)


def _one_manner(rows: Sequence[RawExample]) -> None:
    chat, plain = _first(rows, lambda row: row.chat), _first(rows, lambda row: not row.chat)
    if chat is not None and plain is not None:
        raise UserError(
            f"{chat.where} is a conversation and {plain.where} plain text: the chat template would be on some prompts "
            "only; write all in one manner, or train on one after the other"
        )


def _both_classes(rows: Sequence[RawExample]) -> None:
    labels = {row.completions[0].reward if row.label is None else row.label for row in rows}
    if labels in ({True}, {False}):  # a label in numbers of 1 or 0 is one of these too
        only = "true" if labels == {True} else "false"
        raise UserError(
            f"{rows[0].where.rpartition(':')[0]}: all {len(rows):,} labels are {only}, and good completions are to be "
            "told from bad ones; add the others, or take recipe: sft for good ones alone"
        )
