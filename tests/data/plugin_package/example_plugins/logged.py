import logging
from collections.abc import Generator, Sequence

from spark_hpo.data.decode import Columns
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.readers.arrow_reader import ArrowReader
from spark_hpo.data.schema import TableSchema

logger = logging.getLogger("spark_hpo")


class LoggedReader:
    """Reads as `arrow` does, and says what."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._reader = ArrowReader(manifest, schema)
        self._url = manifest.url

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        if segments:
            logger.info("%d pieces of row groups are read from %s", len(segments), self._url)
        return self._reader.read(segments)
