"""The store in which ranks meet, as a rank sees it: what torch's process groups take for a TCPStore."""

from __future__ import annotations

import socket
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import Store  # dist has it, but does not export it

from spark_hpo.train.rendezvous import frames

_ANSWER_LIMIT_S = 30.0  # for an answer that waits for nobody
_CONNECT_LIMIT_S = 30.0


class _Refused(Exception):
    """The other side does not know the key."""


class StoreClient(Store):
    """A rank's connection to a store, as torch's process groups use one.

    Whoever gives it to torch keeps a reference: torch holds the half of it that is C++.
    """

    timeout: timedelta  # of torch's; its stub lacks it

    def __init__(self, host: str, port: int, key: bytes, *, group: str, timeout: timedelta) -> None:
        """
        Args:
            timeout: for values that another rank has not put down yet.

        Raises:
            torch.distributed.DistNetworkError: it cannot be reached, or has another key.
        """
        super().__init__()
        self.set_timeout(timeout)
        self._address = host, port
        self._key = key
        self._group = group
        self._lock = threading.Lock()  # a question and its answer belong together
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
        """Another connection, for a thread of torch's own that must not wait behind this one."""
        other = StoreClient(*self._address, self._key, group=self._group, timeout=self.timeout)
        self._clones.append(other)  # torch keeps no reference to what Python is in it
        return other

    def close(self) -> None:
        """Hang up. Idempotent."""
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
                except BaseException:  # an interrupt too: nobody else would close it
                    connection.close()
                    raise
                return connection
            except _Refused as exc:
                raise dist.DistNetworkError(f"the store at {self._place} is another one's: {exc}") from None
            except (OSError, EOFError, frames.WrongFrame) as exc:
                if time.monotonic() + pause_s > deadline:
                    raise dist.DistNetworkError(f"no store answers at {self._place}: {exc}") from exc
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _greet(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames.keep_alive(connection)
        theirs, ours = _read(connection).get("nonce"), frames.nonce()
        if not isinstance(theirs, str):
            raise frames.WrongFrame("it is no store")
        proof = frames.proof(self._key, "client", theirs, ours, self._group)
        connection.sendall(frames.pack({"nonce": ours, "group": self._group, "proof": proof}))
        reply = _read(connection)
        if "error" in reply:
            raise _Refused("it refuses our key")
        expected = frames.proof(self._key, "server", theirs, ours, self._group)
        if not frames.proves(reply.get("proof"), expected):
            raise _Refused("it does not know our key")

    def _ask(self, request: dict[str, Any], wait: timedelta | None = None) -> Any:
        limit_s = 0.0 if wait is None else min(max(wait.total_seconds(), 0.0), frames.LONGEST_WAIT_S)
        if wait is not None:
            request["timeout_s"] = limit_s
        with self._lock:
            try:
                self._socket.settimeout(limit_s + _ANSWER_LIMIT_S)
                self._socket.sendall(frames.pack(request))
                reply = _read(self._socket)
            except BaseException as exc:  # an interrupt too
                self._socket.close()  # what comes next on it might be the answer to this
                if isinstance(exc, OSError | EOFError | frames.WrongFrame):
                    raise dist.DistNetworkError(f"the store at {self._place} is gone: {exc}") from exc
                raise
        if reply.get("error") == "timeout":
            missing = request.get("keys") or [request["key"]]
            raise dist.DistStoreError(
                f"no other rank has put {', '.join(missing)} into the store within {limit_s:g} s: "
                "it is lost, or slower than resources.rank_timeout_s"
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
            raise EOFError("it hangs up")
        parts += part
    return bytes(parts)
