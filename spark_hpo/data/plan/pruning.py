"""How many rows of each row group match a filter: by its statistics where they tell, else by counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import files
from spark_hpo.data.filter.condition import Bounds, Condition
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.footers import Footer

_THREADS = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row group, with what its footer and its folders say."""

    path: str
    footer: Footer
    index: int
    constants: Mapping[str, pa.Scalar]  # of the partition columns

    @property
    def rows(self) -> int:
        return int(self.footer.row_group(self.index).num_rows)

    def bounds(self, columns: Sequence[str]) -> dict[str, Bounds]:
        """Of the columns that something is known of."""
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
                if low != low or high != high:  # some writers count NaN among the values
                    low = high = None
                found[name] = Bounds(
                    low=low, high=high, may_be_null=nulls != 0, may_have_value=nulls != self.rows
                )
        return found


def matching_rows(fs: Any, condition: Condition, candidates: Sequence[Candidate]) -> list[int]:
    """The rows of each row group that match. Of those that statistics leave open, its columns are read.

    Raises:
        DataError: a file cannot be read.
    """
    decided = [_by_statistics(condition, candidate) for candidate in candidates]
    undecided = [i for i, rows in enumerate(decided) if rows is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda i: _by_counting(fs, condition, candidates[i]), undecided)
        counted = dict(zip(undecided, counts, strict=True))
    return [counted[i] if rows is None else rows for i, rows in enumerate(decided)]


def _by_statistics(condition: Condition, candidate: Candidate) -> int | None:
    """All rows, or none; None: the statistics do not tell."""
    outcomes = condition.outcomes(candidate.bounds(condition.columns))
    if outcomes == {True}:
        return candidate.rows
    return None if True in outcomes else 0


def _by_counting(fs: Any, condition: Condition, candidate: Candidate) -> int:
    columns = [name for name in condition.columns if name not in candidate.constants]
    with files.reading(candidate.path), files.opened(fs, candidate.path) as source:
        table = pq.ParquetFile(source).read_row_group(candidate.index, columns=columns, use_threads=False)
    table = partitions.add_columns(table, candidate.constants)
    return int(table.filter(condition.expression()).num_rows)
