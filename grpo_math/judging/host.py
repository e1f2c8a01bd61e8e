"""The process that holds a judge's model for all scoring workers of a machine: `python -m grpo_math.judging.host`.

Loads the model, says so, and answers questions over a Unix socket, a line of JSON each, side by side those that wait at
the same time. Ends soon after its last client. Left out: who starts it (hosted.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from grpo_math.judging.question import Question, Reply
from grpo_math.types import UserError

LINGER_S = 5.0  # without a client


@dataclass(frozen=True)
class Spec:
    """What is loaded, and how. max_rows: questions side by side. device: `cuda:1`, say; vLLM is shown only that."""

    engine: Literal["vllm", "hf"]
    model: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    max_rows: int = 64
    engine_options: Mapping[str, Any] = field(default_factory=dict)


class Answers(Protocol):
    @property
    def identity(self) -> dict[str, Any]: ...

    def answer(self, questions: list[Question]) -> Iterable[tuple[int, Reply]]:
        """The replies by the questions' places. Raises UserError for what no other question would mend."""


def main() -> None:
    """argv: where to listen, the Spec as JSON, and the number of the lock's file, which is held while the model loads:
    nobody else loads it too, even where who started this has died. Writes one line, `{}` or `{"failed": why}`."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # that of a scoring worker is for verifiers
    said, place, spec, lock = os.dup(1), Path(sys.argv[1]), Spec(**json.loads(sys.argv[2])), int(sys.argv[3])
    os.dup2(2, 1)  # what libraries print goes to stderr
    try:
        model = load(spec)
    except UserError as error:
        tell(said, {"failed": str(error)})
        return
    with socket.socket(socket.AF_UNIX) as listener:
        place.unlink(missing_ok=True)  # of one that was killed
        listener.bind(str(place))
        listener.listen(1024)
        listener.setblocking(False)
        tell(said, {})
        os.close(lock)
        serve(listener, model, spec.max_rows)


def load(spec: Spec) -> Answers:
    from grpo_math.evaluation.ask import model_path
    from grpo_math.evaluation.hf import HFSampler
    from grpo_math.evaluation.vllm import VLLMSampler
    from grpo_math.judging.answers import Answerer

    path = model_path(spec.model, "model")
    if spec.engine == "vllm":
        return Answerer(VLLMSampler(path, spec.max_rows, spec.dtype, spec.engine_options), path)
    return Answerer(HFSampler(path, spec.max_rows, spec.dtype, spec.device), path)


def tell(file: int, line: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # others may be waiting
        os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


def serve(listener: socket.socket, model: Answers, max_rows: int) -> None:
    """Until there has been no client for LINGER_S. A client asks one question and waits for its reply."""
    clients: dict[socket.socket, BinaryIO] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in waiting.select(LINGER_S)]
            if not ready and not clients:
                return
            asked: dict[socket.socket, Question] = {}
            for each in ready:
                assert isinstance(each, socket.socket)
                if each is listener:
                    for client in callers(listener):
                        clients[client] = client.makefile("rb")
                        waiting.register(client, selectors.EVENT_READ)
                        send(client, {"identity": model.identity})
                elif (line := clients[each].readline()).endswith(b"\n"):
                    asked[each] = question_of(line)
                else:
                    waiting.unregister(each)
                    clients.pop(each).close()
                    each.close()
            some = list(asked.items())
            for first in range(0, len(some), max_rows):
                reply_to(some[first : first + max_rows], model)


def callers(listener: socket.socket) -> Iterator[socket.socket]:
    """All that have called."""
    with contextlib.suppress(BlockingIOError):
        while True:
            client, _ = listener.accept()
            client.setblocking(True)
            yield client


def reply_to(asked: list[tuple[socket.socket, Question]], model: Answers) -> None:
    waiting = dict(enumerate(client for client, _ in asked))
    try:
        for i, reply in model.answer([question for _, question in asked]):
            send(waiting.pop(i), {"reply": asdict(reply)})
    except UserError as error:
        for client in waiting.values():
            send(client, {"refused": str(error)})


def question_of(line: bytes) -> Question:
    row = json.loads(line)
    return Question(**row | {"messages": tuple(row["messages"])})


def send(client: socket.socket, line: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is gone, which reading from it tells
        client.sendall(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
