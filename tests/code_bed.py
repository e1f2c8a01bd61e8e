"""What the programs of cases/programs.jsonl look for: canary files and servers, fake tokens, and what they leave."""

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

CANARY = Path("/tmp/rlvr_canary")
FILES = {  # below CANARY
    "secret.txt": "CANARY secret of the host\n",
    "home/.ssh/id_ed25519": "CANARY private key\n",
    "home/.config/token": "CANARY token\n",
}
PORT = 47631
ABSTRACT = "\0rlvr_canary"
SOCKET = Path("/tmp/rlvr_canary.sock")
TOKENS = {
    "RLVR_CANARY_SECRET": "CANARY-secret",
    "HF_TOKEN": "hf_CANARYcanary",
    "WANDB_API_KEY": "CANARYcanary",
    "AWS_SECRET_ACCESS_KEY": "CANARY/canary",
}
# what a program may have left outside CANARY, where nothing kept it from it
LEFT = (
    *("/tmp/rlvr_dropped", "/tmp/rlvr_other", "/etc/cron.d/rlvr_probe"),
    *("/etc/rlvr_probe", "/usr/local/rlvr_probe", "/rlvr_probe", "/opt/rlvr_probe"),
)
SLEEP_S = 0.05  # between two looks at /proc
GRACE_S = 2.0  # a killed process may be seen for this long


def _lay() -> None:
    """Lay the canary folder anew, open to all users, and remove what was left outside it."""
    if CANARY.is_symlink():
        CANARY.unlink()
    shutil.rmtree(CANARY, ignore_errors=True)
    for name, text in FILES.items():
        path = CANARY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (CANARY, *CANARY.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    for left in LEFT:
        Path(left).unlink(missing_ok=True)


def _serve(server: socket.socket, closing: threading.Event) -> None:
    """Answer CANARY to whoever comes, until the server is closed."""
    server.settimeout(0.2)
    while not closing.is_set():
        try:
            if server.type == socket.SOCK_DGRAM:
                server.sendto(b"CANARY", server.recvfrom(1024)[1])
            else:
                with server.accept()[0] as peer:
                    peer.sendall(b"CANARY")
        except OSError:  # nobody came, or went away at once
            continue


def _servers() -> Iterator[socket.socket]:
    """TCP and UDP on loopback, and two unix sockets."""
    yield socket.create_server(("127.0.0.1", PORT))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", PORT))
    yield udp
    SOCKET.unlink(missing_ok=True)
    for address in (ABSTRACT, str(SOCKET)):
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(address)
        if address != ABSTRACT:
            SOCKET.chmod(0o666)
        unix.listen()
        yield unix


@contextmanager
def canary_bed() -> Iterator[None]:
    """The canary folder, the canary servers and the fake tokens in this process's environment, while it lasts."""
    kept = {name: os.environ.get(name) for name in TOKENS}
    closing, threads = threading.Event(), []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, CANARY, ignore_errors=True)
        stack.callback(SOCKET.unlink, missing_ok=True)
        _lay()
        try:
            for server in _servers():
                stack.enter_context(server)
                threads.append(threading.Thread(target=_serve, args=(server, closing), daemon=True))
                threads[-1].start()
            os.environ.update(TOKENS)
            yield
        finally:
            closing.set()
            for thread in threads:
                thread.join()
            for name, value in kept.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def survivors(tag: str) -> list[int]:
    """The processes that are called rlvr_TAG, or sleep for 3600.TAG seconds; zombies are not counted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            comm = (entry / "comm").read_text(errors="replace").strip()
            words = (entry / "cmdline").read_bytes().split(b"\0")
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:  # it has gone
            continue
        if state != "Z" and (comm == f"rlvr_{tag}" or f"3600.{tag}".encode() in words):
            found.append(int(entry.name))
    return found


def _holds(condition: str, wall_s: float) -> bool:
    name, _, value = condition.partition(":")
    match name:
        case "max_wall_s":
            return wall_s <= float(value)
        case "no_file":
            return not os.path.lexists(value)
        case "file_unchanged":
            try:
                return Path(value).read_text() == FILES[str(Path(value).relative_to(CANARY))]
            except OSError:
                return False
        case "no_survivor":
            deadline = time.monotonic() + GRACE_S
            while survivors(value):
                if time.monotonic() > deadline:
                    return False
                time.sleep(SLEEP_S)
            return True
    raise ValueError(f"unknown condition: {condition}")


def check_post(conditions: list[str], started: float) -> list[str]:
    """The conditions that do not hold; `started` is the time.monotonic() at which the verifier was called.

    What was harmed or left is put right, so that the next program is judged by its own deeds.
    """
    wall_s = time.monotonic() - started
    broken = [condition for condition in conditions if not _holds(condition, wall_s)]
    for name, _, value in (condition.partition(":") for condition in broken):
        if name == "no_survivor":
            for pid in survivors(value):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif name != "max_wall_s":
            _lay()
    return broken
