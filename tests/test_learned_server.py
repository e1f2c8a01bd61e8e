"""Reward models on servers: one that fails as it is told to, and vLLM's own, whose scores are those made here."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp import web

from grpo_math import config
from grpo_math.config_learned import LearnedReward
from grpo_math.evaluation import openai_http
from grpo_math.learned.make import load_reward_model
from grpo_math.learned.reading import Asked
from grpo_math.learned.score import RewardModel
from grpo_math.serving.command import flags, server_environment
from grpo_math.serving.process import ServerProcess
from grpo_math.small_model import character_tokenizer, small_model
from grpo_math.types import EngineError, UserError
from tests.learned import save_model
from tests.test_openai_sampler import StandIn, drops, refuses, says
from tests.test_vllm_server import SHAPE, free_ports, needs_vllm, wait_for

TEXTS = [Asked("q", f"question {i}?", "x=1\ny=2\n" * (i % 5) + "z", "stop" if i % 2 else "length") for i in range(20)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    tokenizer = character_tokenizer()
    small_model(SHAPE.model_copy(update={"context": 256}), tokenizer, 0).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return {
        "outcome": save_model(root / "outcome", root / "base", "outcome"),
        "process": save_model(root / "process", root / "base", "process"),
    }


def model_of(folder: str, kind: Any, url: str | None = None) -> RewardModel:
    return load_reward_model(LearnedReward(model=folder, kind=kind, url=url), "rewards.1", torch.device("cpu"))


def scores(*found: Any) -> dict[str, Any]:
    return {"data": [{"index": 0, "data": list(found)}]}


def test_it_asks_for_the_heads_own_outputs_and_asks_again(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_http, "FIRST_PAUSE_S", 0.01)
    with StandIn() as server:
        model = model_of(folders["outcome"], "outcome", server.url.removesuffix("/v1"))
        assert model.model.context == 512  # the server's
        server.trouble = [says("busy", 503), drops, says({"nothing": 1}), says("{")]
        server.does = says(scores(1.5))
        assert [v.reward for v in model.verdicts(TEXTS[:2])] == [1.5, 1.5]
        assert len(server.bodies) == 6
        assert set(server.paths) == {"/pooling"}
        assert server.bodies[0] == {
            "model": "tiny",
            "input": character_tokenizer()("question 0?z")["input_ids"],
            "add_special_tokens": False,
            "use_activation": False,
            "encoding_format": "float",
            "task": "classify",
        }
        server.does = refuses("Unsupported task: 'classify'")
        with pytest.raises(UserError, match=r"rewards.1.url=http.*status 400: Unsupported task.*--runner pooling"):
            model.verdicts(TEXTS[:2])
        server.does = says(scores(0.1, 0.2, 0.7))
        with pytest.raises(UserError, match="gives 3 outputs where a head has one"):
            model.verdicts(TEXTS[:1])
        # of a process model a number for each token, of which those at the ends of steps count
        steps = model_of(folders["process"], "process", server.url)
        tokens = len("question 6?x=1\ny=2\nz")

        async def each(request: web.Request, body: dict[str, Any]) -> web.Response:
            assert body["task"] == "token_classify"
            return web.json_response(scores(*([0.0, float(place == 14)] for place in range(len(body["input"])))))

        server.does = each
        [verdict] = steps.verdicts([Asked("q", "question 6?", "x=1\ny=2\nz", "length")])
        assert [p for _, p in verdict.step_rewards or ()] == pytest.approx([1 / (1 + 2.718281828**-1), 0.5, 0.5])
        assert len(server.bodies[-1]["input"]) == tokens
        server.does = says(scores(1.0))
        with pytest.raises(UserError, match=r"gives 1 values for .* tokens"):
            steps.verdicts(TEXTS[:1])
        server.models = {"data": [{"id": "one"}, {"id": "two"}]}
        with pytest.raises(UserError, match="serves one, two, not "):
            model_of(folders["outcome"], "outcome", server.url)
        server.does = says("gone", 500)
        monkeypatch.setattr("grpo_math.learned.server.RETRIES", 1)
        model.model.api.retries = 1  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="a score failed 2 times"):
            model.verdicts(TEXTS[:1])
    with pytest.raises(UserError, match=r"rewards.1.url=http.* cannot be used: .*--runner pooling"):
        model_of(folders["outcome"], "outcome", server.url)


def up_or_ended(server: ServerProcess) -> bool:
    return server.healthy() or server.ended()


def end(server: ServerProcess) -> None:
    server.ask_to_end()
    server.end(time.monotonic() + 10)


@pytest.fixture(scope="module")
def servers(folders: dict[str, str]) -> Iterator[dict[str, str]]:
    """Both start at once: most of the time each waits for imports."""
    with ExitStack() as stack:
        running = {}
        for kind, port in zip(folders, free_ports(2), strict=True):
            options = {"model": folders[kind], "runner": "pooling", "host": "127.0.0.1", "port": port}
            options |= {"dtype": "float32", "enforce_eager": True, "uvicorn_log_level": "warning"}
            options["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
            given: dict[str, Any] = {"model": folders[kind], "task": "arithmetic"}
            env = server_environment(config.GRPO(run_dir="r", **given), 0, 2, []) | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "grpo_math.serving.child", "{lifeline}", *flags(options)]
            running[kind] = server = ServerProcess(str(port), f"http://127.0.0.1:{port}", command, env)
            stack.callback(end, server)
        for server in running.values():
            wait_for(partial(up_or_ended, server), 400)
            assert not server.ended(), "\n".join(server.tail)
        yield {kind: server.url for kind, server in running.items()}


@needs_vllm
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_vllm_gives_the_same_scores(servers: dict[str, str], folders: dict[str, str], kind: str) -> None:
    here = model_of(folders[kind], kind).verdicts(TEXTS)
    there = model_of(folders[kind], kind, servers[kind])
    assert there.model.context == 256
    found = there.verdicts(TEXTS)
    for mine, its in zip(here, found, strict=True):
        assert its.reward == pytest.approx(mine.reward, abs=1e-4)
        assert [end for end, _ in its.step_rewards or ()] == [end for end, _ in mine.step_rewards or ()]
        assert [p for _, p in its.step_rewards or ()] == pytest.approx(
            [p for _, p in mine.step_rewards or ()], abs=1e-4
        )
    assert len({round(v.reward or 0.0, 3) for v in here}) > 10
    [long] = there.verdicts([Asked("q", "q", "1" * 300, "length")])
    assert long.detail == "301 tokens are more than the 256 that it reads"


@needs_vllm
@pytest.mark.slow
def test_a_server_of_another_kind_is_refused(servers: dict[str, str], folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"does not score: status 400: .*it must serve a model of kind process"):
        model_of(folders["process"], "process", servers["outcome"]).verdicts(TEXTS[:1])
    settings = json.loads((Path(folders["outcome"]) / "config.json").read_text())
    assert settings["architectures"] == ["Qwen2ForSequenceClassification"]
