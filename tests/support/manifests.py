"""Manifests without files, for tests that plan reads."""

from __future__ import annotations

from collections.abc import Iterable

from spark_hpo.data.files import File
from spark_hpo.data.plan.manifest import Manifest, RowGroup
from spark_hpo.data.plan.shards import Segment


def manifest_of(*sizes: int) -> Manifest:
    """Return a manifest of row groups of these sizes, two per file."""
    return Manifest(
        url="table/train",
        files=tuple(File(path=f"part-{i}", size=1, modified=None) for i in range(len(sizes) // 2 + 1)),
        row_groups=tuple(
            RowGroup(file=i // 2, index=i % 2, rows=rows, stored_rows=rows, bytes=rows)
            for i, rows in enumerate(sizes)
        ),
        columns={},
        rows=sum(sizes),
        fingerprint="",
    )


def rows_of(segments: Iterable[Segment]) -> list[tuple[int, int, int]]:
    """Return the rows of segments as (file, row group, row)."""
    return [(s.file, s.row_group, row) for s in segments for row in range(s.start, s.stop)]
