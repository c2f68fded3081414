"""Plans which rows each rank reads and in how many steps, from footers alone."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

import numpy as np

from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.errors import DataError


@dataclass(frozen=True, slots=True)
class Segment:
    """The rows `start` (inclusive) to `stop` (exclusive) of one row group."""

    file: int  # index into Manifest.files
    row_group: int  # within its file
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def runs(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Yield neighbours of one row group together, so that the row group is read once."""
    for _, run in groupby(segments, key=lambda segment: (segment.file, segment.row_group)):
        yield list(run)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The rows that one rank reads in every epoch. Never empty."""

    rank: int
    segments: tuple[Segment, ...]
    rows: int


def plan_shards(
    manifest: Manifest, world_size: int, seed: int | None, *, part: int = 0, parts: int = 1
) -> tuple[Shard, ...]:
    """Divide the rows of one part of a split among the ranks: disjoint, complete, equal to within one row.

    The row groups are permuted, concatenated and cut into parts of equal length, and each part is cut into
    one shard per rank. Without folds, at most `parts * world_size - 1` row groups are therefore read by more
    than one shard.

    Args:
        seed: the seed of the permutation; None keeps the order of the files.
        part: index of the part, 0 to parts - 1.

    Raises:
        DataError: a part has fewer rows than ranks.
    """
    first_row, end_row = split_range(manifest.rows, parts, part)
    rows = end_row - first_row
    if rows < world_size:
        whole, cure = "", f"at most {rows} ranks"
        if parts > 1:
            whole, cure = f" in {parts} parts", "a smaller search.max_resource, fewer ranks"
        raise DataError(
            f"{manifest.url} has {manifest.rows} rows{whole}, too few for {world_size} ranks. "
            f"Use {cure}, or a larger table"
        )
    order = np.arange(len(manifest.row_groups))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    groups, ranges = manifest.row_groups, manifest.ranges
    pieces = [
        Segment(groups[i].file, groups[i].index, start, stop) for i in order for start, stop in ranges[i]
    ]
    ends = list(accumulate(piece.rows for piece in pieces))
    shards = []
    first = bisect_right(ends, first_row)  # the first piece that has rows left
    for rank in range(world_size):
        start, stop = (first_row + bound for bound in split_range(rows, world_size, rank))
        segments = []
        while start < stop:
            piece, end = pieces[first], ends[first]
            cut = min(end, stop)
            segments.append(replace(piece, start=piece.stop - (end - start), stop=piece.stop - (end - cut)))
            start = cut
            first += cut == end
        shards.append(
            Shard(rank=rank, segments=tuple(segments), rows=sum(segment.rows for segment in segments))
        )
    return tuple(shards)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The steps of an epoch: the same number on every rank, with each row in exactly one step.

    Every rank knows the row counts of all ranks without communication, so gradients and metrics can be
    weighted exactly. A step has at most `batch_size` rows over all ranks, except for rounding (fewer than
    `world_size` rows more) or if `batch_size` is below `world_size`.
    """

    sizes: tuple[tuple[int, int], ...]  # (rows of a shard, number of ranks with that many rows)
    steps: int  # per epoch

    @classmethod
    def of(cls, shards: Sequence[Shard], batch_size: int) -> StepPlan:
        """Plan the steps for `batch_size` rows per optimizer step over all ranks."""
        counts = Counter(shard.rows for shard in shards)
        total = sum(rows * ranks for rows, ranks in counts.items())
        steps = min(-(-total // batch_size), min(counts))  # every rank needs a row in every step
        return cls(sizes=tuple(counts.items()), steps=steps)

    @property
    def rows(self) -> int:
        """Rows of all shards together."""
        return sum(rows * ranks for rows, ranks in self.sizes)

    def bounds(self, rows: int, step: int) -> tuple[int, int]:
        """Return the first row (inclusive) and last row (exclusive) of a step in a shard of `rows` rows."""
        return split_range(rows, self.steps, step)

    def global_rows(self, step: int) -> int:
        """Return the rows of a step over all ranks."""
        parts = ((split_range(rows, self.steps, step), ranks) for rows, ranks in self.sizes)
        return sum((stop - start) * ranks for (start, stop), ranks in parts)


def split_range(total: int, parts: int, index: int) -> tuple[int, int]:
    """Return the bounds of the index-th of `parts` nearly equal parts of range(total)."""
    return index * total // parts, (index + 1) * total // parts
