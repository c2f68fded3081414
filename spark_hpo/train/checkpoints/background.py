"""Writes checkpoints in the background, from a copy, while the training continues."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs one write at a time in a thread.

    A trace: start(a) returns at once; start(b) waits for a, and raises the error of a; wait() waits for b
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None  # threads do not survive the fork of a rank's process
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Run a write in the background, after the one before. Raises the error of the one before."""
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._thread.submit(write)

    @property
    def is_writing(self) -> bool:
        """True if a write has not ended yet."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Wait for the write in progress, and raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the write in progress, and end the thread. An error is only logged. Idempotent."""
        try:
            self.wait()
        except Exception as exc:  # the rank has failed for another reason, which its report names
            logger.warning("a checkpoint could not be saved: %s", exc)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
