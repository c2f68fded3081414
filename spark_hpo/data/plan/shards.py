"""Which rows each rank reads, and in how many steps: decided from the footers alone."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.errors import DataError


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows in one row group: `start` up to, not including, `stop`."""

    file: int  # index into Manifest.files
    row_group: int  # within its file
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one rank reads in every epoch. Never empty."""

    rank: int
    segments: tuple[Segment, ...]
    rows: int


def plan_shards(
    manifest: Manifest, world_size: int, seed: int | None, *, part: int = 0, parts: int = 1
) -> tuple[Shard, ...]:
    """Deal the rows of one part of a split to the ranks: disjoint, complete, and equal to within one row.

    The row groups are permuted, laid end to end, and cut at equal lengths: into parts, and these for the
    ranks. So at most `parts * world_size - 1` row groups are read more than once, whatever their sizes and
    however few there are.

    Args:
        seed: of the permutation; None keeps the order of the files.
        part: 0..parts-1.

    Raises:
        DataError: a part has fewer rows than there are ranks.
    """
    first_row, end_row = _part(manifest.rows, parts, part)
    rows = end_row - first_row
    if rows < world_size:
        whole, cure = "", f"at most {rows} ranks"
        if parts > 1:
            whole, cure = f" in {parts} parts", "a smaller search.max_resource, fewer ranks"
        raise DataError(
            f"{manifest.url}: {manifest.rows} rows{whole} cannot feed {world_size} ranks: "
            f"use {cure}, or a larger table"
        )
    order = np.arange(len(manifest.row_groups))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    groups = [manifest.row_groups[i] for i in order]
    ends = list(accumulate(group.rows for group in groups))
    shards = []
    first = bisect_right(ends, first_row)  # the first row group that still has rows to give
    for rank in range(world_size):
        start, stop = (first_row + bound for bound in _part(rows, world_size, rank))
        segments = []
        while start < stop:
            group, end = groups[first], ends[first]
            begin, cut = end - group.rows, min(end, stop)
            segments.append(Segment(group.file, group.index, start - begin, cut - begin))
            start = cut
            first += cut == end
        shards.append(
            Shard(rank=rank, segments=tuple(segments), rows=sum(segment.rows for segment in segments))
        )
    return tuple(shards)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The steps of an epoch: the same number on every rank, each row in exactly one of them.

    Every rank knows the rows of every other without asking, so gradients and metrics can be weighted
    exactly. The rows of a step are `batch_size` or a few less, over all ranks; more only by rounding
    (fewer than `world_size` rows), or where `batch_size` is below `world_size`.
    """

    sizes: tuple[tuple[int, int], ...]  # (rows of a shard, how many ranks have so many)
    steps: int  # in an epoch

    @classmethod
    def of(cls, shards: Sequence[Shard], batch_size: int) -> StepPlan:
        """`batch_size`: rows of one optimizer step over all ranks."""
        counts = Counter(shard.rows for shard in shards)
        total = sum(rows * ranks for rows, ranks in counts.items())
        steps = min(-(-total // batch_size), min(counts))  # each rank has a row in each step
        return cls(sizes=tuple(counts.items()), steps=steps)

    @property
    def rows(self) -> int:
        """Of all shards."""
        return sum(rows * ranks for rows, ranks in self.sizes)

    def bounds(self, rows: int, step: int) -> tuple[int, int]:
        """First row and end of a step, in a shard of `rows` rows."""
        return _part(rows, self.steps, step)

    def global_rows(self, step: int) -> int:
        """Rows of a step over all ranks."""
        parts = ((_part(rows, self.steps, step), ranks) for rows, ranks in self.sizes)
        return sum((stop - start) * ranks for (start, stop), ranks in parts)


def _part(total: int, parts: int, index: int) -> tuple[int, int]:
    """The index-th of so many equal parts of a whole, in integers."""
    return index * total // parts, (index + 1) * total // parts
