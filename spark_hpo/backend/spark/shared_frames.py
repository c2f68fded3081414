"""DataFrames that the trials of a study share: made once, cached, and released when the study ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_DRAW = "_spark_hpo_draw"  # column: a number in [0, 1) that decides on the fold of a row


class SharedFrames:
    """The cached DataFrames of one study, for all threads that run its trials.

    Spark computes a partition when the first trial reads it; a second trial that needs it meanwhile waits.

    A trace: get("rows", make) -> the DataFrame that make() returns; get("rows", make) -> the same, make is
        not called; fold(rows, 1, 3, seed=7) -> training rows, held-out rows; close() -> both caches are empty
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._named: dict[str, DataFrame] = {}
        self._drawn: dict[
            tuple[int, int], tuple[DataFrame, DataFrame]
        ] = {}  # by id and seed: original, cached
        self._cached: list[DataFrame] = []

    def get(self, name: str, make: Callable[[], DataFrame]) -> DataFrame:
        """Return the DataFrame of this name; make and cache it at the first call."""
        with self._lock:
            if name not in self._named:
                self._named[name] = self._cache(make())
            return self._named[name]

    def fold(
        self, frame: DataFrame, number: int | None, count: int, *, seed: int
    ) -> tuple[DataFrame, DataFrame]:
        """Return the training and the held-out rows of a fold, as CrossValidator divides with the same seed.

        Args:
            frame: all rows. Pass the same object each time, so that its rows are cached once.
            number: 1 to `count`; None: both are all rows.
            count: of folds.
            seed: of the division.
        """
        from pyspark.sql import functions as F

        with self._lock:
            key = id(frame), seed
            if key not in self._drawn:
                drawn = frame.select("*", F.rand(seed).alias(_DRAW))
                self._drawn[key] = frame, self._cache(drawn)  # holding the frame keeps its id its own
            drawn = self._drawn[key][1]
        if number is None:
            return drawn.drop(_DRAW), drawn.drop(_DRAW)
        width = 1.0 / count
        draw = drawn[_DRAW]
        is_held_out = (draw >= (number - 1) * width) & (draw < number * width)
        return drawn.filter(~is_held_out).drop(_DRAW), drawn.filter(is_held_out).drop(_DRAW)

    def close(self) -> None:
        """Release what was cached here. Idempotent."""
        with self._lock:
            cached, self._cached = self._cached, []
            self._named.clear()
            self._drawn.clear()
        for frame in cached:
            with contextlib.suppress(Exception):  # Spark may have stopped, and its cache with it
                frame.unpersist()

    def _cache(self, frame: DataFrame) -> DataFrame:
        if frame.is_cached:  # by the user, who also releases it
            return frame
        self._cached.append(frame)
        return frame.cache()
