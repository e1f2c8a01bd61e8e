"""Labelled programs, right ones in many styles and attacks of many kinds, at each level of isolation and as each user.

tests/cases/programs.jsonl was written by somebody who had not seen the verifier. What a level does not promise to stop
is left out there by kind: see docs/code_verifier.md.
"""

from __future__ import annotations

import json
import os
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


def lines_of(kinds: set[str] | None, shared: Path, folder: Path) -> Path:
    """A file with the lines of these kinds, those of the development sample too."""
    texts = [
        *CASES.read_text("utf-8").splitlines(),
        *(shared / "cases/programs_dev.jsonl").read_text("utf-8").splitlines(),
    ]
    kept = [text for text in texts if kinds is None or json.loads(text)["kind"] in kinds]
    path = folder / "lines.jsonl"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "user"),
    [("namespaces", False), ("namespaces", True), ("seccomp", False), ("seccomp", True), ("process", True)],
    ids=lambda value: value if isinstance(value, str) else "user" if value else "root",
)
def test_every_program_is_judged_as_labelled(level: str, user: bool, shared: Path, tmp_path: Path) -> None:
    if not user and os.geteuid() != 0:
        pytest.skip("not root, so that root's case cannot be tried")
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    lines = lines_of(NO_WALL if level == "process" else None, shared, tmp_path)
    wrong = judged(lines, level, user)
    if isinstance(wrong, str):
        pytest.skip(wrong)
    assert {id: why for id, why in wrong.items() if id not in KNOWN} == {}
