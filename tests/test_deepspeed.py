"""DeepSpeed trains as plain torch does: the real one, with gloo, in one process, two and four.

The cases are in deepspeed_run.py: starting DeepSpeed takes longer than most of them, so each number of processes is
started once and runs all of its cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from grpo_math import config
from grpo_math.backend.dealing import deal
from grpo_math.backend.deepspeed_config import TOP_LEVEL, deepspeed_config
from grpo_math.backend.states import Progress, open_states, owners, write_index, write_share
from grpo_math.batch import pad_rows
from grpo_math.types import UserError
from tests.tiny import completion, prompt, tiny_policy

TWO = [
    "every_stage_and_reduction_as_torch",
    "few_rows_and_none",
    "recomputation_offload_and_entropy_as_torch",
    "bfloat16_learns",
    "adapters_as_torch",
    "references_as_torch",
    "goes_on_as_if_it_had_not_stopped",
    "offloaded_goes_on_too",
    "damaged_checkpoints_are_refused_by_name",
    "a_bad_gradient_on_one_rank_is_skipped_on_all",
    "weights_are_split_while_they_are_read",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deepspeed")


def run(folder: Path, ranks: int) -> dict[str, str]:
    """{case: "ok, ..." or what went wrong}"""
    report = folder / f"report-{ranks}.json"
    if not report.exists():
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        process = subprocess.run(
            [sys.executable, *launcher, "-m", "tests.deepspeed_run", str(folder)],
            env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        (folder / f"output-{ranks}.txt").write_text(process.stdout + process.stderr)
        assert report.exists(), process.stderr[-4000:]
    return json.loads(report.read_text())


pytest.importorskip("deepspeed")


@pytest.mark.slow
@pytest.mark.parametrize("case", TWO)
def test_two_processes(folder, case):
    assert run(folder, 2).get(case, "did not run").startswith("ok"), run(folder, 2).get(case)


@pytest.mark.slow
def test_one_process(folder):
    run(folder, 2)  # wrote the checkpoints
    report = run(folder, 1)
    assert set(report) == {"one_process_as_torch", "any_ranks_and_stage_read_it"}
    assert all(text.startswith("ok") for text in report.values()), report


@pytest.mark.slow
def test_four_processes_read_what_two_wrote(folder):
    run(folder, 2)
    report = run(folder, 4)
    assert set(report) == {"any_ranks_and_stage_read_it"}
    assert all(text.startswith("ok") for text in report.values()), report


@pytest.mark.slow
def test_it_says_nothing(folder):
    """Neither while it trains nor as it ends. (triton's lines on what it leaked, at the end of any process that
    imports it, are not ours to silence.)"""
    for ranks in (1, 2):
        run(folder, ranks)
        said = (folder / f"output-{ranks}.txt").read_text()
        assert said.partition("nanobind: leaked")[0] == ""


@cache
def asked():
    return prompt(tiny_policy(), "1")


def a_batch(lengths, masked=()):
    rows = [(asked(), completion([5] * n)) for n in lengths]
    return pad_rows(rows, [i not in masked for i in range(len(lengths))], 0)


@pytest.mark.parametrize("lengths", [[], [3], [9, 1, 1], [4] * 8, [20, 1, 2, 19, 7, 7, 3], list(range(1, 40))])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("budget", [1, 24, 1000])
def test_micro_batches_are_dealt_evenly_and_each_row_once(lengths, ranks, budget):
    batch = a_batch(lengths)
    micro_batches = deal(batch, budget, ranks)
    assert len({len(mine) for mine in micro_batches}) == 1
    assert sorted(
        row for mine in micro_batches for micro_batch in mine if not micro_batch.extra for row in micro_batch.rows
    ) == list(range(len(lengths)))
    for mine in micro_batches:
        for micro_batch in mine:
            size = len(micro_batch.rows) * int(batch.lengths[micro_batch.rows].max())
            assert len(micro_batch.rows) == 1 or size <= budget
    assert sum(micro_batch.extra for mine in micro_batches for micro_batch in mine) < ranks


def test_ranks_have_similar_work():
    batch = a_batch([2 * n for n in range(1, 49)])
    work = [
        sum(len(micro_batch.rows) * int(batch.lengths[micro_batch.rows].max()) for micro_batch in mine)
        for mine in deal(batch, 100, 4)
    ]
    assert max(work) < 1.15 * min(work)


def settings(tmp_path, text=None, optimizer=None, **options):
    if text is not None:
        (tmp_path / "ds.json").write_text(text)
        options["config"] = str(tmp_path / "ds.json")
    dtype = options.pop("dtype", "float32")
    spec = config.Backend(name="deepspeed", dtype=dtype, deepspeed=config.DeepSpeed(**options))
    return deepspeed_config(spec, optimizer or config.Optimizer())


def test_a_deepspeed_file_is_merged_in(tmp_path):
    text = """{"zero_optimization": {"stage": "auto", "overlap_comm": true, "reduce_bucket_size": 1000,
      "offload_optimizer": {"device": "cpu", "pin_memory": true}, "stage3_prefetch_bucket_size": "auto"},
      "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1,
      "bf16": {"enabled": "auto"}, "fp16": {"enabled": false}, "wall_clock_breakdown": true,
      "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "eps": 1e-8}}}"""
    merged = settings(tmp_path, text, zero=2, offload_optimizer=True)
    assert merged["zero_optimization"] == {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": 1000,
        "allgather_bucket_size": 50_000_000,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
    }
    assert merged["wall_clock_breakdown"] is True
    assert merged["train_micro_batch_size_per_gpu"] == 1
    assert not {"train_batch_size", "optimizer", "fp16"} & merged.keys()
    assert "auto" not in json.dumps(merged)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"zero_optimization": {"stage": 3}}', ("zero_optimization.stage=3", "backend.deepspeed.zero", "2")),
        ('{"gradient_clipping": 0.5}', ("gradient_clipping=0.5", "optimizer.max_grad_norm", "1.0")),
        ('{"bf16": {"enabled": true}}', ("bf16.enabled=true", "backend.dtype")),
        ('{"fp16": {"enabled": true}}', ("fp16.enabled=true", "backend.dtype")),
        ('{"train_batch_size": 64}', ("train_batch_size=64", "prompts_per_step")),
        ('{"gradient_accumulation_steps": 4}', ("gradient_accumulation_steps=4", "micro_batch_tokens")),
        ('{"optimizer": {"type": "Adam"}}', ('optimizer.type="Adam"', "AdamW")),
        ('{"optimizer": {"params": {"lr": 0.1}}}', ("optimizer.params.lr=0.1", "1e-06")),
        ('{"scheduler": {"type": "WarmupLR"}}', ("scheduler=", "optimizer.schedule")),
        ('{"zero_optimization": {"offload_param": {"device": "nvme"}}}', ("offload_param.device", "nvme")),
        ('{"gradient_allreduce_op": "sum"}', ("gradient_allreduce_op", "mean over ranks")),
        ('{"gradient_cliping": 1.0}', ("gradient_cliping", "did you mean gradient_clipping?")),
        ("[]", ("no JSON object",)),
        ("{", ("cannot be read as JSON",)),
    ],
)
def test_a_deepspeed_file_that_contradicts_is_refused(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        settings(tmp_path, text)
    assert all(word in str(caught.value) for word in (str(tmp_path / "ds.json"), *words)), caught.value


def test_a_missing_deepspeed_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"backend\.deepspeed\.config=.*nowhere\.json"):
        settings(tmp_path, config=str(tmp_path / "nowhere.json"))


def test_bfloat16_adds_gradients_up_in_float32_where_deepspeed_can(tmp_path):
    for zero in (0, 1, 2, 3):
        found = settings(tmp_path, zero=zero, dtype="bfloat16")
        assert found["bf16"] == {"enabled": True}
        assert ("data_types" in found) == (zero > 0)


def test_the_keys_are_those_that_deepspeed_asks_for():
    code = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.runtime.config as c
class Asked(dict):
    seen = set()
    def get(self, key, default=None): self.seen.add(key); return super().get(key, default)
    def __contains__(self, key): self.seen.add(key); return super().__contains__(key)
    def __copy__(self): return Asked(self)
c.DeepSpeedConfig(Asked(train_micro_batch_size_per_gpu=1))
print(" ".join(Asked.seen - set(c._REMOVED_TOP_LEVEL_CONFIG_KEYS)))
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(asked) > 30
    assert set(asked) - TOP_LEVEL <= {"quantize_training"}  # no longer does anything


def test_states_are_shared_out_by_size():
    assert owners({"a": 10, "b": 1, "c": 1, "d": 7}, 2) == {"a": 0, "b": 1, "c": 1, "d": 1}


def test_a_state_that_is_listed_but_not_there_is_named(tmp_path):
    write_share(tmp_path, 0, 1, {"exp_avg/a": torch.ones(2)})
    write_index(tmp_path, {"a": 0, "b": 0}, ["exp_avg"], 1, Progress(3, 4, 1))
    store, progress = open_states(tmp_path)
    assert progress == Progress(3, 4, 1)
    with pytest.raises(UserError, match=r"states-00001-of-00001\.safetensors: has no tensor exp_avg/b"), store:
        pass
