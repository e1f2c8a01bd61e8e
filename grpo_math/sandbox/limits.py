"""What a judged program may use, and how well it must be kept apart. Plain values: all enforcing is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("process", "seccomp", "namespaces")  # of isolation, the weakest first


@dataclass(frozen=True, slots=True)
class Limits:
    """timeout_s: CPU seconds of a program; of each case, where the program reads standard input.
    memory_mb: megabytes of address space.
    output_mb: megabytes that it may write to standard output, to standard error or to any one file.
    require: the least isolation, one of LEVELS; where the machine cannot give it, nothing is run.
    at_most: the best isolation that is tried; the best that works is used."""

    timeout_s: float = 10.0
    memory_mb: int = 1024
    output_mb: int = 16
    require: str = "seccomp"
    at_most: str = "namespaces"
