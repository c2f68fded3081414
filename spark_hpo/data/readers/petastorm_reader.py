"""A reader built on Petastorm's `Reader` and worker, with our plan instead of its sharding."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from petastorm.arrow_reader_worker import ArrowReaderWorker
from petastorm.reader import Reader as _PetastormReader
from petastorm.unischema import Unischema, UnischemaField
from petastorm.workers_pool import EmptyResultError
from pyarrow.filesystem import FileSystem

from spark_hpo.data import files
from spark_hpo.data.decode import Decoder
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.footers import check_unchanged
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment, runs
from spark_hpo.data.readers.prefetch import ahead
from spark_hpo.data.schema import TableSchema


class PetastormReader:
    """Reads row groups with Petastorm and prefetches the next one in the background."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._manifest = manifest
        self._decoder = Decoder(manifest, schema)
        self._checked: set[int] = set()  # file numbers

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        if not segments:
            return
        grouped = list(runs(segments))
        with self._open([run[0] for run in grouped]) as reader:
            for run, table in zip(grouped, reader, strict=True):
                for segment in run:
                    yield self._decoder.decode(table, segment)

    def _open(self, segments: Sequence[Segment]) -> _PlannedReader:
        fs, _ = files.filesystem(self._manifest.url)
        for number in sorted({segment.file for segment in segments} - self._checked):
            check_unchanged(fs, self._manifest.files[number])
            self._checked.add(number)
        with files.reading(self._manifest.url):
            try:
                return _PlannedReader(self._manifest, self._decoder.columns, segments)
            except (OSError, pa.ArrowException):
                # Petastorm reads the footers again and does not name the damaged one, so find it here.
                for number in sorted({segment.file for segment in segments}):
                    path = self._manifest.files[number].path
                    with files.reading(path), files.opened(fs, path) as source:
                        pq.read_metadata(source)
                raise


class _PlannedReader(_PetastormReader):  # type: ignore[misc]
    """Petastorm's Reader restricted to the planned row groups, in the planned order.

    It gets a list of files. Given a folder, Petastorm would open `_common_metadata` and unpickle it.
    """

    def __init__(self, manifest: Manifest, columns: Sequence[str], segments: Sequence[Segment]) -> None:
        self._planned = [(manifest.files[s.file].path, s.row_group) for s in segments]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # Petastorm uses pyarrow's legacy dataset
            warnings.simplefilter("ignore", UserWarning)  # columns with types unknown to Petastorm
            super().__init__(
                _Files(manifest),
                sorted({path for path, _ in self._planned}),
                worker_class=_Worker,
                reader_pool=_InOrderPool(columns),
                shuffle_row_groups=False,
                num_epochs=1,
                is_batched_reader=True,
            )

    def _filter_row_groups(self, dataset: Any, row_groups: list[Any], *_: Any) -> tuple[list[int], None]:
        index = {(piece.path, piece.row_group): i for i, piece in enumerate(row_groups)}
        for path, row_group in self._planned:
            if (path, row_group) not in index:
                raise files.changed(path, f"row group {row_group} no longer exists")
        return [index[planned] for planned in self._planned], None

    def _create_ventilator(self, row_group_indexes: list[int], *_: Any) -> _Ventilator:
        return _Ventilator(row_group_indexes)


class _Files(FileSystem):  # type: ignore[misc]
    """Adapts an fsspec file system to the legacy pyarrow class that Petastorm expects."""

    def __init__(self, manifest: Manifest) -> None:
        self._fs, _ = files.filesystem(manifest.url)
        self._hidden = {file.path: file.hidden for file in manifest.files if file.hidden is not None}

    def open(self, path: str, mode: str = "rb") -> Any:
        with files.reading(path):
            if path in self._hidden:
                return files.WithoutArrowSchema(self._fs.open(path, mode), self._hidden[path])
            if isinstance(self._fs, LocalFileSystem):
                return pa.OSFile(path)  # bypasses Python file objects, which are slower
            return self._fs.open(path, mode)

    def isdir(self, path: str) -> bool:
        return False  # Petastorm gets files only

    def isfile(self, path: str) -> bool:
        return True  # the plan listed it; opening fails if it is gone


class _Ventilator:
    """Holds the row groups in order. Petastorm's own ventilator feeds them from a polling thread."""

    def __init__(self, row_group_indexes: list[int]) -> None:
        self.row_group_indexes = row_group_indexes


class _Tables:
    """Returns the Arrow tables unchanged.

    Petastorm's own results reader builds named tuples, which cannot have a field named `income-per-year`, and
    goes through pandas, which turns integers with nulls into floats.
    """

    batched_output = True

    def read_next(self, pool: _InOrderPool, schema: Unischema, ngram: None) -> pa.Table:
        try:
            return pool.get_results()
        except EmptyResultError:
            raise StopIteration from None


class _Worker(ArrowReaderWorker):  # type: ignore[misc]
    """Petastorm's worker, which reads one row group at a time."""

    def __init__(self, worker_id: int, publish: Any, args: tuple[Any, ...]) -> None:
        super().__init__(worker_id, publish, args)
        # The two attributes the worker uses of its dataset. Left to itself, it builds the dataset in the
        # background thread, and warnings cannot be silenced for one thread only.
        self._dataset = SimpleNamespace(fs=self._filesystem, partitions=None)

    def process(self, piece_index: int, *options: Any) -> None:
        with files.reading(self._split_pieces[piece_index].path):
            super().process(piece_index, *options)

    @staticmethod
    def new_results_queue_reader() -> _Tables:
        return _Tables()


class _InOrderPool:
    """Petastorm's pool interface on a single thread that reads one row group ahead.

    Petastorm's thread pool polls 1,000 times a second, and its dummy pool may sleep 100 ms before it starts.
    Both matter here, because a rung can be one epoch of a thousand rows.
    """

    workers_count = 1

    def __init__(self, columns: Sequence[str]) -> None:
        # The schema that Petastorm infers lacks fixed-size lists. The worker needs only the column names.
        fields = [UnischemaField(name, np.void, ()) for name in columns]
        self._schema = Unischema("planned", fields)
        self._results: Iterator[pa.Table] = iter(())

    def start(self, worker_class: Any, worker_args: tuple[Any, ...], ventilator: _Ventilator) -> None:
        published: list[pa.Table] = []
        filesystem, paths, _, *rest = worker_args
        worker = worker_class(0, published.append, (filesystem, paths, self._schema, *rest))

        def read(row_group_index: int) -> pa.Table:
            worker.process(row_group_index, None, (0, 1))
            return published.pop()

        self._results = ahead(read, ventilator.row_group_indexes)

    def get_results(self) -> pa.Table:
        for table in self._results:
            return table
        raise EmptyResultError

    def stop(self) -> None:
        self._results.close()  # type: ignore[attr-defined]

    def join(self) -> None:
        """Do nothing: `stop` has already waited for the thread."""
