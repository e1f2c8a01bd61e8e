"""Rows of problems from a file of JSON or from the Hub, with an error for each way that a file can be wrong.

Every error names file:line, what is wrong and the remedy. Left out: what the fields mean, which is the task's business.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from grpo_math.find import nearest
from grpo_math.types import UserError

Row = dict[str, Any]
Prepare = Callable[[Row], Row]


def as_it_is(row: Row) -> Row:
    return row


def rows(
    path: str | None,
    hub: tuple[str, str | None],
    split: str,
    fields: tuple[str, ...],
    lists: tuple[str, ...] = (),
    prepare: Prepare = as_it_is,
    files: Sequence[str] = (),
) -> Iterator[tuple[int, str, Row]]:
    """(number from 1, source for people, row) from `path` where given, else from the Hub data set (id, config).

    {split} in `path` stands for the split, so that one `task.path` serves training and evaluation. prepare: what is
    done to a row before its fields are checked, such as giving them other names. files: for a data set that comes with
    a loading script, which `datasets` 4 runs no longer, the files of JSON lines to take; numbers are those of a file.
    """
    dataset_id, config_name = hub
    if path is not None:
        path = path.replace("{split}", split)
        for number, row in read_rows(path, fields, lists, prepare):
            yield number, f"{path}:{number}", row
    elif files:
        for name in files:
            for number, row in hub_file_rows(dataset_id, name, fields, lists, prepare):
                yield number, f"{dataset_id}/{name}:{number}", row
    else:
        for number, row in hub_rows(dataset_id, config_name, split, fields, lists, prepare):
            yield number, f"{dataset_id}/{split}:{number}", row


def check_split(task: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise UserError(
            f"task.split={split!r}: {task} on the Hub has no such split, only {', '.join(splits)}; set "
            f"task.split={nearest(split, splits) or splits[0]}, or give your own data as task.path=FILE"
        )


def read_rows(
    path: str | Path, fields: tuple[str, ...], lists: tuple[str, ...] = (), prepare: Prepare = as_it_is
) -> Iterator[tuple[int, Row]]:
    """(line, row) of JSON lines, or (position, row) of one JSON list in a .json file; either may be .gz.

    Each row has every one of `fields` as a non-empty string, those in `lists` perhaps as a list of strings. Blank lines
    are skipped. Raises UserError.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if ".json" in p.name)
        raise UserError(f"{path} is a folder; give the file in it, {' or '.join(inside[:5]) or 'JSON lines'}")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            suffix = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
            parse = _json_list if suffix == ".json" else _json_lines
            number = 0
            for number, row in parse(path, cast(BinaryIO, stream)):
                yield number, _checked(f"{path}:{number}", row, fields, lists, prepare)
    except FileNotFoundError as error:
        raise UserError(_missing(path, file)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); check its permissions and that it is whole") from error
    if not number:
        raise UserError(f"{path} has no rows; give a file with one JSON object a line, with {_list(fields)}")


def hub_rows(
    dataset_id: str,
    config_name: str | None,
    split: str,
    fields: tuple[str, ...],
    lists: tuple[str, ...] = (),
    prepare: Prepare = as_it_is,
) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of a Hub data set, downloaded or from the local cache. Raises UserError."""
    found = 0
    data = _loaded(f"the data set {dataset_id}", f"the split {split!r}", fields, dataset_id, config_name, split=split)
    for found, row in enumerate(data, 1):
        yield found, _checked(f"{dataset_id}/{split}:{found}", row, fields, lists, prepare)
    if not found:
        raise UserError(f"the split {split!r} of {dataset_id} has no rows; choose another with task.split")


def hub_file_rows(
    dataset_id: str, name: str, fields: tuple[str, ...], lists: tuple[str, ...] = (), prepare: Prepare = as_it_is
) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of one file of JSON lines in a Hub data set. Raises UserError."""
    found = 0
    what, file = f"the file {name} of the data set {dataset_id}", f"hf://datasets/{dataset_id}/{name}"
    # the one split of plain files is called train, whatever is in them
    for found, row in enumerate(_loaded(what, "it", fields, "json", data_files=file, split="train"), 1):
        yield found, _checked(f"{dataset_id}/{name}:{found}", row, fields, lists, prepare)
    if not found:
        raise UserError(f"{dataset_id}/{name} has no rows; give a copy of the data as task.path=FILE")


def _loaded(what: str, wanted: str, fields: tuple[str, ...], *args: str | None, **kwargs: str) -> Iterable[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return cast(Iterable[Any], load_dataset(*args, **kwargs))
    # without a network: ConnectionError (an OSError) after five tries; not on the Hub: DatasetNotFoundError, both a
    # DatasetsError and an OSError; a config or split that it does not have: ValueError
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"{what} cannot be loaded from the Hugging Face Hub ({_first_line(error)}). On a machine without the Hub "
            f"give {wanted} as JSON lines with {_list(fields)}: task.path=FILE"
        ) from error


def _json_lines(path: str | Path, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    # split at b"\n" alone: str.splitlines would also break a row at U+2028, which JSON allows inside a string
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, _parse(path, line, number)


def _json_list(path: str | Path, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    content = stream.read()
    data = _parse(path, content, None) if content.strip() else []
    if not isinstance(data, list):
        raise UserError(
            f"{path} holds {_kind(data)}; a .json file must hold a list of objects (for one object a line, name it "
            ".jsonl)"
        )
    yield from enumerate(data, 1)


def _parse(path: str | Path, content: bytes, number: int | None) -> Any:
    """One JSON value: line `number` of the file, or all of it."""
    where = str(path) if number is None else f"{path}:{number}"
    try:
        # utf-8-sig: a byte order mark, as some editors write, is not an error
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); convert the file: "
            "iconv -f ISO-8859-1 -t UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        where = f"{path}:{number or error.lineno}"
        list_hint = "; name a file that is one list of objects .json" if content.strip() == b"[" else ""
        what = error.msg.removesuffix(" at")
        raise UserError(
            f"{where}: broken JSON, {what} at column {error.colno}; mend or delete the line{list_hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, or brackets nested too deep
        raise UserError(f"{where}: JSON that cannot be read ({error}); mend or delete the line") from error


def _checked(where: str, given: Any, fields: tuple[str, ...], lists: tuple[str, ...], prepare: Prepare) -> Row:
    if not isinstance(given, dict):
        raise UserError(f"{where} is {_kind(given)}, not an object with {_list(fields)}; mend or delete the row")
    row = prepare(given)
    for field in fields:
        if field not in row:
            near = nearest(field, row)
            raise UserError(
                f"{where} has no field {field!r}, only {', '.join(map(repr, row)) or 'an empty object'}; "
                + (
                    f"did you mean to name {near!r} {field!r}?"
                    if near
                    else "add it, or use the task that fits the file"
                )
            )
        value = row[field]
        if field in lists and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
            continue
        if not isinstance(value, str):
            raise UserError(
                f"{where}: {field!r} is {_kind(value)}, {json.dumps(value, default=str)[:40]}, where a string is "
                "expected; put it in quotes"
            )
        if not value.strip():
            raise UserError(f"{where}: {field!r} is empty; fill it in or delete the row")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a "\ud83d\ude00" pair: every tokenizer would refuse it later
            raise UserError(f"{where}: {field!r} holds half a Unicode pair, {error.reason}; mend the row") from error
    return row


def _missing(path: str | Path, file: Path) -> str:
    if not file.parent.is_dir():
        return f"{path} does not exist, and neither does its folder {file.parent}; check task.path"
    near = nearest(file.name, [p.name for p in file.parent.iterdir()])
    return f"{path} does not exist; " + (f"did you mean {Path(path).parent / near}?" if near else "check task.path")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "null" if value is None else f"a {type(value).__name__}")


def _list(fields: tuple[str, ...]) -> str:
    return f"the field{'s' * (len(fields) > 1)} {' and '.join(fields)}" if fields else "a name for each field"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
