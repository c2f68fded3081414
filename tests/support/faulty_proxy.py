"""An HTTP proxy that can forward, refuse or hold each request, or drop its reply."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_LIMIT_S = 60.0  # for the server behind it
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Fault(Enum):
    """The treatment of one request."""

    NONE = auto()
    REFUSE = auto()  # the connection ends, and the server has seen nothing
    DROP_REPLY = auto()  # the server has done it, and the connection ends without its reply
    HOLD = auto()  # nothing happens until the test allows one more request


class FaultyProxy:
    """A proxy in front of a server on loopback. `fault(method, path)` decides about each request."""

    def __init__(self, port: int) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, path: Fault.NONE
        self.answered = 0
        self.met: list[tuple[Fault, str]] = []  # faults, and the paths that they hit
        self._target = port
        self._permits = threading.Semaphore(0)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def allow(self, count: int = 1) -> None:
        """Forward the held requests."""
        self._permits.release(count)

    def heal(self) -> None:
        """Stop all faults, and forward the held requests."""
        self.fault = lambda method, path: Fault.NONE
        self.allow(1_000)

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        fault = self.fault(handler.command, handler.path)
        if fault is not Fault.NONE:
            self.met.append((fault, handler.path))
        if fault is Fault.HOLD:
            self._permits.acquire()
        if fault is Fault.REFUSE:
            return _hang_up(handler)
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=_LIMIT_S)
        try:
            kept = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_BY_HOP}
            connection.request(handler.command, handler.path, body, kept)
            reply = connection.getresponse()
            data = reply.read()
        except OSError:
            return _hang_up(handler)
        finally:
            connection.close()
        if fault is Fault.DROP_REPLY:
            return _hang_up(handler)
        handler.send_response_only(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        self.answered += 1
        return None


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            try:
                proxy.serve(self)
            except OSError:  # the client has gone
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    return Handler
