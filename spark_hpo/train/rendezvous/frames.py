"""Frames of JSON between the ranks' store and its clients, and the proof of who may send them.

Both sides of a connection prove that they know the study's key before anything else:

    server: {"nonce": a}
    client: {"nonce": b, "group": "study/7/0", "proof": HMAC(key, client, a, b, group)}
    server: {"proof": HMAC(key, server, a, b, group)}
    client: {"op": "wait", "keys": ["0"], "timeout_s": 20.0}    server: {"result": null}

A frame is four bytes of length and a JSON object. Nothing is unpickled.
"""

from __future__ import annotations

import base64
import hmac
import json
import secrets
import socket
import struct
from typing import Any

KEY_BYTES = 32
LENGTH = struct.Struct("!I")
MAX_FRAME = 2**20  # bytes; what torch puts here is an address or an id
MAX_GREETING = 2**10  # of somebody who has proved nothing yet
LONGEST_WAIT_S = 86_400.0


class WrongFrame(ValueError):
    """Not what this protocol says: the connection is cut."""


def pack(record: dict[str, Any]) -> bytes:
    """A record as a frame."""
    data = json.dumps(record, separators=(",", ":")).encode()
    if len(data) > MAX_FRAME:
        raise WrongFrame(f"{len(data)} bytes are more than the {MAX_FRAME} of a frame")
    return LENGTH.pack(len(data)) + data


def length_of(head: bytes, most: int) -> int:
    """The bytes that follow the head of a frame."""
    length: int = LENGTH.unpack(head)[0]
    if length > most:
        raise WrongFrame(f"a frame of {length} bytes; the most is {most}")
    return length


def parse(data: bytes) -> dict[str, Any]:
    """The record of a frame."""
    try:
        record = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise WrongFrame("a frame that is no JSON") from exc
    if not isinstance(record, dict):
        raise WrongFrame("a frame that is no record")
    return record


def encode(value: str | bytes) -> str:
    """A value as JSON can hold it."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def decode(text: str) -> bytes:
    """The value that `encode` was given."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise WrongFrame("a value that is no base64") from exc


def nonce() -> str:
    """A text that nobody has seen before."""
    return secrets.token_hex(KEY_BYTES)


def proof(key: bytes, side: str, server: str, client: str, group: str) -> str:
    """What only one that knows the key can say, and only of this connection."""
    message = json.dumps([side, server, client, group])  # a list: no two of them read alike
    return hmac.new(key, message.encode(), "sha256").hexdigest()


def proves(given: object, expected: str) -> bool:
    """Compare in a time that says nothing of where they differ."""
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, expected)


def keep_alive(connection: socket.socket) -> None:
    """Notice a machine that has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _refuse(constant: str) -> None:
    raise WrongFrame(f"{constant} is no JSON")
