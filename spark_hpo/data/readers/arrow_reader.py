"""A reader built on pyarrow alone."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator, Sequence

import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.decode import Decoder
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.footers import check_unchanged
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment, runs
from spark_hpo.data.readers.prefetch import ahead
from spark_hpo.data.schema import TableSchema

# Spark writes page checksums; pyarrow can verify them from version 15 on.
_CAN_VERIFY = "page_checksum_verification" in inspect.signature(pq.ParquetFile.__init__).parameters
_VERIFY: dict[str, bool] = {"page_checksum_verification": True} if _CAN_VERIFY else {}


class ArrowReader:
    """Reads row groups with `pyarrow.parquet` and prefetches the next one in the background."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._manifest = manifest
        self._decoder = Decoder(manifest, schema)
        self._fs, _ = files.filesystem(manifest.url)
        self._checked: set[int] = set()  # file numbers

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        with contextlib.closing(ahead(self._read_run, runs(segments))) as pieces:
            for some in pieces:
                yield from some

    def _read_run(self, run: Sequence[Segment]) -> list[Columns]:
        """Read neighbours of one row group."""
        segment = run[0]
        planned = self._manifest.files[segment.file]
        path = planned.path
        if segment.file not in self._checked:
            check_unchanged(self._fs, planned)
            self._checked.add(segment.file)
        with (
            files.reading(path),
            files.opened(self._fs, path, planned.hidden) as source,
            pq.ParquetFile(source, **_VERIFY) as file,
        ):
            if segment.row_group >= file.num_row_groups:
                raise files.changed(path, f"row group {segment.row_group} no longer exists")
            table = file.read_row_group(segment.row_group, columns=self._decoder.columns)
        return [self._decoder.decode(table, segment) for segment in run]
