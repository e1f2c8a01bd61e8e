"""Judge labelled programs on the canary bed, and say what came out otherwise than labelled: `python -m tests.code_run`.

Meant for a throw-away pid, network and mount namespace (`throwaway`), since some of the programs would harm the machine
if the sandbox did not hold. Leaves out which lines, levels and users to try (test_code_programs.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from grpo_math.sandbox import kernel
from tests.code_bed import CANARY, SOCKET, canary_bed, check_post

NOBODY = 65534
ROOT = Path(__file__).parents[1]


def throwaway() -> list[str] | None:
    """The command that makes the namespaces, where that is allowed and there is one."""
    command = ["unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "-pfmn", "--mount-proc", "--kill-child"]
    works = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else None


def judged(lines: Path, level: str, user: bool) -> dict[str, object] | str:
    """{id: what is wrong with its verdict or its traces} in a throw-away world; why it cannot be tried there."""
    command = throwaway()
    if command is None:
        return "no throw-away namespaces can be made here"
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.code_run", str(lines), level, *(["user"] if user else [])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode == 77:
        return done.stderr.strip().splitlines()[-1]
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def become_nobody() -> None:
    """From root to an ordinary user, who can reach the interpreter although it may lie in root's home."""
    prefix, home = Path(sys.base_prefix), Path("/", *Path(sys.base_prefix).parts[1:2])
    reachable = home.stat().st_mode & 0o1
    if not reachable:
        if any(path.is_relative_to(home) for path in (ROOT, Path(sys.prefix))):
            print(f"an ordinary user cannot reach {home}, where the project is", file=sys.stderr)
            sys.exit(77)
        kernel.mount("none", "/", None, kernel.REC | kernel.PRIVATE)
        kernel.mount("aside", "/mnt", "tmpfs", 0, "mode=0755")
        Path("/mnt/prefix").mkdir()
        kernel.mount(str(prefix), "/mnt/prefix", None, kernel.BIND | kernel.REC)
        kernel.mount("home", str(home), "tmpfs", 0, "mode=0755")
        prefix.mkdir(parents=True)
        kernel.mount("/mnt/prefix", str(prefix), None, kernel.BIND | kernel.REC)
    SOCKET.unlink(missing_ok=True)
    CANARY.mkdir(exist_ok=True)
    kernel.mount("canary", str(CANARY), "tmpfs", 0, f"mode=0777,uid={NOBODY},gid={NOBODY}")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ.update(HOME="/tmp", USER="nobody")


def main(lines: Path, level: str, user: bool) -> dict[str, str]:
    rows = {row["id"]: row for row in map(json.loads, lines.read_text(encoding="utf-8").splitlines())}
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False, capture_output=True)
    if user and os.geteuid() == 0:
        become_nobody()
    out = Path(tempfile.mkdtemp()) / "verdicts.jsonl"
    with canary_bed():
        began = time.monotonic()
        options = ["--timeout", "5", "--require", level, "--at-most", level]
        done = subprocess.run(
            [sys.executable, "-m", "grpo_math", "verify", "code", "--pairs", str(lines), "--out", str(out), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not out.exists():
            raise SystemExit(done.stderr)
        posts = [post for row in rows.values() for post in row.get("post", ()) if not post.startswith("max_wall_s")]
        wrong = {post: "violated" for post in check_post(posts, began)}
    for verdict in map(json.loads, out.read_text(encoding="utf-8").splitlines()):
        row, said = rows[verdict["id"]], f"{verdict['reason']}: {verdict['detail'][:300]}"
        if (verdict["reason"] == "correct") != row["expected"] or verdict["reward"] is None:
            wrong[verdict["id"]] = said
    shutil.rmtree(out.parent)
    return wrong


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["user"])))
