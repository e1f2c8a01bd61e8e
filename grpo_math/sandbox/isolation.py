"""How well a program can be kept apart on this machine: which walls stand, what each stops, how to get the others.

Found out by trying, in a confined process. Leaves out the walls themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from grpo_math.sandbox.client import Sandbox, SandboxError
from grpo_math.sandbox.limits import LEVELS


class Layer(NamedTuple):
    """act: what has to fail for the layer to stand (probe.ACTS). by: what holds it. remedy: what that needs."""

    name: str
    act: str
    by: str
    stops: str
    remedy: str


_SECCOMP = "Linux with seccomp, on x86_64 or aarch64"
_LANDLOCK = "Linux 6.2 with landlock among its security modules, or user namespaces"
_NAMESPACES = "leave to make user namespaces (docker: --security-opt seccomp=unconfined, or a profile with unshare)"
_ANOTHER = "an ordinary user, or leave to change user and a Python that all may read"

LAYERS = (
    Layer("memory", "memory", "rlimits", "taking more memory than sandbox.memory_mb", "Linux rlimits"),
    Layer("files", "file", "rlimits", "writing more than sandbox.output_mb to one", "Linux rlimits"),
    Layer("threads", "threads", "rlimits", "starting hundreds of them", _ANOTHER),
    Layer("rights", "rights", "user, seccomp", "raising its own limits", _ANOTHER),
    Layer("processes", "fork", "seccomp", "starting some, which could outlive it", _SECCOMP),
    Layer("signals", "signal", "seccomp", "ending or stopping other processes", _SECCOMP),
    Layer("tracing", "trace", "seccomp", "reading or changing other processes", _SECCOMP),
    Layer("network", "socket", "seccomp", "any connection, to this machine too", _SECCOMP),
    Layer("kernel", "namespace", "seccomp", "its rarer and less proven calls", _SECCOMP),
    Layer("reading", "read", "Landlock, mounts", "any file but the interpreter's", _LANDLOCK),
    Layer("writing", "write", "Landlock, mounts", "any file but those of its own folder", _LANDLOCK),
    Layer("sight", "processes", "Landlock, mounts", "what runs on the machine", _LANDLOCK),
    Layer("own world", "world", "namespaces", "even the names of files, users, processes, networks", _NAMESPACES),
)
_WALLS = ("fork", "signal", "trace", "socket", "namespace", "read", "write")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "process": (),
    "seccomp": _WALLS,
    "namespaces": (*_WALLS, "processes", "world"),
}


@dataclass(frozen=True)
class Report:
    """level: the best that works here; stands: per layer; why: what kept the better levels from working."""

    level: str
    stands: Mapping[str, bool]
    why: Mapping[str, str]

    def lines(self) -> list[str]:
        """For people: the level, and each layer with what it stops, or with how to get it."""
        lines = [f"level {self.level}"]
        for layer in LAYERS:
            stands = self.stands.get(layer.act, False)
            what = f"stopped: {layer.stops}" if stands else f"not stopped: {layer.stops}; needs {layer.remedy}"
            lines.append(f"{layer.name:<11}{layer.by:<18}{'on ' if stands else 'OFF'}  {what}")
        lines += [f"not at level {level}: {why}" for level, why in self.why.items()]
        return lines


def open_sandbox(require: str, at_most: str = LEVELS[-1]) -> tuple[Sandbox, Report]:
    """A started sandbox of the best level that works, within these two. Raises SandboxError."""
    if sys.platform != "linux":
        raise SandboxError(f"programs are run on Linux only, and this is {sys.platform}; use a virtual machine")
    why: dict[str, str] = {}
    for level in reversed(LEVELS[LEVELS.index(require) : LEVELS.index(at_most) + 1]):
        sandbox = Sandbox(level)
        try:
            stands = sandbox.start()
        except SandboxError as error:
            why[level] = str(error)
        else:
            missing = [layer.name for layer in LAYERS if layer.act in NEEDED[level] and not stands.get(layer.act)]
            if not missing:
                return sandbox, Report(level, stands, why)
            why[level] = f"not stopped: {', '.join(missing)}"
        sandbox.close()
    weaker = None if require == LEVELS[0] else report(LEVELS[0], LEVELS[LEVELS.index(require) - 1]).level
    raise SandboxError(
        f"programs cannot be isolated at sandbox.require={require} here ("
        + "; ".join(f"{level}: {reason}" for level, reason in why.items())
        + "); see `grpo-math doctor` for what is missing"
        + (f", or set sandbox.require={weaker}, which works here, and see what it does not stop" if weaker else "")
    )


@cache
def report(require: str = LEVELS[0], at_most: str = LEVELS[-1]) -> Report:
    """What works here, within these two levels. Raises SandboxError where nothing does."""
    sandbox, found = open_sandbox(require, at_most)
    sandbox.close()
    return found
