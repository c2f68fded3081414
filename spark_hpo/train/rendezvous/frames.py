"""The protocol between the rendezvous store and its clients: JSON frames, and a proof of the study's key.

Both sides of a connection first prove that they know the key:

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
MAX_FRAME = 2**20  # bytes; torch stores addresses and ids
MAX_GREETING = 2**10  # bytes of a frame before the proof
LONGEST_WAIT_S = 86_400.0


class WrongFrame(ValueError):
    """A frame that violates the protocol. The connection is closed."""


def pack(record: dict[str, Any]) -> bytes:
    """Return a record as a frame."""
    data = json.dumps(record, separators=(",", ":")).encode()
    if len(data) > MAX_FRAME:
        raise WrongFrame(f"{len(data)} bytes do not fit into a frame of at most {MAX_FRAME}")
    return LENGTH.pack(len(data)) + data


def length_of(head: bytes, most: int) -> int:
    """Return the number of bytes that follow the head of a frame."""
    length: int = LENGTH.unpack(head)[0]
    if length > most:
        raise WrongFrame(f"a frame of {length} bytes; at most {most} are allowed")
    return length


def parse(data: bytes) -> dict[str, Any]:
    """Return the record that the body of a frame holds."""
    try:
        record = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise WrongFrame("a frame that is not JSON") from exc
    if not isinstance(record, dict):
        raise WrongFrame("a frame that is not a JSON object")
    return record


def encode(value: str | bytes) -> str:
    """Return a value as base64 text."""
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def decode(text: str) -> bytes:
    """Return the value that `encode` was given."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise WrongFrame("a value that is not base64") from exc


def nonce() -> str:
    """Return a random text that is used once."""
    return secrets.token_hex(KEY_BYTES)


def proof(key: bytes, side: str, server: str, client: str, group: str) -> str:
    """Return the text that proves knowledge of the key, for one side of one connection."""
    message = json.dumps([side, server, client, group])  # unambiguous, unlike joined text
    return hmac.new(key, message.encode(), "sha256").hexdigest()


def proves(given: object, expected: str) -> bool:
    """Compare two proofs in constant time."""
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(given, expected)


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel detect that the other machine has gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _refuse(constant: str) -> None:
    raise WrongFrame(f"{constant} is not valid in JSON")
