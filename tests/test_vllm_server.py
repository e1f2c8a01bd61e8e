"""The server engine against vLLM's own servers, started by grpo-math's own `serve`: the numbers, and what goes wrong.

Two supervisors with one server each start once for the whole file, a model of 100,000 parameters in each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from grpo_math import config
from grpo_math.lora import engine_weights
from grpo_math.policy import Policy, load_policy
from grpo_math.serve import serve
from grpo_math.serving.command import flags, server_arguments, server_environment
from grpo_math.serving.process import ServerProcess
from grpo_math.serving.supervisor import GIVE_UP_AFTER, Post, Supervisor
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import Completion, EngineError, Prompt, Sampling, UserError
from tests.test_kill import ZERO2, start, write_config
from tests.tiny import prompt

pytestmark = pytest.mark.slow
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm")

# vLLM's attention on the CPU wants heads of 32 numbers
SHAPE = config.NewModel(hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=64, context=1024)
SERVE = """
import json, sys
from grpo_math import config
from grpo_math.serve import serve
serve(config.GRPO(**json.loads(sys.argv[1])), port=int(sys.argv[2]))
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def group_of(pid: int) -> list[int]:
    """The processes of a process group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(what: Callable[[], object], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.1)


class Served:
    """One `serve`, its server's URL, and the process group that the server is in."""

    def __init__(self, model: Path, log: Path, lora: dict[str, object] | None = None) -> None:
        [port] = free_ports(1)
        self.url, self.log = f"http://127.0.0.1:{port}", log
        cfg = {"run_dir": str(log.parent), "task": "arithmetic", "model": {"path": str(model), "lora": lora or {}}}
        cfg["rollout"] = {"engine": "vllm_server", "server": {"urls": [self.url]}}
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, json.dumps(cfg), str(port)], stdout=output, stderr=output, env=env
            )

    def ready(self) -> Served:
        wait_for(lambda: "ready: train with" in self.said() or self.process.poll() is not None, 400)
        assert self.process.poll() is None, self.said()
        return self

    def said(self) -> str:
        return self.log.read_text()

    @property
    def server(self) -> int:
        """The server's own process, which leads its group."""
        [pid] = children(self.process.pid)
        return pid

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokenizer = character_tokenizer()
    small_model(SHAPE, tokenizer, seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    logs = tmp_path_factory.mktemp("serve")
    # adapters on the second: merged weights must reach such a server too
    lora = {"rank": 4, "sync": "adapter"}
    servers = [Served(model_folder, logs / "a.log"), Served(model_folder, logs / "b.log", lora)]
    try:
        yield servers[0].ready(), servers[1].ready()
    finally:
        for served in servers:
            served.end()


def policy_of(folder: Path, lora: config.LoRA | None = None) -> Policy:
    return load_policy(config.Model(path=str(folder), lora=lora or config.LoRA()), torch.device("cpu"))


def make_engine(policy: Policy, urls: list[str], folder: Path, **server: object):
    from grpo_math.rollout.vllm_server import VLLMServerEngine

    spec = {"urls": urls, "start_timeout_s": 20, "patience_s": 60, "request_timeout_s": 60, **server}
    return VLLMServerEngine(policy, config.Rollout.model_validate({"engine": "vllm_server", "server": spec}), folder)


def disturb(policy: Policy, amount: float = 0.05) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=amount)


@torch.no_grad()
def gap(policy: Policy, prompts: list[Prompt], groups: list[list[Completion]], temperature: float) -> float:
    """The largest |sampler's - transformers' own| log-probability."""
    worst = 0.0
    for asked, group in zip(prompts, groups, strict=True):
        for completion in group:
            ids = torch.tensor([asked.token_ids + completion.token_ids])
            logprobs = (policy.model(ids).logits[0].float() / temperature).log_softmax(-1)
            own = logprobs[len(asked.token_ids) - 1 : -1].gather(-1, ids[0, len(asked.token_ids) :, None])[:, 0]
            worst = max(worst, float((own - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def prompts_for(policy: Policy, count: int) -> list[Prompt]:
    return [prompt(policy, f"{i}+{i}=") for i in range(count)]


# --- the numbers -----------------------------------------------------------------------------------------------------


@needs_vllm
def test_adapters_reach_the_server_as_they_are_or_merged(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path
) -> None:
    # in this order, and before any other test: an adapter needs the weights below it as the server was started with
    for sync in ("adapter", "merged"):
        lora = config.LoRA(rank=4, sync=sync)
        policy = policy_of(model_folder, lora)
        prompts = prompts_for(policy, 4)
        engine = make_engine(policy, [pair[1].url], tmp_path / "weights")
        for version in range(3):
            disturb(policy, 0.1)
            engine.update_weights(engine_weights(policy.model, lora), version)
            groups = engine.generate(prompts, Sampling(n=2, max_tokens=16, seed=version))
            assert {c.policy_version for group in groups for c in group} == {version}
            assert gap(policy, prompts, groups, 1.0) < 1e-5
        engine.close()
    lora = config.LoRA(rank=4, sync="adapter")
    engine = make_engine(policy_of(model_folder, lora), [pair[1].url], tmp_path / "weights")
    with pytest.raises(UserError, match="has weights of another run"):
        engine.update_weights(engine_weights(engine.policy.model, lora), 1)


@needs_vllm
def test_logprobs_equal_the_trainers_after_every_update(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path
) -> None:
    policy = policy_of(model_folder)
    engine = make_engine(policy, [served.url for served in pair], tmp_path / "weights")
    prompts = prompts_for(policy, 6)
    with pytest.raises(RuntimeError, match="update_weights comes first"):
        engine.generate(prompts, Sampling(1, 4))
    for version, temperature in enumerate((0.5, 1.0, 1.3, 1.0, 0.0)):
        disturb(policy)
        engine.update_weights(engine_weights(policy.model, config.LoRA()), version)
        sampling = Sampling(n=3, max_tokens=24, temperature=temperature, seed=version)
        groups = engine.generate(prompts, sampling)
        assert [len(group) for group in groups] == [3] * 6
        assert {c.policy_version for group in groups for c in group} == {version}
        # at temperature 0 it is log p at temperature 1, as the engine of transformers has it
        assert gap(policy, prompts, groups, temperature or 1.0) < 1e-4
    assert len(list((tmp_path / "weights").iterdir())) == 2  # versions kept
    assert engine.generate([], sampling) == []
    engine.close()
    assert not list((tmp_path / "weights").iterdir())


@needs_vllm
def test_completions_mean_what_they_mean_elsewhere(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path
) -> None:
    policy = policy_of(model_folder)
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, 70, 80, 90]
    engine = make_engine(policy, [served.url for served in pair], tmp_path / "weights")
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 7)
    prompts = prompts_for(policy, 4)
    groups = engine.generate(prompts, Sampling(n=80, max_tokens=40, seed=1))  # two requests each
    flat = [c for group in groups for c in group]
    assert [len(group) for group in groups] == [80] * 4
    for c in flat:
        stops = [i for i in c.token_ids if i in policy.eos_ids]
        assert (c.finish_reason == "stop") == bool(stops)
        assert c.token_ids[-1:] == tuple(stops) if stops else len(c.token_ids) == 40
        assert c.text == policy.tokenizer.decode(list(c.token_ids), skip_special_tokens=True)
    assert {i for c in flat for i in c.token_ids[-1:]} >= {70, 80, 90}  # each of the stop tokens stops
    assert len({c.token_ids for c in flat}) > 300  # siblings differ, across the cut too
    # the same seed gives the same tokens in any company, another seed others
    assert engine.generate(prompts[1:2], Sampling(n=8, max_tokens=40, seed=1))[0] == groups[1][:8]
    assert engine.generate(prompts[1:2], Sampling(n=8, max_tokens=40, seed=2))[0] != groups[1][:8]
    # many draws of one token follow the model's own distribution
    draws = engine.generate(prompts[:1], Sampling(n=4000, max_tokens=1, seed=3))[0]
    with torch.no_grad():
        expected = 4000 * policy.model(torch.tensor([prompts[0].token_ids])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in draws]), minlength=len(expected))
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < len(expected) + 5 * (2 * len(expected)) ** 0.5
    engine.close()


# --- what goes wrong -------------------------------------------------------------------------------------------------


@needs_vllm
def test_a_server_with_other_weights_is_named_and_mended(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = policy_of(model_folder)
    engine = make_engine(policy, [served.url for served in pair], tmp_path / "weights")
    prompts = prompts_for(policy, 6)
    disturb(policy)
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
    ask(pair[0].url, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(model_folder)}})
    ask(pair[0].url, "/update_weight_version", {"new_version": "default"})
    ask(pair[1].url, "/pause?mode=abort", None)  # as a trainer that died just then leaves it
    groups = engine.generate(prompts, Sampling(n=4, max_tokens=16))
    assert gap(policy, prompts, groups, 1.0) < 1e-4
    said = capfd.readouterr().err
    assert f"server {pair[0].url} has the weights default instead of full/" in said
    assert f"server {pair[0].url} is in use again, with the weights of version 1" in said
    # somebody else's weights while it samples: what was sampled with them is thrown away
    timer = threading.Timer(0.4, ask, (pair[0].url, "/update_weight_version", {"new_version": "full/other.1/9"}))
    timer.start()
    groups = engine.generate(prompts, Sampling(n=16, max_tokens=400))
    timer.join()
    assert {c.policy_version for group in groups for c in group} == {1}
    assert "the weights full/other.1/9 instead of full/" in capfd.readouterr().err
    engine.close()


@needs_vllm
def test_a_server_that_hangs_is_named_and_its_prompts_go_to_the_other(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = policy_of(model_folder)
    urls = [served.url for served in pair]
    engine = make_engine(policy, urls, tmp_path / "weights", request_timeout_s=4)
    prompts = prompts_for(policy, 4)
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
    stopped = group_of(pair[1].server)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        groups = engine.generate(prompts, Sampling(n=4, max_tokens=16))
        assert time.monotonic() - start < 15
        assert [len(group) for group in groups] == [4] * 4
        said = capfd.readouterr().err
        assert said.count(urls[1]) == 1
        assert "did not answer /weight_info within 4 s" in said
        # an update that it cannot take is not lost on it
        disturb(policy)
        engine.update_weights(engine_weights(policy.model, config.LoRA()), 2)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    groups = engine.generate(prompts, Sampling(n=4, max_tokens=16))
    assert gap(policy, prompts, groups, 1.0) < 1e-4
    wait_for(lambda: engine.generate(prompts, Sampling(n=4, max_tokens=64)) and not engine.servers[1].trouble, 20)
    engine.close()


@needs_vllm
def test_garbage_is_not_taken_for_completions(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = policy_of(model_folder)
    prompts = prompts_for(policy, 6)
    with Between(pair[0].url) as between:
        engine = make_engine(policy, [between.url, pair[1].url], tmp_path / "weights")
        engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
        for text, complaint in [
            ("<html>busy</html>", "answers /inference/v1/generate with '<html>"),
            ('{"choices": []}', "gave 0 completions where 2 were asked for"),
            (None, "gave log-probabilities that do not belong to its tokens"),
        ]:
            between.instead = text or '{"choices": [%s, %s]}' % tuple(  # noqa: UP031
                json.dumps(
                    {
                        "index": i,
                        "finish_reason": "length",
                        "token_ids": [5, 6],
                        "weight_versions": [],
                        "logprobs": {
                            "content": [{"token_id": 5, "logprob": -1.0}, {"token_id": 6, "logprob": -9999.0}]
                        },
                    }
                )
                for i in range(2)
            )
            groups = engine.generate(prompts, Sampling(n=2, max_tokens=8))
            assert gap(policy, prompts, groups, 1.0) < 1e-4
            assert complaint in capfd.readouterr().err
            between.instead = None
            engine.generate(prompts, Sampling(n=2, max_tokens=8))
        engine.close()


@needs_vllm
def test_without_any_server_the_run_ends(pair: tuple[Served, Served], model_folder: Path, tmp_path: Path) -> None:
    policy = policy_of(model_folder)
    with Between(pair[0].url) as first, Between(pair[1].url) as second:
        urls = [first.url, second.url]
        engine = make_engine(policy, urls, tmp_path / "weights", patience_s=3, request_timeout_s=5)
        engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
        timer = threading.Timer(0.5, lambda: [first.close(), second.close()])
        timer.start()
        start = time.monotonic()
        with pytest.raises(EngineError, match=r"no server has worked for rollout.server.patience_s=3 s") as error:
            engine.generate(prompts_for(policy, 12), Sampling(n=16, max_tokens=800))
        assert time.monotonic() - start < 20
        timer.join()
        assert all(f"{url} could not be asked for" in str(error.value) for url in urls)


@needs_vllm
def test_weights_wait_for_the_generation_in_flight(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path
) -> None:
    policy = policy_of(model_folder)
    engine = make_engine(policy, [served.url for served in pair], tmp_path / "weights")
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
    groups: list[list[Completion]] = []
    sampling = Sampling(n=8, max_tokens=200)
    thread = threading.Thread(target=lambda: groups.extend(engine.generate(prompts_for(policy, 8), sampling)))
    thread.start()
    time.sleep(0.3)
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 2)
    assert {c.policy_version for group in groups for c in group} == {1}
    thread.join()
    engine.spec = engine.spec.model_copy(update={"request_timeout_s": 0.2})
    with engine.lock, pytest.raises(EngineError, match=r"update_weights waited rollout.server.request_timeout_s=0.2 s"):
        engine.update_weights(iter(()), 3)
    engine.close()


RANKS = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
from grpo_math import config
from grpo_math.lora import engine_weights
from grpo_math.policy import load_policy
from grpo_math.ranks import join
from grpo_math.rollout.shared import SharedEngine
from grpo_math.rollout.vllm_server import VLLMServerEngine
from grpo_math.types import Sampling
from tests.tiny import prompt
ranks = join(60.0)
policy = load_policy(config.Model(path=sys.argv[1]), torch.device("cpu"))
spec = config.Rollout(engine="vllm_server", server={"urls": sys.argv[3:], "start_timeout_s": 20})
engine = SharedEngine(VLLMServerEngine(policy, spec, Path(sys.argv[2]), ranks), ranks)
for version in (4, 5):
    engine.update_weights(engine_weights(policy.model, config.LoRA()), version)
    groups = engine.generate([prompt(policy, f"{i}+{i}=") for i in range(5)], Sampling(n=2, max_tokens=8))
    assert [len(group) for group in groups] == [2] * 5
    assert {c.policy_version for group in groups for c in group} == {version}
# in one piece: the other rank writes into the same pipe
sys.stdout.write(f"rank {ranks.rank} {hash(tuple(c.token_ids for group in groups for c in group))}\\n")
engine.close()
"""


@needs_vllm
def test_two_ranks_share_the_servers(pair: tuple[Served, Served], model_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_ports(1)[0]}"),
            *(str(script), str(model_folder), str(tmp_path / "weights"), *(served.url for served in pair)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("rank")]
    assert sorted(line[1] for line in lines) == ["0", "1"]
    assert len({line[2] for line in lines}) == 1  # every rank has all completions


@needs_vllm
@pytest.mark.slow
def test_a_run_of_two_ranks_samples_the_next_step_while_it_trains(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path
) -> None:
    """DeepSpeed on two processes, one server, a staleness of 1, and weights that change enough for a gap to show."""
    path, log = write_config(tmp_path, model_folder), tmp_path / "log"
    settings = (
        *("rollout.engine=vllm_server", f"rollout.server.urls=[{pair[0].url}]", "run.staleness=1"),
        *("correction=token_truncate", "steps=4", "optimizer.learning_rate=1e-2"),
    )
    assert start(path, 2, (*ZERO2, *settings), log).wait(timeout=240) == 0, log.read_text()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["sampler/staleness"] for row in metrics] == [0, 1, 1, 1]
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert [{row["policy_version"] for row in rows if row["step"] == step} for step in range(1, 5)] == [
        {0},
        {0},
        {1},
        {2},
    ]
    # steps 1 and 2 have the same sampling weights, those that training started from
    assert metrics[0]["sampler/gap"] < 1e-4
    assert metrics[2]["sampler/gap"] > 1e-4


# --- what is refused before anything is trained ----------------------------------------------------------------------


@needs_vllm
def test_servers_that_do_not_fit_are_refused(pair: tuple[Served, Served], model_folder: Path, tmp_path: Path) -> None:
    policy = policy_of(model_folder)
    [port] = free_ports(1)
    with pytest.raises(UserError, match=f"http://127.0.0.1:{port} could not be asked.*grpo-math serve"):
        make_engine(policy, [f"http://127.0.0.1:{port}"], tmp_path, start_timeout_s=0.5)
    with Between(pair[0].url) as between:
        between.instead = "<html>hello</html>"
        between.everywhere = True
        with pytest.raises(
            UserError, match=rf"{between.url}, which is no vLLM server; start the servers with `grpo-math"
        ):
            make_engine(policy, [between.url], tmp_path)
        between.instead = '{"version": "0.11.2"}'
        with pytest.raises(UserError, match=r"runs vLLM 0.11.2, and this release works with 0.32"):
            make_engine(policy, [between.url], tmp_path)
    tokenizer = character_tokenizer()
    for change, complaint in [
        ({"context": 512}, "reads 1024 tokens, and model.path reads 512"),
        ({}, "knows a token 2"),
    ]:
        other = tmp_path / f"other{len(change)}"
        model = small_model(SHAPE.model_copy(update=change), tokenizer, seed=0)
        if not change:
            model.resize_token_embeddings(len(tokenizer))
            policy_tokens = policy_of(model_folder)
            policy_tokens.model.get_input_embeddings().num_embeddings -= 1
            with pytest.raises(UserError, match=complaint):
                make_engine(policy_tokens, [pair[0].url], tmp_path)
            continue
        model.save_pretrained(other)
        tokenizer.save_pretrained(other)
        with pytest.raises(UserError, match=complaint):
            make_engine(policy_of(other), [pair[0].url], tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"rollout.server.transfer=nccl sends weights from a CUDA device"):
            make_engine(policy, [pair[0].url], tmp_path, transfer="nccl")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"rollout.server.folder=.*file.* cannot be written"):
        make_engine(policy, [pair[0].url], tmp_path / "file" / "weights")
    engine = make_engine(policy, [pair[0].url], tmp_path / "weights")
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 1)
    with pytest.raises(UserError, match=r"do not fit into the 1024 tokens"):
        engine.generate(prompts_for(policy, 1), Sampling(1, 1024))
    engine.close()


@needs_vllm
def test_a_taken_port_is_named(model_folder: Path) -> None:
    cfg = config.GRPO.model_validate({"run_dir": "x", "task": "arithmetic", "model": str(model_folder)})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is taken"):
            serve(cfg, port=port)
        with pytest.raises(UserError, match="give an address of this machine"):
            serve(cfg, host="no such host", port=port)


def test_the_servers_options(model_folder: Path) -> None:
    base = {"run_dir": "x", "task": "arithmetic", "model": str(model_folder)}
    cfg = config.GRPO.model_validate({**base, "rollout": {"vllm": {"options": {"max-model-len": 99, "seed": 5}}}})
    words = server_arguments(cfg, "127.0.0.1", 8000, cuda=False)
    assert words[words.index("--max-model-len") + 1] == "99"
    assert words[words.index("--seed") + 1] == "5"
    assert words.count("--seed") == 1
    assert words[words.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert {"--enable-prefix-caching", "--enable-scale-out", "--enforce-eager"} <= set(words)
    on_cuda = server_arguments(cfg, "127.0.0.1", 8000, cuda=True)
    assert on_cuda[on_cuda.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert on_cuda[on_cuda.index("--gpu-memory-utilization") + 1] == "0.9"
    assert flags({"a_b": True, "c": False, "d": None, "e": [1]}) == ["--a-b", "--no-c", "--e", "[1]"]
    ours = config.GRPO.model_validate({**base, "rollout": {"vllm": {"options": {"logprobs-mode": "raw_logits"}}}})
    with pytest.raises(UserError, match="has logprobs_mode, which grpo-math serve sets itself"):
        server_arguments(ours, "127.0.0.1", 8000, cuda=False)
    lora = {"path": str(model_folder), "lora": {"rank": 20, "sync": "adapter"}}
    adapter = config.GRPO.model_validate({**base, "model": lora, "rollout": {"engine": "vllm"}})
    words = server_arguments(adapter, "127.0.0.1", 8000, cuda=False)
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert server_environment(adapter, 0, 1, [])["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    two = config.GRPO.model_validate({**base, "rollout": {"vllm": {"tensor_parallel": 2}}})
    assert server_environment(two, 1, 2, ["4", "5", "6", "7"])["CUDA_VISIBLE_DEVICES"] == "6,7"
    with pytest.raises(UserError, match=r"--count 3 servers with rollout.vllm.tensor_parallel=2 need 6 devices"):
        server_environment(two, 0, 3, ["4", "5", "6", "7"])


# --- nothing is left behind ------------------------------------------------------------------------------------------

# answers /health for a moment, then ends
SHORT = """
import sys, threading, os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
print("my last words", flush=True)
threading.Timer(float(sys.argv[2]), os._exit, (3,)).start()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def test_a_server_that_keeps_ending_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("grpo_math.serving.supervisor.FIRST_PAUSE_S", 0.05)
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"

    def post(seconds: float) -> Post:
        command = [sys.executable, "-c", SHORT, str(port), str(seconds)]
        return Post("8000", url, lambda: ServerProcess("8000", url, command, dict(os.environ)))

    ready: list[bool] = []
    with pytest.raises(EngineError, match=r"ended with exit code 3, 4 times in a row.*(?s:.*)my last words") as error:
        Supervisor([post(1.5)], 10.0, lambda: False).run(lambda: ready.append(True))
    assert "No server is left" in str(error.value)
    assert ready == [True]
    said = capfd.readouterr().err
    assert said.count("starting it again in") == GIVE_UP_AFTER - 1
    assert "starting it again in 0.2 s" in said  # the pauses grow
    with pytest.raises(EngineError, match="did not come up: ended with exit code 3"):
        Supervisor([post(0.0)], 10.0, lambda: False).run(lambda: None)


@needs_vllm
def test_a_server_that_is_killed_comes_back_with_the_weights(
    pair: tuple[Served, Served], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = policy_of(model_folder)
    engine = make_engine(policy, [served.url for served in pair], tmp_path / "weights")
    prompts = prompts_for(policy, 12)
    disturb(policy, 0.01)  # enough to show, and little enough for long completions
    engine.update_weights(engine_weights(policy.model, config.LoRA()), 3)
    victim, group = pair[0].server, group_of(pair[0].server)
    timer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
    timer.start()
    groups = engine.generate(prompts, Sampling(n=12, max_tokens=200))
    timer.join()
    assert gap(policy, prompts[:2], groups[:2], 1.0) < 1e-4
    assert [len(group) for group in groups] == [12] * 12
    said = capfd.readouterr().err
    assert f"server {pair[0].url} could not be asked for" in said
    assert "requests go to the others" in said
    # its engine, which it had started, has gone with it
    wait_for(lambda: not set(group) & set(group_of(victim)), 10)
    wait_for(lambda: "is up again" in pair[0].said(), 300)  # it stops waiting when it is
    assert "was ended by signal 9; starting it again in 1 s" in pair[0].said()
    groups = engine.generate(prompts, Sampling(n=2, max_tokens=16))
    assert gap(policy, prompts, groups, 1.0) < 1e-4
    assert f"server {pair[0].url} is in use again, with the weights of version 3" in capfd.readouterr().err
    engine.close()


@needs_vllm
def test_nothing_outlives_serve(pair: tuple[Served, Served]) -> None:
    groups = [served.server for served in pair]
    assert all(len(group_of(group)) >= 2 for group in groups)  # the server and its engine
    pair[0].process.terminate()
    pair[1].process.kill()
    pair[1].process.wait()
    wait_for(lambda: not group_of(groups[1]), 5)  # the kernel ends it
    assert pair[0].process.wait(20) == 0
    assert not group_of(groups[0])


# --- helpers ---------------------------------------------------------------------------------------------------------


def ask(url: str, path: str, body: dict[str, object] | None) -> None:
    import aiohttp

    async def post() -> None:
        async with aiohttp.ClientSession() as http, http.post(url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()

    asyncio.run(post())


class Between:
    """Hands requests on to a real server and its answers back, or says something else `instead` of sampling (or, with
    `everywhere`, instead of anything). `close` is as if the machine were gone."""

    def __init__(self, url: str) -> None:
        self.target, self.instead, self.everywhere = url, None, False
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> Between:
        from aiohttp import web

        async def start() -> None:
            app = web.Application(client_max_size=1 << 28)
            app.router.add_route("*", "/{path:.*}", self._hand_on)
            self.runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

        self.thread.start()
        asyncio.run_coroutine_threadsafe(start(), self.loop).result(10)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)

    async def _hand_on(self, request):
        import aiohttp
        from aiohttp import web

        body = await request.read()
        if self.instead is not None and (self.everywhere or request.path == "/inference/v1/generate"):
            kind = "text/html" if self.instead.startswith("<") else "application/json"
            return web.Response(text=self.instead, content_type=kind)
        headers = {"content-type": request.content_type}
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, self.target + request.raw_path, data=body, headers=headers) as answer,
        ):
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)
