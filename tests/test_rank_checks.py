"""What two real ranks find out about one another, and what is said of facts that one machine cannot show."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo_math import config, rank_checks
from grpo_math.memory_report import GIB
from grpo_math.rank_checks import Facts, check_memory, check_port, check_ranks, devices_differ
from grpo_math.ranks import Ranks
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import UserError

ROOT = Path(__file__).parent.parent
# each scenario is one call of check_ranks on both ranks; what came of it goes to a file for each rank
SCRIPT = """
import json, os, sys, time
from grpo_math import config, rank_checks
from grpo_math.rank_checks import check_ranks
from grpo_math.ranks import join
from grpo_math.types import UserError

ranks = join(60)
second = ranks.rank == 1
said = {}

def cfg(**values):
    base = {"run_dir": "runs/one", "model": {"path": "m"}, "task": "arithmetic", "backend": {"name": "deepspeed"}}
    return config.GRPO.model_validate(base | values)

def scenario(name, settings, deadline_s=30.0):
    try:
        check_ranks(ranks, settings, deadline_s)
        said[name] = "agree"
    except UserError as error:
        said[name] = str(error)
    with open(f"said-{ranks.rank}.json", "w") as file:
        json.dump(said, file)

scenario("good", cfg())
scenario("settings", cfg(steps=7 if second else 8))
if second:
    rank_checks.__version__ = "0.0.1"
scenario("versions", cfg())
rank_checks.__version__ = "0.1.0"
reads, rank_checks.SEEN_S = rank_checks._reads, 0.5
if second:
    rank_checks._reads = lambda file: None
scenario("blind", cfg())
rank_checks._reads = reads
scenario("no folder", cfg(run_dir="m/config.json/run"))
if second:
    rank_checks._check_reduce = lambda *_: time.sleep(2.5)  # a rank that is stuck between the checks and the sum
scenario("stuck", cfg(), 1.0)
if second:
    time.sleep(2)
else:
    scenario("absent", cfg(), 1.0)
"""


def settings(**values: Any) -> config.GRPO:
    return config.GRPO.model_validate({"run_dir": "run", "model": {"path": "m"}, "task": "arithmetic"} | values)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained("m")
    small_model(config.NewModel(), tokenizer, seed=0).save_pretrained("m")
    return tmp_path


def test_two_ranks(folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPT)
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1))
    host = socket.gethostname()
    assert "2 ranks on 1 machines agree" in result.stdout
    assert first["good"] == second["good"] == "agree"
    said = f"the configuration of rank 1 on {host} is not that of rank 0 on {host}: `steps: 7` there, `steps: 8` here"
    assert said in first["settings"]
    assert first["settings"] == second["settings"]  # all ranks say the same, and none waits for another
    assert f"but 0.0.1 on rank 1 on {host}; give all machines" in first["versions"]
    assert first["versions"] == second["versions"]
    assert f"run_dir=runs/one: rank 1 on {host} does not see what rank 0 on {host} writes" in first["blind"]
    assert first["blind"] == second["blind"]
    assert "cannot write there" in first["no folder"]
    assert first["no folder"] == second["no folder"]
    assert (
        f"a sum over the 2 ranks did not come back to rank 0 on {host} within 1 seconds; rank 1 did not"
        in first["stuck"]
    )
    assert f"rank 1 of 2 did not come to the checks within 1 seconds, as rank 0 on {host} did" in first["absent"]
    left = {path.name for path in set(folder.rglob("*")) - set(before)}
    assert left == {"said-0.json", "said-1.json"}  # no token, and no folder that was not there


def test_alone_there_is_nothing_to_agree_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_ranks(Ranks(), settings())
    assert capsys.readouterr().out == ""
    assert not (folder / "run").exists()


def fact(rank: int = 0, **values: Any) -> Facts:
    base = Facts(rank, "a", rank, {"torch": "2"}, "x: 1\n", 0, "", 0, 64 * GIB)
    return replace(base, **values)


def test_each_rank_has_a_device_of_its_own() -> None:
    assert devices_differ([fact(0), fact(1)]) == []
    assert devices_differ([fact(0, devices=2, device="u0"), fact(1, devices=2, device="u1")]) == []
    assert devices_differ([fact(0, devices=2, device="u0"), fact(1, host="b", devices=2, device="u0")]) == []
    (same,) = devices_differ([fact(0, devices=1, device="u0"), fact(1, devices=1, device="u0")])
    assert "rank 0 on a and rank 1 on a have the same GPU u0" in same
    (none,) = devices_differ([fact(0, devices=1, device="u0"), fact(1, devices=1)])
    assert "rank 1 on a is number 1 there, and sees 1 GPUs" in none


def test_weights_that_cannot_fit_are_refused() -> None:
    backend = {"name": "deepspeed", "dtype": "bfloat16", "gradient_checkpointing": True}
    big = settings(model={"path": "Qwen/Qwen2.5-7B"}, backend=backend)
    with pytest.raises(UserError, match=r"a, with 8 ranks and 64.00 GiB of memory free: the weights alone take 113.48"):
        check_memory([fact(rank) for rank in range(8)], big, 8)
    devices = [fact(rank, devices=8, device=f"u{rank}", device_free=10 * GIB) for rank in range(8)]
    with pytest.raises(UserError, match=r"rank 0 on a, whose GPU has 10.00 GiB free: the weights alone take 14.19 GiB"):
        check_memory(devices, big, 8)
    roomy = [replace(one, device_free=(20 if one.rank == 3 else 79) * GIB) for one in devices]
    (warning,) = check_memory(roomy, big, 8)
    assert warning.startswith("warning: rank 3 on a, whose GPU has 20.00 GiB free: the run is estimated to take ")
    assert check_memory(roomy, settings(model={"path": "org/unknown"}), 8) == []


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} cannot be listened on at 127.0.0.1 .*give another"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
    with pytest.raises(UserError, match=r"MASTER_ADDR=no-such-host.invalid"):
        check_port("no-such-host.invalid", port)


def test_versions_of_this_machine_are_found() -> None:
    found = rank_checks.facts(Ranks(), settings()).versions
    assert found["torch"] != "missing"
    assert rank_checks._version("no-such-package") == "missing"
