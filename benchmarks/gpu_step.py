"""The training step on a CUDA device: bfloat16 against float32, tokens/s, model FLOPs utilisation, peak memory.

    python -m benchmarks.gpu_step                              Qwen2.5's 0.5B and 1.5B architectures, random weights
    python -m benchmarks.gpu_step --models 0.5B --rows 32 --micro-batch-tokens 32768
    python -m benchmarks.gpu_step --device cpu --tiny          only to see that it runs

The step is the torch backend's own (bfloat16 autocast over float32 weights, AdamW, clipping), with gradient
checkpointing and without. Model FLOPs of a step, as PaLM (arXiv:2204.02311, appendix B) counts them, forward and
backward:

    6 P N  +  12 L A T N  +  6 V H M

N tokens in the rows, prompts too; M trained tokens, for which alone the head is computed; P the blocks' matrices; L
layers; A heads x head size; T tokens of a row, of which a causal kernel sees half; V x H the head. What is computed
twice comes on top for the hardware's FLOPs: the head's logits in the backward pass, 2 V H M, and with checkpointing the
blocks, (2 P + 4 L A T) N. Utilisation is that by seconds and by the card's dense bfloat16 peak. Left out: sampling
engines, several cards, real weights. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch

from benchmarks.gpu_step_side import Run, Shown, shape_of
from benchmarks.machine import described, table
from benchmarks.setting import MIB, ROOT
from grpo_math.model_size import Shape

# dense bfloat16 FLOP/s by what the card's name has in it, the first that fits; the makers' data sheets
PEAKS = (
    ("B200", 2250e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200", 989e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("H800", 989e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("A40", 150e12),
    ("A10", 125e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else ""
    peak = given.peak_tflops * 1e12 if given.peak_tflops else peak_of(card)
    shared = {
        "device": given.device,
        "rows": given.rows,
        "prompt_tokens": given.prompt_tokens,
        "tokens": given.tokens,
        "micro_batch_tokens": given.micro_batch_tokens,
        "chunk": given.chunk,
        "steps": given.steps,
        "threads": given.threads,
    }
    print(f"{card or 'CPU'}; {described(given.threads, 'torch', 'transformers')}")
    if card:
        said = f"{peak / 1e12:g} TFLOP/s" if peak else "a peak that is not in the table (--peak-tflops)"
        print(f"CUDA {torch.version.cuda}; the card has {said} in dense bfloat16.")
    print(
        f"\n{given.rows} rows of {given.prompt_tokens} + {given.tokens} tokens, micro-batches of "
        f"{given.micro_batch_tokens:,} tokens, logits of {given.chunk:,} tokens at a time; medians of {given.steps} "
        "steps after one that is not timed."
    )
    runs = {
        (model, recompute): measure(Run(model, recompute=recompute, parity=not recompute, **shared))
        for model in given.models
        for recompute in (False, True)
    }
    print("\nThe step\n")
    print(step_table({key: shown for key, shown in runs.items()}, Run(given.models[0], **shared), peak))
    print("\nbfloat16 against float32, nats by token\n")
    print(parity_table({model: runs[model, False] for model in given.models}))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", default=["0.5B", "1.5B"], help="of Qwen2.5; `tiny` is one of 2 layers")
    add("--device", default="cuda")
    add("--rows", type=int, default=16)
    add("--prompt-tokens", type=int, default=128)
    add("--tokens", type=int, default=896, help="trained tokens of each row")
    add("--micro-batch-tokens", type=int, default=8192)
    add("--chunk", type=int, default=2048, help="backend.logprob_chunk")
    add("--steps", type=int, default=5)
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--peak-tflops", type=float, help="dense bfloat16, of a card that is not in the table")
    add("--tiny", "--quick", dest="tiny", action="store_true", help="a model of 2 layers: only to see that it runs")
    given = parser.parse_args(arguments)
    if given.tiny:
        small = {"models": ["tiny"], "rows": 4, "prompt_tokens": 8, "tokens": 24, "micro_batch_tokens": 64}
        for name, value in (small | {"chunk": 16, "steps": 2}).items():
            setattr(given, name, value)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {given.device}, but torch {torch.__version__} sees no CUDA device")
    return given


def peak_of(card: str) -> float | None:
    return next((peak for name, peak in PEAKS if name in card), None)


def measure(run: Run) -> Shown:
    """One measurement in a process of its own; what does not fit into the card's memory is said, not raised."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(run.threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shown.json"
        command = [sys.executable, "-m", "benchmarks.gpu_step_side", json.dumps(asdict(run)), str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{run} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
        return Shown(**json.loads(out.read_text()))


def model_flops(shape: Shape, run: Run) -> float:
    """Of one step, forward and backward, nothing counted twice."""
    tokens, trained = run.rows * run.row_tokens, run.rows * run.tokens
    attention = 12 * shape.layers * shape.queries * run.row_tokens
    return tokens * (6 * shape.linear_parameters() + attention) + 6 * trained * shape.vocabulary * shape.hidden


def recomputed_flops(shape: Shape, run: Run, recompute: bool) -> float:
    """What the same step computes a second time."""
    tokens, trained = run.rows * run.row_tokens, run.rows * run.tokens
    blocks = 2 * shape.linear_parameters() + 4 * shape.layers * shape.queries * run.row_tokens
    return tokens * blocks * recompute + 2 * trained * shape.vocabulary * shape.hidden


def step_table(runs: dict[tuple[str, bool], Shown], run: Run, peak: float | None) -> str:
    rows = []
    for (model, recompute), shown in runs.items():
        name = f"{model}, {'checkpointing' if recompute else 'all kept'}"
        if shown.out_of_memory:
            rows.append([name, *["out of memory"], *["-"] * 7])
            continue
        shape, seconds = shape_of(model), median(shown.seconds)
        flops = model_flops(shape, run)
        done = flops + recomputed_flops(shape, run, recompute)
        rows.append(
            [
                name,
                f"{seconds:.3f} ({min(shown.seconds):.3f} to {max(shown.seconds):.3f})",
                f"{run.rows * run.row_tokens / seconds:,.0f}",
                f"{run.rows * run.tokens / seconds:,.0f}",
                f"{flops / 1e12:.2f}",
                f"{flops / seconds / peak:.1%}" if peak else "-",
                f"{done / seconds / peak:.1%}" if peak else "-",
                f"{shown.before / MIB:,.0f}",
                f"{shown.peak / MIB:,.0f}",
            ]
        )
    head = ["", "s/step", "tokens/s", "trained/s", "model TFLOP", "MFU", "HFU", "held MiB", "peak MiB"]
    return table(head, rows)


def parity_table(runs: dict[str, Shown]) -> str:
    rows = [
        [model, name, f"{values['nats']:.2f}", *(f"{values[key]:.2e}" for key in ("mean", "max"))]
        for model, shown in runs.items()
        for name, values in shown.parity.items()
    ]
    return table(["", "", "mean of -logprob", "mean gap", "max gap"], rows)


if __name__ == "__main__":
    main()
