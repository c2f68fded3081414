"""Outbox: a thread that writes the latest value of each key to a service, and retries after an outage."""

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
    """Takes values without waiting, and writes them in the order of their keys' arrival.

    A value that has not been written yet is replaced by a later one of the same key.

    Args:
        name: of the thread.
        write: writes a value; it may raise anything.
        on_outage: called with the error of the first failed call of an outage.
        at_end: called in the thread when it ends.
    """

    def __init__(
        self,
        name: str,
        write: Callable[[K, V], None],
        *,
        on_outage: Callable[[Exception], None],
        at_end: Callable[[], None],
    ) -> None:
        self._write, self._on_outage, self._at_end = write, on_outage, at_end
        self._changed = threading.Condition()
        self._pending: dict[K, V] = {}
        self._writing: set[K] = set()  # at most one
        self._is_closed = False
        self._pause_s = 0.0
        self._retry_at = 0.0  # monotonic
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, key: K, value: V) -> None:
        """Take over a value. Returns at once."""
        with self._changed:
            self._pending[key] = value
            self._changed.notify_all()

    def close(self, timeout_s: float) -> int:
        """Wait at most `timeout_s` seconds until everything is written, then end the thread.

        Returns:
            The number of values that are not written.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._pause_s = self._retry_at = 0.0  # retry now
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._pending or self._writing), timeout_s)
            missing = len(self._pending.keys() | self._writing)
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - time.monotonic()))  # a call that hangs has its own timeout
        return missing

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._is_closed or (self._pending and time.monotonic() >= self._retry_at)):
                    pause_s = max(0.01, self._retry_at - time.monotonic()) if self._pending else None
                    self._changed.wait(pause_s)
                if self._is_closed:
                    break
                key = next(iter(self._pending))
                value = self._pending.pop(key)
                self._writing = {key}
            error: Exception | None = None
            try:
                self._write(key, value)
            except Exception as exc:  # no error of a service may stop the study
                error = exc
            with self._changed:
                self._writing = set()
                self._settle(key, value, error)
                self._changed.notify_all()
        self._at_end()

    def _settle(self, key: K, value: V, error: Exception | None) -> None:
        if error is None:
            self._pause_s = 0.0
            return
        self._pending.setdefault(key, value)  # unless there is a later one
        if not self._pause_s:
            self._on_outage(error)
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._retry_at = time.monotonic() + self._pause_s
