"""Whether a port can be listened on, found out by trying. `python -m grpo_math.launching.ports PORT` for a script."""

from __future__ import annotations

import socket
import sys

from grpo_math.types import UserError


def check_port(master_addr: str, port: int, key: str = "--port") -> None:
    """On this machine, where rank 0 is to be. Raises UserError where the port is taken or the address is not ours."""
    try:
        found = socket.getaddrinfo(master_addr, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"MASTER_ADDR={master_addr}: no such host is known here ({error}); give a name that every node can resolve"
        ) from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as torch's own store has it
        try:
            probe.bind(address)
        except OSError as error:
            raise UserError(
                f"{key} {port} cannot be listened on at {master_addr} ({error.strerror}); give another, for example "
                f"{key} {port + 1}"
            ) from error


def main() -> None:
    try:
        check_port("0.0.0.0", int(sys.argv[1]))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
