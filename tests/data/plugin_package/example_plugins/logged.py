import logging
from collections.abc import Generator, Sequence
from typing import Any

from spark_hpo import Manifest, Segment, TableSchema, open_reader

logger = logging.getLogger("spark_hpo")


class LoggedReader:
    """Reads like `arrow`, and logs the number of segments."""

    def __init__(self, manifest: Manifest, schema: TableSchema) -> None:
        self._reader = open_reader("arrow", manifest, schema)
        self._url = manifest.url

    def read(self, segments: Sequence[Segment]) -> Generator[Any, None, None]:
        if segments:
            logger.info("reading %d segments from %s", len(segments), self._url)
        return self._reader.read(segments)
