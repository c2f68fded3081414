"""Makes an end of a rank that makes no step any more, and says where it stood."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType

from spark_hpo.errors import StorageError
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment

EXIT_CODE = 70
_MOST_S = 5.0  # between two looks
_PARTS = 5  # looks in a limit, at least


class Watch:
    """A thread beside one rank: it looks at the count of its steps, not at a heartbeat.

    Rank 0's tells the driver how far the rank is. A rank that holds the interpreter's lock for ever ends too,
    by a timer of the C library's; its stack goes to standard error then.
    """

    def __init__(
        self,
        storage: Storage,
        assignment: Assignment,
        *,
        rank: int,
        limit_s: float | None,
        moves: Callable[[], int | None],
    ) -> None:
        """
        Args:
            limit_s: for a step; None: nothing is watched.
            moves: grows while the rank is at work; None: that cannot be told yet.
        """
        self._storage = storage
        self._progress = layout.progress(assignment.trial_id, assignment.attempt)
        self._stacks = layout.stacks(assignment.trial_id, assignment.attempt, rank)
        self._tells = rank == 0
        self._limit_s = limit_s
        self._moves = moves
        self._ended = threading.Event()
        self._has_told = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self._limit_s is not None:
            interval = min(_MOST_S, self._limit_s / _PARTS)
            self._thread = threading.Thread(
                target=self._look, args=(self._limit_s, interval), name="spark_hpo-watch", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_MOST_S)  # it may be writing to a store that is slow
            faulthandler.cancel_dump_traceback_later()
        if self._has_told:
            with contextlib.suppress(StorageError):
                self._storage.delete(self._progress)

    def _look(self, limit_s: float, interval: float) -> None:
        seen, since = self._moves(), time.monotonic()
        while not self._ended.wait(interval):
            now, moves = time.monotonic(), self._moves()
            if moves is None or moves != seen:
                seen, since = moves, now
                # For when this thread does not come to its turn.
                faulthandler.dump_traceback_later(limit_s + 2 * interval, exit=True)
                self._tell(moves)
            elif now - since > limit_s:
                self._end(limit_s)

    def _tell(self, moves: int | None) -> None:
        if self._tells:
            # That it lives is all that is known of a rank which does not say that it moves.
            said = f"{time.time():.0f} s" if moves is None else f"{moves} moves"
            with contextlib.suppress(StorageError):  # the driver then takes the rank for one that stands
                self._storage.write(self._progress, said.encode())
                self._has_told = True

    def _end(self, limit_s: float) -> None:
        with contextlib.suppress(StorageError, OSError), tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            self._storage.write(
                self._stacks, b"no step in %.0f s (resources.rank_timeout_s)\n" % limit_s + file.read()
            )
        os._exit(EXIT_CODE)  # its main thread cannot be told to stop
