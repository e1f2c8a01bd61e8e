"""Judges as verifiers that run on this machine, in one process for all scoring workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from grpo_math import config
from grpo_math.evaluation.hf import HFSampler
from grpo_math.judging import hosted
from grpo_math.judging.desk import Desk
from grpo_math.judging.host import Spec, serve
from grpo_math.judging.hosted import Hosted, environment, meeting_place
from grpo_math.judging.ledger import Caps
from grpo_math.judging.local import Local
from grpo_math.judging.question import Question, Reply
from grpo_math.judging.template import load_template
from grpo_math.judging.verdict import Reading, score
from grpo_math.scoring import Scorer, ScoringError
from grpo_math.types import Problem, UserError
from grpo_math.verify import completion_of
from tests.judges import collect, save_judge_of_numbers
from tests.tiny import tiny_policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    policy = tiny_policy(context=2048)
    save_judge_of_numbers(policy.model, policy.tokenizer, path)
    return path


@pytest.fixture(autouse=True)
def _meeting_places(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own may be too long for a socket
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield


def items(count: int) -> list[Any]:
    return [(Problem(f"p{i}", "t", "Why?", ""), completion_of("so " * i + ".")) for i in range(count)]


def scorer(options: dict[str, Any], workers: int) -> Scorer:
    scoring = config.Scoring(workers=workers, timeout_s=0.2, max_error_share=0.5)
    return Scorer([config.Reward(verifier="judge", options=options)], scoring)


def hosts(folder: Path) -> list[int]:
    """The processes that hold this model."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            words = (each / "cmdline").read_bytes().split(b"\0") if each.name.isdigit() else []
        except OSError:  # it has just ended
            continue
        if b"grpo_math.judging.host" in words and str(folder).encode() in b" ".join(words):
            found.append(int(each.name))
    return found


def test_workers_share_a_model_and_outlive_its_process(folder: Path, tmp_path: Path) -> None:
    options = {"engine": "hf", "model": str(folder), "device": "cpu", "cache": str(tmp_path / "cache"), "min_mass": 0.0}
    direct = Local(HFSampler(str(folder), 8, "float32", "cpu"), str(folder), Desk(tmp_path / "direct", Caps()))
    template = load_template("score")
    talks = [
        score(template, {"question": p.question, "gold": "", "completion": c.text}, Reading(min_mass=0.0))
        for p, c in items(9)
    ]
    expected = [found.value for _, found in sorted(collect(direct, talks).items())]
    assert len(set(expected)) > 4
    with scorer(options, workers=3) as one:
        scored = one.score(items(5))
        [long] = one.judge([(Problem("long", "t", "Why?", ""), completion_of("so " * 2000))])
        assert "do not fit into the judge's context of 2048" in long.verdict.detail
        [host] = hosts(folder)
        os.killpg(psutil.Process(host).ppid(), signal.SIGKILL)  # that started it, as where a verifier hangs
        assert [s.reward for s in one.score(items(6))][:5] == [s.reward for s in scored]
        assert hosts(folder) == [host]
        os.kill(host, signal.SIGKILL)
        scored += one.score(items(9))[5:]  # the sixth from the cache
        assert hosts(folder) not in ([], [host])
        assert not [s.verdict.detail for s in scored if s.verdict.failed]
        assert [s.reward for s in scored] == pytest.approx([(value - 1) / 9 for value in expected if value], abs=1e-5)
        assert scored[0].verdict.detail.startswith(f"{folder} gives ")
    wait_until_gone(folder)


def wait_until_gone(folder: Path) -> None:
    until = time.monotonic() + 10
    while hosts(folder):
        assert time.monotonic() < until, "the judge's process is still there"
        time.sleep(0.05)


def test_many_that_wait_for_a_model_that_does_not_load_do_not_try_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fails(*_: object) -> None:
        tried.append(1)
        time.sleep(0.3)
        raise UserError("no room for it")

    monkeypatch.setattr(hosted, "start", fails)
    question = Question(({"role": "user", "content": "Why?"},), top=5)

    def ask(_: int) -> str:
        with pytest.raises(UserError) as caught:
            Hosted(Spec("hf", str(folder)), Desk(tmp_path / "cache", Caps())).reply(question)
        return str(caught.value)

    with ThreadPoolExecutor(8) as several:
        assert set(several.map(ask, range(8))) == {"no room for it"}
    assert len(tried) == 1


def test_a_client_that_dies_in_mid_question_ends_nothing(tmp_path: Path) -> None:
    """And those that asked side by side are answered together."""
    place, blocks = Path(tempfile.gettempdir()) / "s", []

    class Model:
        identity: ClassVar[dict[str, Any]] = {"model": "m"}

        def answer(self, questions: list[Question]) -> Iterator[tuple[int, Reply]]:
            blocks.append(len(questions))
            yield from ((i, Reply(text=q.messages[0]["content"], tokens=1)) for i, q in enumerate(questions))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        listener.setblocking(False)
        lines = [hosted.dial(place) for _ in range(3)]
        for i, line in enumerate(lines):
            assert line is not None
            question = json.dumps(asdict(Question(({"role": "user", "content": f"{i}"},)))).encode() + b"\n"
            line[0].sendall(question if i else question[:9])
        assert lines[0] is not None
        for each in reversed(lines[0]):
            each.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("grpo_math.judging.host.LINGER_S", 0.2)
            server = threading.Thread(target=serve, args=(listener, Model(), 8))
            server.start()
            for i, line in enumerate(lines[1:], 1):
                assert line is not None
                assert json.loads(line[1].readline()) == {"identity": {"model": "m"}}
                assert json.loads(line[1].readline())["reply"]["text"] == f"{i}"
                for each in reversed(line):
                    each.close()
            server.join(10)
        assert not server.is_alive()
    assert blocks == [2]


def test_a_model_that_does_not_load_is_named(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((folder / name).read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    options = {"engine": "hf", "model": str(broken), "cache": str(tmp_path / "cache")}
    with scorer(options, 1) as one, pytest.raises(ScoringError, match=f"the judge {broken} cannot be loaded") as raised:
        one.score(items(5))
    assert {s.verdict.reason for s in raised.value.scored} == {"error"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "hf"}, "engine=hf needs model, a folder or Hub id; set it"),
        ({"engine": "tgi"}, "engine='tgi': give openai or vllm or hf"),
        ({"engine": "vllm", "model": "m", "url": "http://a"}, "url=.http://a. is for engine=openai, and it is vllm"),
        ({"engine": "hf", "model": "m", "device": "cuda1"}, "device='cuda1': give auto, or a device such as cuda:1"),
        ({"max_rows": 4}, "max_rows=4 is for engine=vllm or hf, and it is openai; leave it out"),
        ({"engine": "hf", "model": "m", "engine_options": {"a": 1}}, "engine_options=.* is for engine=vllm"),
        ({"engine": "hf", "model": "./none"}, "verifier judge: model=./none: there is no such folder"),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        scorer(options, 1)


def test_where_workers_meet(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec("hf", str(folder))
    long = tmp_path / ("long" * 20)
    long.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(long))
        with pytest.raises(UserError, match="too long a path for a socket; set TMPDIR"):
            meeting_place(spec)
    place = meeting_place(spec)
    assert meeting_place(spec) == place != meeting_place(Spec("hf", str(folder), "bfloat16"))
    place.parent.chmod(0o755)
    with pytest.raises(UserError, match="is not this user's alone; delete it, or set TMPDIR"):
        meeting_place(spec)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    env = environment(Spec("vllm", "m", device="cuda:1"))
    assert ("RANK" in env, env["CUDA_VISIBLE_DEVICES"]) == (False, "6")
    with pytest.raises(UserError, match="device=cuda:2, and CUDA_VISIBLE_DEVICES=4,6 shows 2 devices"):
        environment(Spec("vllm", "m", device="cuda:2"))
