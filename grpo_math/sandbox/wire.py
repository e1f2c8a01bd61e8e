"""Frames over a socket: a length, then so many bytes of UTF-8 text. On a control socket file descriptors ride along.

Leaves out what the text means (codec.py).
"""

from __future__ import annotations

import array
import socket
import struct

HEADER = struct.Struct("<I")
MAX_FRAME = 64 << 20  # bytes; the largest answer that is read


class WireError(OSError):
    """The other side is gone, or sent what is no frame."""


class TooLarge(WireError):
    """A frame beyond MAX_FRAME."""


def send(channel: socket.socket, text: str) -> None:
    """Raises WireError where nobody listens any more, TooLarge."""
    send_bytes(channel, text.encode())


def send_bytes(channel: socket.socket, data: bytes) -> None:
    """As send. Of what is too large the length is sent all the same, so that the other side knows."""
    too_large = len(data) > MAX_FRAME
    try:
        channel.sendall(HEADER.pack(min(len(data), MAX_FRAME + 1)) + (b"" if too_large else data))
    except OSError as error:
        raise WireError(f"it stopped listening ({error.strerror})") from error
    if too_large:
        raise TooLarge(f"{len(data):,} bytes, over {MAX_FRAME:,}")


def receive(channel: socket.socket) -> str:
    """Raises WireError at the end of the stream and where the bytes are no UTF-8, TooLarge."""
    try:
        return receive_bytes(channel).decode()
    except UnicodeDecodeError as error:
        raise WireError("it sent bytes that are no UTF-8") from error


def receive_bytes(channel: socket.socket) -> bytes:
    """Raises WireError at the end of the stream, TooLarge."""
    (size,) = HEADER.unpack(_exactly(channel, HEADER.size))
    if size > MAX_FRAME:
        raise TooLarge(f"{size:,} bytes, over {MAX_FRAME:,}")
    return _exactly(channel, size)


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        try:
            part = channel.recv(min(size, 1 << 20))
        except OSError as error:
            raise WireError(f"it stopped talking ({error.strerror})") from error
        if not part:
            raise WireError("it stopped talking")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# Control sockets (SOCK_SEQPACKET) keep a message in one piece and carry file descriptors. Only our own code is at
# their ends, so a message is a few hundred bytes.
_PACKET = 1 << 16
_MAX_FDS = 4


def send_packet(control: socket.socket, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """Raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    control.sendmsg([data], rights)


def receive_packet(control: socket.socket) -> tuple[bytes, list[int]]:
    """(message, file descriptors); an empty message at the end of the stream, however it came."""
    try:
        data, rights, _, _ = control.recvmsg(_PACKET, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b"", []
    fds = array.array("i")
    for level, kind, content in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
