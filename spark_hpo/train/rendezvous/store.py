"""The client of the rendezvous store, which torch's process groups use like a TCPStore."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store  # dist has it, but does not export it

from spark_hpo.train.rendezvous import frames

_ANSWER_LIMIT_S = 30.0  # for an answer that does not wait for another rank
_CONNECT_LIMIT_S = 30.0


class _Refused(Exception):
    """One side does not know the other's key."""


class StoreClient(Store):
    """A rank's connection to the rendezvous store.

    Keep a reference to it for as long as torch uses it: torch refers only to the C++ half of the object.
    """

    timeout: timedelta  # defined by torch's Store; missing in its stub

    def __init__(self, host: str, port: int, key: bytes, *, group: str, timeout: timedelta) -> None:
        """
        Args:
            timeout: how long to wait for a value that another rank has not set yet.

        Raises:
            torch.distributed.DistNetworkError: the store cannot be reached, or has another key.
        """
        super().__init__()
        self.set_timeout(timeout)
        self._address = host, port
        self._key = key
        self._group = group
        self._lock = threading.Lock()  # held from a request to its reply
        self._clones: list[StoreClient] = []
        self._socket = self._connect(time.monotonic() + min(_CONNECT_LIMIT_S, timeout.total_seconds()))

    def set(self, key: str, value: str | bytes) -> None:
        self._ask({"op": "set", "key": key, "value": frames.encode(value)})

    def get(self, key: str) -> bytes:
        return frames.decode(self._ask({"op": "get", "key": key}, self.timeout))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._ask({"op": "wait", "keys": list(keys)}, self.timeout if timeout is None else timeout)

    def check(self, keys: list[str]) -> bool:
        return bool(self._ask({"op": "check", "keys": list(keys)}))

    def add(self, key: str, value: int) -> int:
        return int(self._ask({"op": "add", "key": key, "amount": value}))

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        expected, desired = frames.encode(expected_value), frames.encode(desired_value)
        return frames.decode(
            self._ask({"op": "compare_set", "key": key, "expected": expected, "desired": desired})
        )

    def delete_key(self, key: str) -> bool:
        return bool(self._ask({"op": "delete_key", "key": key}))

    def num_keys(self) -> int:
        return int(self._ask({"op": "num_keys"}))

    def has_extended_api(self) -> bool:
        return False

    def clone(self) -> StoreClient:
        """Open another connection, for a thread of torch that must not wait behind this one."""
        other = StoreClient(*self._address, self._key, group=self._group, timeout=self.timeout)
        self._clones.append(other)  # torch refers only to its C++ half
        return other

    @property
    def local_address(self) -> str:
        """The address of this machine from which it reaches the store."""
        return str(self._socket.getsockname()[0])

    def close(self) -> None:
        """Close the connection and its clones. Idempotent."""
        for store in (*self._clones, self):
            store._socket.close()

    def _connect(self, deadline: float) -> socket.socket:
        pause_s = 0.01
        while True:
            try:
                connection = socket.create_connection(
                    self._address, timeout=max(deadline - time.monotonic(), pause_s)
                )
                try:
                    self._greet(connection)
                except BaseException:  # also an interrupt
                    connection.close()
                    raise
                return connection
            except _Refused as exc:
                raise dist.DistNetworkError(f"the store at {self._place} has another key: {exc}") from None
            except (OSError, EOFError, frames.WrongFrame) as exc:
                if time.monotonic() + pause_s > deadline:
                    raise dist.DistNetworkError(
                        f"no rendezvous store answers at {self._place}: {exc}. A firewall must let ranks "
                        "connect to it: see resources.ports, or set resources.rendezvous: spark"
                    ) from exc
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _greet(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames.keep_alive(connection)
        theirs, ours = _read(connection).get("nonce"), frames.nonce()
        if not isinstance(theirs, str):
            raise frames.WrongFrame("it is not a rendezvous store")
        proof = frames.proof(self._key, "client", theirs, ours, self._group)
        connection.sendall(frames.pack({"nonce": ours, "group": self._group, "proof": proof}))
        reply = _read(connection)
        if "error" in reply:
            raise _Refused("it refuses this key")
        expected = frames.proof(self._key, "server", theirs, ours, self._group)
        if not frames.proves(reply.get("proof"), expected):
            raise _Refused("it does not know this key")

    def _ask(self, request: dict[str, Any], wait: timedelta | None = None) -> Any:
        limit_s = 0.0 if wait is None else min(max(wait.total_seconds(), 0.0), frames.LONGEST_WAIT_S)
        if wait is not None:
            request["timeout_s"] = limit_s
        with self._lock:
            try:
                self._socket.settimeout(limit_s + _ANSWER_LIMIT_S)
                self._socket.sendall(frames.pack(request))
                reply = _read(self._socket)
            except BaseException as exc:  # also an interrupt
                self._socket.close()  # the next request would receive the reply to this one
                if isinstance(exc, OSError | EOFError | frames.WrongFrame):
                    raise dist.DistNetworkError(
                        f"lost the connection to the store at {self._place}: {exc}"
                    ) from exc
                raise
        if reply.get("error") == "timeout":
            missing = request.get("keys") or [request["key"]]
            raise dist.DistStoreError(
                f"no other rank has set {', '.join(missing)} within {limit_s:g} s: "
                "a rank was lost, or is slower than resources.rank_timeout_s"
            )
        return reply.get("result")

    @property
    def _place(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"


def _read(connection: socket.socket) -> dict[str, Any]:
    head = _exactly(connection, frames.LENGTH.size)
    return frames.parse(_exactly(connection, frames.length_of(head, frames.MAX_FRAME)))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise EOFError("the connection was closed")
        parts += part
    return bytes(parts)
