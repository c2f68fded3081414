"""Kills a rank that has stopped making progress, and saves its stack trace."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment

EXIT_CODE = 70
_LONGEST_INTERVAL_S = 5.0  # between two checks
_CHECKS_PER_LIMIT = 5  # at least


@dataclass(eq=False)
class Watchdog:
    """A thread beside one rank that kills the process when the rank's progress count stops growing.

    Rank 0's watchdog also writes the count to the study directory, for the driver. A rank that never
    releases the interpreter's lock is killed by a timer in C; its stack trace then goes to standard error.

    A trace, with a limit of 60 s: progress 10 at 0 s; 10 at 55 s; 10 at 65 s -> trace saved, process killed
    """

    storage: Storage
    assignment: Assignment
    _: KW_ONLY
    rank: int
    limit_s: float | None  # the longest time without progress; None: the rank is not watched

    def __post_init__(self) -> None:
        a = self.assignment
        self._progress_path = layout.progress(a.trial_id, a.attempt, a.part)
        self._stacks_path = layout.stacks(a.trial_id, a.attempt, self.rank, a.part)
        self._progress: Callable[[], int | None] = lambda: 0
        self._ended = threading.Event()
        self._has_reported = False
        self._thread: threading.Thread | None = None

    def follow(self, progress: Callable[[], int | None]) -> None:
        """Watch this count from now on. None: the rank does not count, and is only reported as alive."""
        self._progress = progress

    def __enter__(self) -> Watchdog:
        if self.limit_s is not None:
            interval = min(_LONGEST_INTERVAL_S, self.limit_s / _CHECKS_PER_LIMIT)
            self._thread = threading.Thread(
                target=self._run, args=(self.limit_s, interval), name="spark_hpo-watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_INTERVAL_S)  # it may be writing to a slow storage
            faulthandler.cancel_dump_traceback_later()
        if self._has_reported:
            with contextlib.suppress(StorageError):
                self.storage.delete(self._progress_path)

    def _run(self, limit_s: float, interval: float) -> None:
        seen, since = self._progress(), time.monotonic()
        while not self._ended.wait(interval):
            now, progress = time.monotonic(), self._progress()
            if progress is None or progress != seen:
                seen, since = progress, now
                # Kills the process if this thread is never scheduled again.
                faulthandler.dump_traceback_later(limit_s + 2 * interval, exit=True)
                self._report(progress)
            elif now - since > limit_s:
                self._kill(limit_s)

    def _report(self, progress: int | None) -> None:
        if self.rank == 0:
            # A function that does not count its progress only shows that its process is alive.
            text = f"{time.time():.0f} s" if progress is None else f"progress {progress}"
            with contextlib.suppress(StorageError):  # the driver then sees a stalled rank
                self.storage.write(self._progress_path, text.encode())
                self._has_reported = True

    def _kill(self, limit_s: float) -> None:
        with contextlib.suppress(StorageError, OSError), tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            heading = f"no step for {limit_s:.4g} s (resources.rank_timeout_s)\n"
            self.storage.write(self._stacks_path, heading.encode() + file.read())
        os._exit(EXIT_CODE)  # the main thread cannot be interrupted from here
