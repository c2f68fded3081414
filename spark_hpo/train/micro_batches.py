"""Cuts batches into parts that fit the memory of a device."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, TypeVar

import torch

from spark_hpo.train.rank_failure import is_out_of_memory
from spark_hpo.train.task import Batch

logger = logging.getLogger(__name__)

T = TypeVar("T")

AUTO: Literal["auto"] = "auto"


@dataclass(eq=False)
class MicroBatches:
    """Cuts batches into parts of at most `limit` rows. With `auto`, the limit is found by trying.

    A trace, with `auto` and 64 rows on each of two ranks:
        cut(batch, 128) -> [64 rows]      a rank runs out of memory
        halve(batch, 128)                 limit is 32, halved is 1
        cut(batch, 128) -> [32 rows, 32 rows]
    """

    setting: int | Literal["auto"] | None  # rows, or None: batches are not cut
    _: KW_ONLY
    world_size: int = 1

    def __post_init__(self) -> None:
        self.limit = None if self.setting == AUTO else self.setting
        self.halved = 0  # times that a batch did not fit

    @property
    def is_auto(self) -> bool:
        """True if a batch that does not fit is halved."""
        return self.setting == AUTO

    def cut(self, batch: Batch, global_rows: int) -> list[Batch]:
        """Return the parts of this rank's share of a batch: equally many on all ranks."""
        number = self._number_of_parts(global_rows)
        if number == 1:
            return [batch]
        rows = _rows(batch)
        bounds = [index * rows // number for index in range(number + 1)]
        return [_slice(batch, start, stop) for start, stop in itertools.pairwise(bounds)]

    def halve(self, global_rows: int, error: Exception) -> None:
        """Halve the limit, because a part of a batch did not fit on a rank. All ranks come to the same limit.

        Raises:
            error: a part cannot be halved.
        """
        largest = -(-global_rows // self.world_size)
        rows = -(-largest // self._number_of_parts(global_rows))
        self._set(rows, error)

    def each_part(self, batch: Batch, compute: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
        """Yield the parts of a batch, each with what `compute` returns for it, without asking other ranks."""
        rows, start = _rows(batch), 0
        while start < rows:
            stop = rows if self.limit is None else min(rows, start + self.limit)
            part = batch if stop - start == rows else _slice(batch, start, stop)
            error: Exception | None = None
            try:
                result = compute(part)
            except Exception as exc:  # the user's code may raise anything; what is not memory is raised again
                error = self.caught(exc)
            if error is not None:
                free_memory()
                self._set(stop - start, error)
                continue
            yield part, result
            start = stop

    def caught(self, exc: Exception) -> Exception:
        """Return the exception of a part that did not fit; raise any other. Call it in the `except` block."""
        if not (self.is_auto and is_out_of_memory(exc)):
            raise exc
        return exc.with_traceback(None)  # its frames hold the tensors that did not fit

    def notes(self) -> dict[str, Any]:
        """Return what a report says about batches that had to be halved."""
        return {"micro_batch": {"rows": self.limit, "halved": self.halved}} if self.halved else {}

    def load_notes(self, notes: Mapping[str, Any]) -> None:
        """Continue with the limit that an earlier assignment has found."""
        if self.is_auto and "micro_batch" in notes:
            self.limit, self.halved = notes["micro_batch"]["rows"], notes["micro_batch"]["halved"]

    def _number_of_parts(self, global_rows: int) -> int:
        if self.limit is None:
            return 1
        # The shares of the ranks differ by at most one row, and every part needs one.
        largest, smallest = -(-global_rows // self.world_size), global_rows // self.world_size
        return min(-(-largest // self.limit), max(smallest, 1))

    def _set(self, rows_that_did_not_fit: int, error: Exception) -> None:
        half = rows_that_did_not_fit // 2
        if half < 1 or (self.limit is not None and half >= self.limit):  # a rank needs a row for each part
            raise error
        self.limit = half
        self.halved += 1
        logger.warning(
            "%d rows did not fit the memory of the device; trying %d rows at a time",
            rows_that_did_not_fit,
            self.limit,
        )


def free_memory() -> None:
    """Return the memory of tensors that are no longer used to the device."""
    gc.collect(1)  # a failed step is young garbage; all of it would take a second in a large process
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    return {name: values[start:stop] for name, values in batch.items()}
