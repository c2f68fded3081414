"""The reader that needs pyarrow alone."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.decode import Columns, Decoder
from spark_hpo.data.manifest import Manifest
from spark_hpo.data.readers.prefetch import ahead
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.shards import Segment


class ArrowReader:
    """Reads row groups with `pyarrow.parquet`, the next one in the background."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._manifest = manifest
        self._decoder = Decoder(manifest, schema)
        self._fs, _ = files.filesystem(manifest.url)

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        return ahead(self._read_segment, segments)

    def _read_segment(self, segment: Segment) -> Columns:
        path = self._manifest.files[segment.file].path
        with files.reading(path), files.opened(self._fs, path) as source, pq.ParquetFile(source) as file:
            if segment.row_group >= file.num_row_groups:
                raise files.changed(path, f"it has no row group {segment.row_group} any more")
            table = file.read_row_group(segment.row_group, columns=self._decoder.columns)
        return self._decoder.decode(table, segment)
