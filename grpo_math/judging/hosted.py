"""A judge on this machine that all scoring workers share: the first that needs it starts its process (host.py).

Free of torch, for the verifier. The process is no worker's own: a worker that is killed, since a verifier hangs, leaves
it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from grpo_math import __version__
from grpo_math.judging.cache import reply_of
from grpo_math.judging.desk import Desk
from grpo_math.judging.host import Spec
from grpo_math.judging.question import Question, Reply, Talk
from grpo_math.types import UserError

T = TypeVar("T")

TRIES = 3  # to be heard by a process that is not just ending
LONGEST = 100  # bytes of a socket's path, which systems allow from 104
LOAD_S = 900.0  # a model that is not there by then is not waited for


class Hosted:
    """Asks one question at a time. Raises UserError, from then on at every question, where the model does not load or
    its process dies twice."""

    def __init__(self, spec: Spec, desk: Desk) -> None:
        self.spec, self.desk = spec, desk
        self.identity: dict[str, Any] = {}
        self._line: tuple[socket.socket, BinaryIO] | None = None
        self._broken: UserError | None = None

    def outcome(self, talk: Talk[T]) -> T:
        try:
            question = next(talk)
            while True:
                question = talk.send(self.reply(question))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def reply(self, question: Question) -> Reply:
        if self._broken is not None:
            raise self._broken
        if self._line is None:
            self._connect()
        known = self.desk.known(self.identity, question)
        if known is not None:
            return known
        self.desk.pay()
        reply = self._ask(question)
        self.desk.keep(self.identity, question, reply)
        return reply

    def close(self) -> None:
        if self._line is not None:
            for each in reversed(self._line):
                each.close()
        self._line = None

    def _ask(self, question: Question) -> Reply:
        for _ in range(2):  # the process may have been killed, or have ended with its last client
            if self._line is None:
                self._connect()
            answer = self._exchange(question)
            if answer is None:
                self.close()
            elif "refused" in answer:
                raise UserError(answer["refused"])
            else:
                return replace(reply_of(answer["reply"]), failed=answer["reply"]["failed"])
        self._broken = UserError(
            f"the process of the judge {self.spec.model} has died twice over a question; what it wrote last is above. "
            "Give it more memory (engine_options, max_rows, device), or serve the model and set url"
        )
        raise self._broken

    def _exchange(self, question: Question) -> dict[str, Any] | None:
        assert self._line is not None
        client, reader = self._line
        try:
            client.sendall(json.dumps(asdict(question)).encode() + b"\n")
            line = reader.readline()
        except OSError:
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def _connect(self) -> None:
        place = meeting_place(self.spec)
        for _ in range(TRIES):
            try:
                self._line = connected(place, self.spec)
            except UserError as error:
                self._broken = error
                raise
            hello = b""
            with contextlib.suppress(ConnectionError):  # it died with the call in its queue
                hello = self._line[1].readline()
            if hello:
                self.identity = json.loads(hello)["identity"]
                return
            self.close()
        self._broken = UserError(
            f"the process of the judge {self.spec.model} dies as soon as it is there, and what it wrote last is above. "
            "Load the model with `grpo-math label --engine` to see why, or serve it and set url"
        )
        raise self._broken


def meeting_place(spec: Spec) -> Path:
    """One socket for each model and way of loading it, in a folder that is this user's alone. Raises UserError."""
    folder = Path(tempfile.gettempdir()) / f"grpo-math-judges-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat(follow_symlinks=False)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise UserError(f"{folder} is not this user's alone; delete it, or set TMPDIR to another folder")
    model = Path(spec.model).expanduser()
    files = sorted(p for at in (model, model / "model") for p in at.glob("*") if p.suffix in (".safetensors", ".bin"))
    weights = [(str(p.resolve()), p.stat().st_mtime_ns) for p in files]
    told = [asdict(spec), weights, os.environ.get("CUDA_VISIBLE_DEVICES"), __version__]
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / f"{name}.socket"
    if len(os.fsencode(place)) > LONGEST:
        raise UserError(f"{place} is too long a path for a socket; set TMPDIR to a shorter one, such as /tmp")
    return place


def connected(place: Path, spec: Spec) -> tuple[socket.socket, BinaryIO]:
    """To the process that has the model, which is started where there is none. Raises UserError where it does not load,
    also of one that somebody else has just tried to start."""
    failed, began = place.with_suffix(".failed"), time.time()
    with locked(place.with_suffix(".lock")) as lock:
        while (line := dial(place)) is None:
            if failed.exists() and failed.stat().st_mtime >= began:
                raise UserError(failed.read_text(encoding="utf-8"))
            try:
                start(place, spec, lock)
            except UserError as error:
                failed.write_text(str(error), encoding="utf-8")
                raise
    return line


def dial(place: Path) -> tuple[socket.socket, BinaryIO] | None:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(str(place))
    except (FileNotFoundError, ConnectionRefusedError):
        client.close()
        return None
    return client, client.makefile("rb")


def start(place: Path, spec: Spec, lock: int) -> None:
    """Have the model loaded by a process of its own. Raises UserError, which says why it was not."""
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_math.judging.host", str(place), json.dumps(asdict(spec)), str(lock)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(spec),
        pass_fds=[lock],
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        line = said.readline()
    if not line:
        raise UserError(
            f"the judge {spec.model} cannot be loaded: its process ended with code {process.wait()}, and what it wrote "
            "last is above"
        )
    if failed := json.loads(line).get("failed"):
        raise UserError(f"the judge {spec.model} cannot be loaded: {failed}")


def environment(spec: Spec) -> dict[str, str]:
    """Without the launcher's variables, which are the trainer's; vLLM is shown the device that the judge is to have."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if spec.engine == "vllm" and spec.device.startswith("cuda:"):
        number, given = int(spec.device.removeprefix("cuda:")), env.get("CUDA_VISIBLE_DEVICES")
        visible = None if given is None else [name for name in given.split(",") if name]
        if visible is not None and number >= len(visible):
            raise UserError(
                f"verifier judge: device={spec.device}, and CUDA_VISIBLE_DEVICES={given} shows {len(visible)} devices; "
                "give one of those, or show more"
            )
        env["CUDA_VISIBLE_DEVICES"] = str(number) if visible is None else visible[number]
    return env


LAUNCHER = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """The lock's file: it is held until whoever else has it open has closed it too."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
