"""Labelled programs, right ones in many styles and attacks of many kinds, at each level of isolation and as each user.

tests/cases/programs.jsonl was written by somebody who had not seen the verifier. What a level does not promise to stop
is left out there by kind: see docs/code_verifier.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.code_run import judged

CASES = Path(__file__).parent / "cases" / "programs.jsonl"
# Right programs that are refused, known and told in docs/code_verifier.md.
KNOWN = {"r_context_manager"}
# What needs no wall, since the judge never believes the program: the level `process` has to get these right too.
NO_WALL = {
    *("always_equal", "broken", "correct", "early_exit", "encoding", "lenient_checker", "monkeypatch", "output"),
    *("forge_result", "source_trick", "crash", "timeout"),
}


def lines_of(wanted: Callable[[str], bool], every: int, shared: Path, folder: Path) -> Path:
    """A file with the lines of the kinds that are wanted, those of the development sample too; of each kind the first,
    and each `every`-th after it."""
    texts = [
        *CASES.read_text("utf-8").splitlines(),
        *(shared / "cases/programs_dev.jsonl").read_text("utf-8").splitlines(),
    ]
    kinds = [json.loads(text)["kind"] for text in texts]
    kept = [text for i, text in enumerate(texts) if wanted(kinds[i]) and kinds[:i].count(kinds[i]) % every == 0]
    path = folder / "lines.jsonl"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


# What needs no wall is judged alike behind any: all of it once as root, and without walls, as an ordinary user, a part
# of each kind; all of it with GRPO_MATH_ALL=1.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "user", "what"),
    [
        ("namespaces", False, "all"),
        ("namespaces", True, "walls"),
        ("seccomp", False, "walls"),
        ("seccomp", True, "walls"),
        ("process", True, "no walls"),
    ],
    ids=["namespaces-root", "namespaces-user", "seccomp-root", "seccomp-user", "process-user"],
)
def test_every_program_is_judged_as_labelled(level: str, user: bool, what: str, shared: Path, tmp_path: Path) -> None:
    if not user and os.geteuid() != 0:
        pytest.skip("not root, so that root's case cannot be tried")
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:3]:
        above.chmod(0o755)
    wanted = {"all": lambda kind: True, "walls": lambda kind: kind not in NO_WALL, "no walls": NO_WALL.__contains__}
    every = 4 if what == "no walls" and "GRPO_MATH_ALL" not in os.environ else 1
    lines = lines_of(wanted[what], every, shared, tmp_path)
    wrong = judged(lines, level, user)
    if isinstance(wrong, str):
        pytest.skip(wrong)
    assert {id: why for id, why in wrong.items() if id not in KNOWN} == {}
