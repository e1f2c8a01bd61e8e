"""task.exclude: files that name problems to leave out, as ids one a line or as `grpo-math decontaminate` writes them.

Left out: the dropping itself (problems.py) and finding what to drop (decontaminate.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_math.find import nearest
from grpo_math.rows import read_rows
from grpo_math.types import UserError

JSON = (".json", ".jsonl", ".gz")


@dataclass(frozen=True)
class Exclusion:
    """The ids that all of `files` name together."""

    files: str = ""
    ids: frozenset[str] = frozenset()

    def fingerprint(self) -> int:
        """Of the ids alone: the same ones in another order, or in a file that has moved, are the same exclusion."""
        return zlib.crc32("\n".join(sorted(self.ids)).encode("utf-8", "backslashreplace"))

    def report(self, task: str, present: Sequence[str], whole: bool, endless: bool) -> str:
        """How many of the task's ids, `present`, are left out, for people.

        whole: these are all of its ids, so that naming none of them is a mistake. Raises UserError for that, and where
        nothing is left."""
        dropped = sum(id in self.ids for id in present)
        others = len(self.ids) - dropped
        if not self.ids:
            return f"{task}: task.exclude={self.files} names no problem, and nothing is excluded"
        if whole and not dropped:
            raise UserError(
                f"task.exclude={self.files}: none of the {counted(others, 'id')} in it is a problem of {task}, whose "
                f"ids are like {present[0]}, and those in it like {min(self.ids)}; give the file made for this task "
                "and split, or leave task.exclude out"
            )
        if dropped == len(present):
            raise UserError(
                f"task.exclude={self.files} names all of the {counted(dropped, 'problem')} of {task}, and nothing is "
                "left; name fewer, or raise task.limit where one is set"
            )
        if endless:
            return f"{task}: {counted(len(self.ids), 'problem')} named in {self.files} will be excluded as they come"
        note = f"; {counted(others, 'other id')} named there {'is' if others == 1 else 'are'} not "
        note += "in it" if whole else "among those that task.limit leaves"
        return f"{task}: excluded {counted(dropped, 'problem')} named in {self.files}{note if others else ''}"


def read_exclusion(paths: Sequence[str]) -> Exclusion:
    """The ids in files of JSON lines, each with the field `problem`, or of plain text, an id a line. Raises UserError.

    Blank lines are skipped, and an empty file names nothing: a search that found nothing writes one."""
    return Exclusion(", ".join(paths), frozenset(id for path in paths for id in _read(path)))


def check_exclude(paths: Sequence[str], key: str = "task.exclude") -> None:
    """The files are there. Raises UserError."""
    for path in paths:
        file = Path(path)
        if file.is_file():
            continue
        if file.is_dir():
            raise UserError(f"{key}={path} is a folder; give a file in it, with an id of a problem on each line")
        guess = nearest(file.name, [p.name for p in file.parent.glob("*")])
        meant = f"did you mean {file.parent / guess}?" if guess else "grpo-math decontaminate makes one"
        raise UserError(f"{key}={path}: there is no such file; {meant}")


def _read(path: str) -> list[str]:
    check_exclude([path])
    try:
        content = Path(path).read_bytes()
        if not content.strip():
            return []
        if Path(path).suffix in JSON or content.lstrip().startswith(b"{"):
            return [row["problem"] for _, row in read_rows(path, ("problem",))]
        return [line.strip() for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(
            f"task.exclude={path} is not UTF-8 (byte {error.start}); give JSON lines with the field problem, or plain "
            "text with an id on each line"
        ) from error
    except OSError as error:
        raise UserError(f"task.exclude={path} cannot be read ({error.strerror}); check its permissions") from error


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
