"""The messages between the driver and its fork server, over a Unix socket.

The driver asks for a process or for the end of one; the server answers when a process has ended. Numbers name
processes, because the number of one that has ended, unlike its pid, is never used again.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

FORK, KILL = b"F", b"K"

_REQUEST = struct.Struct("!cQ")
_ENDED = struct.Struct("!Qi")


class Request(NamedTuple):
    """A request to fork a process, or to kill one."""

    verb: bytes
    number: int
    descriptors: list[int]  # of FORK: what the process has to do, and where it reports; see `rank.main`


class Ended(NamedTuple):
    """A process has ended."""

    number: int
    status: int  # as `os.waitstatus_to_exitcode` returns it: -9 after SIGKILL


def send_request(connection: socket.socket, verb: bytes, number: int, *descriptors: int) -> None:
    """Send a request, with descriptors that stay open here.

    Raises:
        OSError: the server has ended.
    """
    socket.send_fds(connection, [_REQUEST.pack(verb, number)], descriptors)


def receive_request(connection: socket.socket) -> Request | None:
    """Wait for a request; None: the driver has ended."""
    try:
        message, descriptors, _, _ = socket.recv_fds(connection, _REQUEST.size, 2)
    except ConnectionError:
        return None
    if len(message) < _REQUEST.size:
        return None
    verb, number = _REQUEST.unpack(message)
    return Request(verb, number, descriptors)


def send_ended(connection: socket.socket, ended: Ended) -> None:
    """Tell the driver that a process has ended."""
    connection.sendall(_ENDED.pack(*ended))


def receive_ended(connection: socket.socket) -> Ended | None:
    """Wait for the end of a process; None: the server has ended."""
    try:
        message = connection.recv(_ENDED.size)
    except ConnectionError:
        return None
    return Ended(*_ENDED.unpack(message)) if len(message) == _ENDED.size else None
