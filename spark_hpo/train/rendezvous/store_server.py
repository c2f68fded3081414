"""The server of the rendezvous store: keys and values, for clients that know the study's key.

A client that violates the protocol is disconnected. Other clients are not affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.backend.ports import listen
from spark_hpo.train.rendezvous import frames

_MAX_CONNECTIONS = 2**14
_MAX_UNAUTHENTICATED = 256  # connections
_MAX_KEYS = 2**14  # per group
_GREETING_LIMIT_S = 10.0
_FRAME_LIMIT_S = 10.0  # from the first byte of a frame to its last
_INT64 = range(-(2**63), 2**63)


class StoreServer:
    """Serves the store in a background thread until `close`.

    Keys belong to groups, one per attempt, and a client sees the keys of its own group only. The keys are
    deleted `keep_s` seconds after the last member of the group has left, so that a late member still finds
    them.
    """

    def __init__(self, host: str, key: bytes, *, keep_s: float, ports: Sequence[int] = (0,)) -> None:
        """
        Args:
            host: the one address to listen on.
            ports: the ports to try, in this order; 0 is any free port.

        Raises:
            OSError: the address does not belong to this machine, or all ports are taken.
        """
        listening = listen(host, ports)
        self.port: int = listening.getsockname()[1]
        self._key = key
        self._keep_s = keep_s
        self._groups: dict[str, _Group] = {}
        self._connections = 0
        self._unauthenticated: dict[asyncio.StreamWriter, None] = {}  # the oldest first
        self._stopping = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(
            target=self._run, args=(listening,), name="spark_hpo-store", daemon=True
        )
        self._thread.start()

    def most_members(self, group: str) -> int:
        """Return how many members a group has had at once. Any thread may call it."""
        found = self._groups.get(group)
        return 0 if found is None else found.most_members

    def close(self) -> None:
        """Close all connections and release the port. Idempotent."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def _run(self, listening: socket.socket) -> None:
        with self._runner, listening:
            self._runner.run(self._listen(listening))

    async def _listen(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._serve, sock=listening)
        await self._stopping.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._authenticated(reader, writer) as group:
                while True:
                    # The first byte has no time limit: ranks send nothing while they train.
                    reply = await self._answer(group, await _receive(reader, frames.MAX_FRAME))
                    writer.write(frames.pack(reply))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, frames.WrongFrame, asyncio.CancelledError):
            pass  # the client has gone or has violated the protocol
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _authenticated(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[_Group]:
        """Enter the group of a connection that proves that it knows the key."""
        if self._connections >= _MAX_CONNECTIONS:
            raise frames.WrongFrame
        self._connections += 1
        self._unauthenticated[writer] = None
        if len(self._unauthenticated) > _MAX_UNAUTHENTICATED:
            # A rank authenticates within milliseconds: the slowest connection is not one.
            oldest = next(iter(self._unauthenticated))
            del self._unauthenticated[oldest]
            oldest.transport.abort()
        try:
            async with asyncio.timeout(_GREETING_LIMIT_S):
                name = await self._greet(reader, writer)
            self._unauthenticated.pop(writer, None)
            frames.keep_alive(writer.get_extra_info("socket"))
            group = self._groups.setdefault(name, _Group())
            group.members += 1
            group.most_members = max(group.most_members, group.members)
            if group.deletion is not None:
                group.deletion.cancel()
            try:
                yield group
            finally:
                group.members -= 1
                if not group.members:
                    group.deletion = self._loop.call_later(self._keep_s, self._groups.pop, name)
        finally:
            self._unauthenticated.pop(writer, None)
            self._connections -= 1

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        ours = frames.nonce()
        writer.write(frames.pack({"nonce": ours}))
        match await _receive(reader, frames.MAX_GREETING):
            case {"nonce": str(theirs), "group": str(name), "proof": str(proof)}:
                pass
            case _:
                raise frames.WrongFrame
        if not frames.proves(proof, frames.proof(self._key, "client", ours, theirs, name)):
            writer.write(frames.pack({"error": "key"}))
            await writer.drain()
            writer.close()  # not aborted: a rank of another study must receive the error
            await writer.wait_closed()
            raise frames.WrongFrame
        writer.write(frames.pack({"proof": frames.proof(self._key, "server", ours, theirs, name)}))
        await writer.drain()
        return name

    async def _answer(self, group: _Group, request: dict[str, Any]) -> dict[str, Any]:
        values = group.values
        match request:
            case {"op": "set", "key": str(key), "value": str(value)}:
                group.put(key, value)
                return {"result": None}
            case {"op": "get", "key": str(key), "timeout_s": float(limit)}:
                is_set = await group.wait_for(lambda: key in values, limit)
                return {"result": values[key]} if is_set else {"error": "timeout"}
            case {"op": "wait", "keys": [*keys], "timeout_s": float(limit)} if _are_strings(keys):
                is_set = await group.wait_for(lambda: all(key in values for key in keys), limit)
                return {"result": None} if is_set else {"error": "timeout"}
            case {"op": "check", "keys": [*keys]} if _are_strings(keys):
                return {"result": all(key in values for key in keys)}
            case {"op": "add", "key": str(key), "amount": int(amount)}:
                total = _number(values.get(key)) + amount
                if total not in _INT64:
                    raise frames.WrongFrame
                group.put(key, frames.encode(str(total).encode()))
                return {"result": total}
            case {"op": "compare_set", "key": str(key), "expected": str(expected), "desired": str(desired)}:
                # As in TCPStore: only an empty expected value creates a missing key.
                if values.get(key, "") == expected:
                    group.put(key, desired)
                return {"result": values.get(key, expected)}
            case {"op": "delete_key", "key": str(key)}:
                return {"result": values.pop(key, None) is not None}
            case {"op": "num_keys"}:
                return {"result": len(values)}
        raise frames.WrongFrame


@dataclass(slots=True, kw_only=True)
class _Group:
    """The keys of one attempt's ranks. Values stay in base64, as they were sent."""

    values: dict[str, str] = field(default_factory=dict)
    members: int = 0  # connections
    most_members: int = 0  # at once
    deletion: asyncio.TimerHandle | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # replaced after each change

    def put(self, key: str, value: str) -> None:
        """Set a value and wake the waiting clients. Not a coroutine: read and write are one atomic step."""
        if len(self.values) >= _MAX_KEYS and key not in self.values:
            raise frames.WrongFrame
        self.values[key] = value
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Return True as soon as the condition holds, or False after `limit_s` seconds."""
        try:
            async with asyncio.timeout(min(limit_s, frames.LONGEST_WAIT_S)):
                while not condition():
                    await self.changed.wait()
        except TimeoutError:
            return False
        return True


async def _receive(reader: asyncio.StreamReader, most: int) -> dict[str, Any]:
    head = await reader.readexactly(1)
    async with asyncio.timeout(_FRAME_LIMIT_S):
        length = frames.length_of(head + await reader.readexactly(frames.LENGTH.size - 1), most)
        return frames.parse(await reader.readexactly(length))


def _number(value: str | None) -> int:
    try:
        return 0 if value is None else int(frames.decode(value))
    except ValueError as exc:
        raise frames.WrongFrame("the value is not a number") from exc


def _are_strings(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)
