"""How fast and how large is a step here, and in TRL's GRPOTrainer? Same model, prompts and sizes; CPU, float32.

    python -m benchmarks.step                                     random weights; every completion has a signal
    python -m benchmarks.step --model runs/quickstart/base/model  the quickstart's base model
    python -m benchmarks.step --model ... --reward math           as in training: groups without a signal are skipped
    python -m benchmarks.step --vocabulary                        memory of one update at a vocabulary of 151,936

Each measurement is a process of its own; the contenders take turns, and ratios are taken within a round, so that a
machine that slows down slows all of them. Left out: GPUs, vLLM, several ranks, and start-up (the first step).
"""

# peak: the highest resident memory of the process during its steps; growth: that less what was resident before them

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.setting import MIB, ROOT, Result, Setting, Update
from grpo_math import config
from grpo_math.config_file import load_config
from grpo_math.small_model import character_tokenizer, small_model

VOCABULARY = 151_936  # Qwen2.5's and Qwen3's
OURS = "grpo-math"
LENGTHS_AGREE = 0.1  # mean completion lengths further apart than this share are no fair race


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if given.vocabulary:
            update = Update(large_vocabulary_model(folder), threads=given.threads, overrides=tuple(given.set))
            contenders = {OURS: update} | {trl_name(rows): replace(update, rows=rows) for rows in given.update_rows}
            print(update_table(rounds("update", contenders, given.rounds)))
            return
        setting = Setting(
            str(Path(given.model).resolve()) if given.model else new_model(folder),
            prompts=given.prompts,
            group_size=given.group_size,
            max_tokens=given.max_tokens,
            steps=given.steps,
            reward=given.reward,
            threads=given.threads,
            seed=given.seed,
            overrides=tuple(given.set),
        )
        for rows in given.trl_rows:
            if setting.samples % rows:
                raise SystemExit(f"--trl-rows {rows} does not divide the {setting.samples} samples of a step")
        contenders = {OURS: setting} | {trl_name(rows): replace(setting, rows=rows) for rows in given.trl_rows}
        if given.trl_defaults:
            contenders["TRL, its defaults"] = replace(setting, rows=8, defaults=True)
        results = rounds("step", contenders, given.rounds)
        same_work(results)
        print(step_table(results, setting))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a folder made by save_pretrained; without it a small model with random weights is made")
    add("--prompts", type=int, default=16)
    add("--group-size", type=int, default=16)
    add("--max-tokens", type=int, default=64)
    add("--steps", type=int, default=4, help="timed steps in each process, after one that is not")
    add("--rounds", type=int, default=3, help="processes of each contender, taking turns")
    add("--reward", choices=("hash", "math"), default="hash", help="hash: every group has a signal")
    add(
        "--trl-rows",
        type=int,
        nargs="+",
        default=[16, 64, 256],
        help="per_device_train_batch_size; each is a contender",
    )
    add("--trl-defaults", action="store_true", help="also TRL with its own defaults: 8 rows, checkpointing, bf16")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--seed", type=int, default=0)
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of this trainer alone")
    add("--vocabulary", action="store_true", help=f"one update at a vocabulary of {VOCABULARY:,}, 4,096 tokens")
    add("--update-rows", type=int, nargs="+", default=[64], help="TRL's rows there (64 is all)")
    return parser.parse_args(arguments)


def trl_name(rows: int) -> str:
    return f"TRL, {rows} rows"


def new_model(folder: str) -> str:
    sft = load_config(ROOT / "launch" / "arithmetic_sft.yaml")
    assert isinstance(sft, config.SFT)
    assert sft.model.new is not None
    tokenizer = character_tokenizer()
    for part in (small_model(sft.model.new, tokenizer, seed=0), tokenizer):
        part.save_pretrained(folder)
    return folder


def large_vocabulary_model(folder: str, vocabulary: int = VOCABULARY) -> str:
    """Two layers of width 64: nearly all the memory of an update is then the vocabulary's."""
    tokenizer = character_tokenizer()
    settings = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for part in (Qwen2ForCausalLM(settings), tokenizer):
        part.save_pretrained(folder)
    return folder


def rounds(kind: str, contenders: Mapping[str, Setting | Update], count: int) -> dict[str, list[Result]]:
    """`count` results of each contender, measured in turns."""
    results: dict[str, list[Result]] = {name: [] for name in contenders}
    for number in range(1, count + 1):
        for name, setting in contenders.items():
            result = measure("benchmarks.ours" if name == OURS else "benchmarks.with_trl", kind, setting)
            results[name].append(result)
            print(
                f"round {number}/{count}  {name:<18} {median(result.seconds):7.3f} s  peak {result.peak // MIB:5d} MiB",
                file=sys.stderr,
                flush=True,
            )
    return results


def measure(module: str, kind: str, setting: Setting | Update) -> Result:
    """One measurement in a process of its own."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(setting.threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", module, kind, json.dumps(asdict(setting)), str(out)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{module} ended with code {done.returncode}:\n{done.stderr[-4000:]}")
        return Result(**json.loads(out.read_text()))


def same_work(results: Mapping[str, list[Result]]) -> None:
    """Raises SystemExit where the contenders did not have the same prompts, or lengths too far apart to compare."""
    prompts = {name: of[0].prompts for name, of in results.items()}
    different = [name for name, ids in prompts.items() if ids != prompts[OURS]]
    if different:
        raise SystemExit(f"the prompts of {', '.join(different)} are not those of {OURS}")
    tokens = {name: mean_tokens(of) for name, of in results.items()}
    if max(tokens.values()) > (1 + LENGTHS_AGREE) * min(tokens.values()):
        raise SystemExit(f"tokens per step are too far apart to compare: {tokens}")


def mean_tokens(results: Sequence[Result]) -> float:
    tokens = [count for result in results for count in result.tokens]
    return sum(tokens) / len(tokens)


def step_table(results: Mapping[str, list[Result]], setting: Setting) -> str:
    """Markdown, to be pasted into RESULTS.md."""
    lines = [
        "| | samples/s (rounds) | s/step | generate | verify | update | tokens | peak MiB | growth MiB | workers MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, of in results.items():
        each = [setting.samples / median(result.seconds) for result in of]
        phases = [median([s for result in of for s in result.phases[p]]) for p in ("generate", "verify", "update")]
        cells = [
            f"{median(each):.0f} ({min(each):.0f} to {max(each):.0f})",
            *(f"{seconds:.3f}" for seconds in (setting.samples / median(each), *phases)),
            f"{mean_tokens(of):.0f}",
            memory_cells(of),
            f"{max(r.workers for r in of) / MIB:.0f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    others = [name for name in results if name != OURS]
    for name in others:
        speed = [
            median(theirs.seconds) / median(ours.seconds)
            for ours, theirs in zip(results[OURS], results[name], strict=True)
        ]
        lines.append(
            ("\n" if name == others[0] else "")
            + f"{OURS} : {name}   samples/s {median(speed):.2f} (rounds {min(speed):.2f} to {max(speed):.2f})   "
            + memory_ratios(results[OURS], results[name])
        )
    return "\n".join(lines)


def update_table(results: Mapping[str, list[Result]]) -> str:
    lines = ["| | s/update | peak MiB | growth MiB |", "|---|---|---|---|"]
    for name, of in results.items():
        lines.append(f"| {name} | {median(r.seconds[0] for r in of):.2f} | {memory_cells(of)} |")
    for name in results:
        if name != OURS:
            lines.append(f"\n{OURS} : {name}   {memory_ratios(results[OURS], results[name])}")
    return "\n".join(lines)


def memory_cells(results: Sequence[Result]) -> str:
    return f"{median(r.peak for r in results) / MIB:.0f} | {median(r.growth for r in results) / MIB:.0f}"


def memory_ratios(ours: Sequence[Result], theirs: Sequence[Result]) -> str:
    """Verifier processes count on our side: TRL's rewards run in its own process."""
    peak = median(r.peak + r.workers for r in ours) / median(r.peak + r.workers for r in theirs)
    growth = median(r.growth + r.workers for r in ours) / median(r.growth + r.workers for r in theirs)
    return f"peak memory {peak:.2f}, growth {growth:.2f} (with the verifiers' processes)"


if __name__ == "__main__":
    main()
