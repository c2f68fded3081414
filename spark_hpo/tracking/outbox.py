"""The outbox: a thread that sends values to a service, and retries after an outage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

FIRST_PAUSE_S = 1.0  # after the first failed call; doubled up to LONGEST_PAUSE_S
LONGEST_PAUSE_S = 60.0


class Outbox(Generic[K, V]):
    """Takes values without waiting, and sends them in the order in which their keys arrived.

    A value that has not been sent yet is replaced by a later one of the same key. When a call fails, nothing
    else is sent until it succeeds or is given up, so the order stays.

    A trace: put(7, a); put(8, b); put(7, c); a call fails; 1 s later: send(7, c); send(8, b)
    """

    def __init__(
        self,
        name: str,
        send: Callable[[K, V], None],
        *,
        limit: int | None = None,
        gives_up: Callable[[K, Exception, int], bool] = lambda key, error, attempts: False,
        on_outage: Callable[[Exception], None] = lambda error: None,
        on_return: Callable[[], None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            name: of the thread.
            send: sends a value; it may raise anything.
            limit: keys that may wait; None: any number.
            gives_up: says, after so many failed attempts, whether to send a value no more.
            on_outage: called with the error of the first failed call of an outage.
            on_return: called after the first successful call after an outage.
            at_end: called in the thread when it ends.
        """
        self._send, self._limit, self._gives_up = send, limit, gives_up
        self._on_outage, self._on_return, self._at_end = on_outage, on_return, at_end
        self._changed = threading.Condition()
        self._waiting: dict[K, V] = {}  # also the value that is being sent
        self._given_up: set[K] = set()
        self._is_closed = False
        self._attempts = 0  # failed ones of the first value
        self._is_out = False  # the service has not answered since a call failed
        self._pause_s = 0.0
        self._retry_at = 0.0  # monotonic
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def num_missing(self) -> int:
        """The number of values that wait or were given up."""
        with self._changed:
            return len(self._waiting) + len(self._given_up)

    @property
    def num_given_up(self) -> int:
        return len(self._given_up)

    def put(self, key: K, value: V) -> bool:
        """Take over a value, at once. Returns False if too many others wait."""
        with self._changed:
            if self._limit is not None and len(self._waiting) >= self._limit and key not in self._waiting:
                return False
            self._waiting[key] = value
            self._given_up.discard(key)
            self._changed.notify_all()
            return True

    def wait(self, timeout_s: float) -> int:
        """Send at once, and wait at most `timeout_s` seconds until nothing waits. Returns `num_missing`."""
        with self._changed:
            self._pause_s = self._retry_at = 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout_s)
        return self.num_missing

    def close(self, timeout_s: float, *, ending_s: float | None = None) -> int:
        """Wait as `wait` does, then end the thread. What is not sent by then is dropped. Idempotent.

        Args:
            ending_s: how long the thread may take to end; a call that hangs has its own timeout. None: what
                is left of `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        missing = self.num_missing if self._is_closed else self.wait(timeout_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()) if ending_s is None else ending_s)
        return missing

    def _run(self) -> None:
        while (found := self._next()) is not None:
            key, value = found
            error: Exception | None = None
            try:
                self._send(key, value)
            except Exception as exc:  # no error of a service may stop the study
                error = exc
            with self._changed:
                self._settle(key, value, error)
                self._changed.notify_all()
        self._at_end()

    def _next(self) -> tuple[K, V] | None:
        """Wait until a value is to be sent, and return it; None: the outbox is closed."""
        with self._changed:
            while not self._is_closed and not (self._waiting and time.monotonic() >= self._retry_at):
                pause_s = max(0.01, self._retry_at - time.monotonic()) if self._waiting else None
                self._changed.wait(pause_s)
            return None if self._is_closed else next(iter(self._waiting.items()))

    def _settle(self, key: K, value: V, error: Exception | None) -> None:
        self._attempts += 1
        is_given_up = error is not None and self._gives_up(key, error, self._attempts)
        if error is None or is_given_up:
            self._attempts = 0
            if self._waiting.get(key) is value:  # else there is a later one
                del self._waiting[key]
                if is_given_up:
                    self._given_up.add(key)
            if error is None and self._is_out:
                self._is_out = False
                self._on_return()
            self._pause_s = self._retry_at = 0.0
            return
        if not self._is_out:
            self._is_out = True
            self._on_outage(error)
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._retry_at = time.monotonic() + self._pause_s
