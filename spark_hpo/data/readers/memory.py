"""Decoded segments kept in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from spark_hpo.data.decode import Columns
from spark_hpo.data.readers.base import Reader
from spark_hpo.data.shards import Segment


class InMemory:
    """A reader that asks another for each segment once, and keeps all of them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._kept: dict[Segment, Columns] = {}

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        fresh = self._reader.read([segment for segment in segments if segment not in self._kept])
        for segment in segments:
            if segment not in self._kept:
                self._kept[segment] = next(fresh)
            yield self._kept[segment]
