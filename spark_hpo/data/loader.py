"""The loader: yields the batches of one split for one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch

from spark_hpo.data.blocks import BlockLayout, Blocks, layout_of, pack
from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.cache.node_cache import open_node_cache
from spark_hpo.data.encode import bytes_per_row, delivered
from spark_hpo.data.files import changed
from spark_hpo.data.plan.shards import Segment, Shard, StepPlan, plan_shards, runs
from spark_hpo.data.readers import KeepsBlocks, Reader, open_reader
from spark_hpo.data.readers.memory import InMemory
from spark_hpo.data.table import Table
from spark_hpo.trial import Split

Batch = dict[str, torch.Tensor]
"""Columns by name: float32 [rows] or [rows, *shape], codes and class labels int64 [rows], texts uint8.

Scalar columns are strided views, because columns of one type share one array.
"""

Timed = Callable[[Iterator[Batch]], Iterator[Batch]]
"""Yields the batches, and measures how long it waits for them."""

KEPT_BYTES = 256 * 2**20
STRETCH_BYTES = 8 * 2**20  # of neighbouring batches


class Loader:
    """Yields the batches of one split for one rank. Every rank makes the same number of steps per pass.

    A pass is one epoch or, with `parts`, one part of an epoch: pass n reads part n % parts. Within an epoch,
    each row of the split is in exactly one batch of one rank. The order depends only on (seed, pass, rank):
    training 1 -> 3 -> 9 passes in three processes sees the same batches as 9 passes in one process.

    A trace, 10 rows, batch_size 4, rank 0 of 2: num_steps(0, 2) -> 6; passes(0, 1) -> one pass with
    rows 5, total_rows 10, batches of 1, 2, 2 rows; global_rows(0) -> 2, global_rows(1) -> 4
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
        parts: int = 1,
        node_cache: CacheSettings | None = None,
        kept_bytes: int = KEPT_BYTES,
        on_progress: Callable[[], None] = lambda: None,
        timed: Timed = iter,
    ) -> None:
        """
        Args:
            batch_size: rows of one optimizer step over all ranks.
            seed: >= 0.
            reader: petastorm, arrow, auto or the name of a plugin.
            shuffle_window: minimum number of rows that are shuffled together, after the row groups have been
                shuffled. None keeps the order of the files, for evaluation.
            parts: number of parts per epoch, equal to within one row.
            node_cache: settings of the cache that ranks and trials on this machine share; None disables it.
            kept_bytes: a shard of at most this many decoded bytes stays in memory (mapped, with a node
                cache). A larger shard streams, with two windows and two row groups in memory at a time.
            on_progress: called after each piece that is read, also before the first batch.
            timed: wraps the batches of each pass.

        Raises:
            DataError: a part has fewer rows than ranks.
            ConfigError: the reader is unknown or cannot be imported.
        """
        manifest = table.manifest(split)
        self._parts = parts
        self._rank = rank
        plan = partial(plan_shards, manifest, world_size, None if shuffle_window is None else seed)
        self._shards = cache(lambda part: plan(part=part, parts=parts))
        self._shards(0)  # raises now if there are too few rows
        self._batch_size = batch_size
        self._url = manifest.url
        self._seed = seed
        self._window = shuffle_window
        self._on_progress = on_progress
        self._timed = timed
        direct = open_reader(reader, manifest, table.schema)
        shard_bytes = -(-manifest.rows // world_size) * bytes_per_row(table.schema)
        keep = shard_bytes <= kept_bytes
        cached = node_cache and open_node_cache(
            node_cache, direct, manifest, table.schema, shard_bytes=shard_bytes, mapped=keep
        )
        self._layout = layout_of(delivered(table.schema))
        self._reader: Reader = cached or (InMemory(direct, self._layout) if keep else direct)

    def num_steps(self, start: int, stop: int) -> int:
        """Return the optimizer steps of the passes `start` (inclusive) to `stop` (exclusive)."""
        epochs, rest = divmod(stop, self._parts)
        of_epoch = [self._plan(part).steps for part in range(self._parts)]
        steps = epochs * sum(of_epoch) + sum(of_epoch[:rest])
        return steps if start == 0 else steps - self.num_steps(0, start)

    def passes(self, start: int, stop: int) -> Iterator[Pass]:
        """Yield the passes `start` (inclusive) to `stop` (exclusive). Pass numbers are absolute, from 0.

        Raises, while a pass is read:
            DataError: a file cannot be read, has a null or a value that is not finite, or does not have the
                planned rows.
        """
        for number in range(start, stop):
            part = number % self._parts
            yield Pass(
                shard=self._shards(part)[self._rank],
                plan=self._plan(part),
                reader=self._reader,
                layout=self._layout,
                window=self._window,
                seed=(self._seed, self._rank, number),
                url=self._url,
                on_progress=self._on_progress,
                timed=self._timed,
            )

    def _plan(self, part: int) -> StepPlan:
        return StepPlan.of(self._shards(part), self._batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over the shard of one rank. Iterating again yields the same batches again."""

    shard: Shard
    plan: StepPlan
    reader: Reader
    layout: tuple[BlockLayout, ...]
    window: int | None
    seed: tuple[int, ...]
    url: str
    on_progress: Callable[[], None]
    timed: Timed

    @property
    def rows(self) -> int:
        """Rows of this rank."""
        return self.shard.rows

    @property
    def total_rows(self) -> int:
        """Rows of all ranks."""
        return self.plan.rows

    def __len__(self) -> int:
        """Return the number of batches, which is the same on every rank."""
        return self.plan.steps

    def global_rows(self, step: int) -> int:
        """Return the rows of a step (0..len-1) over all ranks, computed without communication."""
        return self.plan.global_rows(step)

    def __iter__(self) -> Iterator[Batch]:
        segments = self.shard.segments
        if self.window is None:
            return self.timed(self._batches(self._pieces(segments), 0, None))
        generator = torch.Generator()
        generator.manual_seed(int(np.random.SeedSequence(self.seed).generate_state(1, np.uint64)[0]))
        whole = list(runs(segments))
        shuffled = [segment for i in torch.randperm(len(whole), generator=generator) for segment in whole[i]]
        return self.timed(self._batches(self._pieces(shuffled), self.window, generator))

    def _pieces(self, segments: Sequence[Segment]) -> Iterator[Blocks]:
        if isinstance(self.reader, KeepsBlocks):
            for blocks, rows in self.reader.locate(segments):
                yield tuple(block[rows.start : rows.stop] for block in blocks)
        else:
            for columns in self.reader.read(segments):
                yield pack(columns, self.layout)

    def _batches(
        self, pieces: Iterator[Blocks], window: int, generator: torch.Generator | None
    ) -> Iterator[Batch]:
        """Collect pieces into windows, shuffle each window, and cut it into the batches of the plan.

        The remaining rows of a window, fewer than a batch, go into the next window.
        """
        step = done = rows = 0  # batches yielded, rows yielded, rows buffered
        buffered: list[Blocks] = []
        scratch = _Scratch()
        for piece in pieces:
            self.on_progress()
            buffered.append(piece)
            rows += len(piece[0])
            _, stop = self.plan.bounds(self.rows, step)
            if rows < max(window, stop - done) and done + rows < self.rows:
                continue
            # Copying runs of rows first and shuffling nearby memory is faster than gathering distant rows.
            if generator is None:
                order, blocks = None, tuple(np.concatenate(parts) for parts in zip(*buffered, strict=True))
            else:
                order, blocks = (
                    torch.randperm(rows, generator=generator).numpy(),
                    scratch.joined(buffered, rows),
                )
            filled = _Window(blocks, order, self.layout)
            start = done
            while step < self.plan.steps:
                _, stop = self.plan.bounds(self.rows, step)
                if stop > start + rows:
                    break
                yield filled.batch(done - start, stop - start)
                step, done = step + 1, stop
            buffered = [filled.taken(done - start, rows)]
            rows -= done - start
        if done != self.rows or rows:
            raise changed(self.url, f"{done + rows} rows read, {self.rows} planned", is_file=False)


class _Scratch:
    """A buffer for the rows of a window, reused for every window."""

    def __init__(self) -> None:
        self._memory: Blocks = ()

    def joined(self, pieces: Sequence[Blocks], rows: int) -> Blocks:
        """Concatenate all pieces. The result is valid until the next call."""
        if not self._memory or len(self._memory[0]) < rows:
            self._memory = tuple(np.empty((rows, *b.shape[1:]), b.dtype) for b in pieces[0])
        parts = zip(*pieces, strict=True)
        return tuple(
            np.concatenate(part, out=memory[:rows]) for part, memory in zip(parts, self._memory, strict=True)
        )


class _Window:
    """The rows that are shuffled together, and cut into batches.

    Batches near each other are views of one *stretch* of memory, so that a GPU gets them in one copy.
    """

    def __init__(
        self, blocks: Blocks, order: npt.NDArray[np.int64] | None, layout: Sequence[BlockLayout]
    ) -> None:
        """
        Args:
            order: of the rows; None keeps them as they are.
        """
        self._blocks = blocks
        self._order = order
        self._layout = layout
        self._row_bytes = sum(block.row_bytes for block in layout)
        self._stretch: tuple[torch.Tensor, ...] = ()
        self._first = self._end = 0  # rows of the stretch

    def batch(self, start: int, stop: int) -> Batch:
        """Return the batch of these rows. Each call must start where the last one stopped."""
        if stop > self._end:
            count = max(1, STRETCH_BYTES // (self._row_bytes * (stop - start)))
            self._first, self._end = start, min(len(self._blocks[0]), start + count * (stop - start))
            self._stretch = tuple(map(torch.from_numpy, self.taken(start, self._end)))
        batch: Batch = {}
        for values, block in zip(self._stretch, self._layout, strict=True):
            rows = values[start - self._first : stop - self._first]
            batch.update(zip(block.names, (rows,) if block.is_array else rows.unbind(1), strict=True))
        return batch

    def taken(self, start: int, stop: int) -> Blocks:
        """Return these rows: copies if they are shuffled, so that tasks may modify a batch in place."""
        if self._order is None:
            return tuple(block[start:stop] for block in self._blocks)
        taken = []
        for block in self._blocks:
            values = np.empty((stop - start, *block.shape[1:]), block.dtype)
            # All indices are valid; mode "raise" would check them and copy through a buffer.
            np.take(block, self._order[start:stop], axis=0, out=values, mode="clip")
            taken.append(values)
        return tuple(taken)
