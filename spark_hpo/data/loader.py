"""One rank's batches of one split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from spark_hpo.data.decode import Columns, bytes_per_row
from spark_hpo.data.files import changed
from spark_hpo.data.readers import open_reader
from spark_hpo.data.shards import Segment, StepPlan, plan_shards
from spark_hpo.data.table import Table
from spark_hpo.trial import Split

Batch = dict[str, torch.Tensor]
"""Columns by name: float32 [rows] or [rows, *shape], codes and class labels int64 [rows]."""

CACHE_BYTES = 256 * 2**20


class Loader:
    """One rank's batches of one split. Every rank makes the same number of steps in every epoch.

    In an epoch each row of the split is in exactly one batch of one rank. The order depends on
    (seed, epoch, rank) alone, so training 1 -> 3 -> 9 epochs in three processes sees what 9 at once see.

    A shard that fits into `cache_bytes` is decoded once and kept. A larger one streams: two windows and
    two row groups are in memory at a time.

    A trace, 10 rows, batch_size 4, rank 0 of 2: rows -> 5; steps_per_epoch -> 3;
    epochs(0, 1) -> one epoch of batches with 1, 2, 2 rows; global_rows(0) -> 2, global_rows(1) -> 4
    """

    def __init__(
        self,
        table: Table,
        split: Split,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        seed: int,
        reader: str = "auto",
        shuffle_window: int | None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """
        Args:
            batch_size: rows of one optimizer step over all ranks.
            seed: not negative.
            reader: petastorm, arrow or auto.
            shuffle_window: rows, at least, among which rows are shuffled, after the row groups have been;
                None: in the order of the files, for evaluation.
            cache_bytes: decoded bytes of a shard that are kept in memory across epochs; 0: none.

        Raises:
            DataError: the split has fewer rows than there are ranks.
            ConfigError: the reader cannot be had.
        """
        manifest = table.manifest(split)
        shuffled = shuffle_window is not None
        shards = plan_shards(manifest, world_size, seed if shuffled else None)
        self._segments = shards[rank].segments
        self._plan = StepPlan.of(shards, batch_size)
        self._url = manifest.url
        self._seed = (seed, rank)
        self._window = shuffle_window
        self._reader = open_reader(reader, manifest, table.schema)
        self.rows = shards[rank].rows  # of this rank
        self.total_rows = manifest.rows  # of all ranks
        self.steps_per_epoch = self._plan.steps
        keep = self.rows * bytes_per_row(table.schema) <= cache_bytes
        self._cache: dict[Segment, Columns] | None = {} if keep else None

    def global_rows(self, step: int) -> int:
        """Rows of a step (0..steps_per_epoch-1) over all ranks, known without asking them."""
        return self._plan.global_rows(step)

    def epochs(self, start: int, stop: int) -> Iterator[Iterator[Batch]]:
        """The batches of the epochs `start` up to, not including, `stop`. Numbers are absolute, from 0.

        Raises, while iterating:
            DataError: a file cannot be read, has a null or a value that is not finite, or does not hold
                the rows that were planned.
        """
        for epoch in range(start, stop):
            yield self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        if self._window is None:
            return self._batches(self._read(self._segments), 0, None)
        rng = np.random.default_rng((*self._seed, epoch))
        segments = [self._segments[i] for i in rng.permutation(len(self._segments))]
        return self._batches(self._read(segments), self._window, rng)

    def _read(self, segments: Sequence[Segment]) -> Iterator[Columns]:
        cache = self._cache
        if cache is None:
            yield from self._reader.read(segments)
            return
        fresh = self._reader.read([segment for segment in segments if segment not in cache])
        for segment in segments:
            if segment not in cache:
                cache[segment] = next(fresh)
            yield cache[segment]

    def _batches(
        self, pieces: Iterator[Columns], window: int, rng: np.random.Generator | None
    ) -> Iterator[Batch]:
        """Collect pieces to windows, shuffle these, and cut them into the batches of the plan.

        The rows that are left of a window, fewer than a batch, go into the next.
        """
        step = done = rows = 0  # batches and rows that have gone out; rows that are held
        held: list[Columns] = []
        for piece in pieces:
            held.append(piece)
            rows += _rows(piece)
            _, stop = self._plan.bounds(self.rows, step)
            if rows < max(window, stop - done) and done + rows < self.rows:
                continue
            block = _joined(held, None if rng is None else rng.permutation(rows))
            start = done
            while step < self.steps_per_epoch:
                _, stop = self._plan.bounds(self.rows, step)
                if stop > start + rows:
                    break
                yield {name: column[done - start : stop - start] for name, column in block.items()}
                step, done = step + 1, stop
            held = [{name: column[done - start :].numpy() for name, column in block.items()}]
            rows -= done - start
        if done != self.rows or rows:
            raise changed(self._url, f"{done + rows} rows were read, {self.rows} were planned")


def _joined(pieces: list[Columns], order: npt.NDArray[np.int64] | None) -> Batch:
    """The rows of all pieces, in this order. A copy: what a task does to a batch stays in the batch."""
    names = pieces[0]
    if order is None:
        return {n: torch.from_numpy(np.concatenate([piece[n] for piece in pieces])) for n in names}
    if len(pieces) == 1:
        return {n: torch.from_numpy(np.take(pieces[0][n], order, axis=0)) for n in names}
    return {
        n: torch.from_numpy(np.take(np.concatenate([p[n] for p in pieces]), order, axis=0)) for n in names
    }


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values())))
