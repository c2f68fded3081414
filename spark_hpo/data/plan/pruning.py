"""Counts the rows of each row group that match a filter, from statistics where they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.files import File
from spark_hpo.data.filter.condition import Bounds, Condition, select_rows
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.footers import Footer

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row group with its footer and the condition on the columns of its file."""

    file: File
    footer: Footer
    index: int
    constants: Mapping[str, pa.Scalar]  # columns that are the same in all rows of the file
    condition: Condition

    @property
    def rows(self) -> int:
        return int(self.footer.row_groups[self.index][0])

    def bounds(self, columns: Sequence[str]) -> dict[str, Bounds]:
        """Return the bounds of those columns that have any."""
        found = {}
        for name in columns:
            if (value := self.constants.get(name)) is not None:
                known = value.as_py()
                found[name] = Bounds(
                    low=known, high=known, may_be_null=known is None, may_have_value=known is not None
                )
            elif (statistics := self.footer.statistics(self.index, name)) is not None:
                nulls = statistics.null_count if statistics.has_null_count else None
                low, high = (statistics.min, statistics.max) if statistics.has_min_max else (None, None)
                if low != low or high != high:  # some writers include NaN in the statistics
                    low = high = None
                found[name] = Bounds(
                    low=low, high=high, may_be_null=nulls != 0, may_have_value=nulls != self.rows
                )
        return found


def matching_rows(fs: Any, candidates: Sequence[Candidate]) -> list[int]:
    """Count the matching rows of each row group, reading columns only if statistics do not decide.

    Raises:
        DataError: a file cannot be read.
    """
    decided = list(map(_by_statistics, candidates))
    undecided = [i for i, rows in enumerate(decided) if rows is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda i: _by_counting(fs, candidates[i]), undecided)
        counted = dict(zip(undecided, counts, strict=True))
    return [counted[i] if rows is None else rows for i, rows in enumerate(decided)]


def _by_statistics(candidate: Candidate) -> int | None:
    """Return all rows or 0, or None if the statistics do not decide."""
    condition = candidate.condition
    outcomes = condition.outcomes(candidate.bounds(condition.columns))
    if outcomes == {True}:
        return candidate.rows
    return None if True in outcomes else 0


def _by_counting(fs: Any, candidate: Candidate) -> int:
    condition = candidate.condition
    columns = [name for name in condition.columns if name not in candidate.constants]
    file = candidate.file
    with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
        table = pq.ParquetFile(source).read_row_group(candidate.index, columns=columns, use_threads=False)
    table = partitions.add_columns(table, candidate.constants)
    return int(select_rows(table, condition).num_rows)
