"""Ctrl-C and SIGTERM while a study runs: once, it ends what it is at; twice, it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Takes the process's signals as long as it is entered, and gives them back as they were.

    In another thread than the main one nothing is taken: there are no signals there.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._before: dict[int, Any] = {}

    def is_requested(self) -> bool:
        return self._requested.is_set()

    def request(self) -> None:
        """As a first signal would."""
        self._requested.set()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested.is_set():
            raise KeyboardInterrupt
        self._requested.set()
