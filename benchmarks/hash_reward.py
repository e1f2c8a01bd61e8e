"""A verifier for the benchmark: looks for a boxed answer, then rewards by a checksum, so that every group has a signal.

With a reward that siblings can share, a group without a signal has nothing to train on and this trainer skips it: that
is a gain of its own (`--reward math` shows it), not to be mixed with the speed of the step.
"""

from __future__ import annotations

import re
from zlib import crc32

from grpo_math.types import Problem, Verdict

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def verify(problem: Problem, completion: str) -> Verdict:
    """correct, with a reward in (0, 1] that is the same for the same problem and text, and nearly never else."""
    boxed = BOXED.findall(completion)
    reward = (crc32(f"{problem.id}/{completion}".encode()) + 1) / 2**32
    return Verdict(reward, "correct", "", boxed[-1] if boxed else None)


_PROBLEM = Problem("example", "example", "1+1=?", "2")

EXAMPLES = [(_PROBLEM, "\\boxed{2}", (crc32(b"example/\\boxed{2}") + 1) / 2**32)]
