"""A reader that caches decoded segments in this process."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from spark_hpo.data.blocks import BlockLayout, Blocks, pack, unpack
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.readers.reader import Reader


class InMemory:
    """Reads each segment once through another reader and keeps it in memory."""

    def __init__(self, reader: Reader, layout: Sequence[BlockLayout]) -> None:
        self._reader = reader
        self._layout = layout
        self._kept: dict[Segment, Blocks] = {}

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        for blocks, _ in self.locate(segments):
            yield unpack(blocks, self._layout)

    def locate(self, segments: Sequence[Segment]) -> Generator[tuple[Blocks, range], None, None]:
        fresh = self._reader.read([segment for segment in segments if segment not in self._kept])
        for segment in segments:
            if segment not in self._kept:
                self._kept[segment] = pack(next(fresh), self._layout)
            yield self._kept[segment], range(segment.rows)
