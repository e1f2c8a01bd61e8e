"""What a page of results must say of where it was measured, and its tables in Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def described(threads: int, *packages: str) -> str:
    """One line: the date, the machine, and the versions of these packages (a package that is missing is left out)."""
    cores = len(os.sched_getaffinity(0))
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    return (
        f"{date.today().isoformat()}, {cores} cores of {processor()}, {threads} threads; {', '.join(found)}. "
        f"The machine's load in the minute before the end was {load:.1f}."
    )


def processor() -> str:
    """The name that Linux gives it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; every row must be as long as the header."""
    assert all(len(row) == len(header) for row in rows), (header, rows)
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)
