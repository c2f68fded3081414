"""The manifest of a split: files, row groups, columns and row counts, from Parquet footers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa

from spark_hpo.data.files import File
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.folds import FoldRows, Range
from spark_hpo.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """A row group with at least one matching row."""

    file: int  # index into Manifest.files
    index: int  # within its file
    rows: int  # rows that match the filter
    stored_rows: int  # in the file
    bytes: int  # uncompressed, from the footer


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files and row groups of one split, in the order of file names. Made of JSON types."""

    url: str
    files: tuple[File, ...]
    row_groups: tuple[RowGroup, ...]
    columns: Mapping[str, str]  # Arrow types as text, including partition columns
    rows: int
    fingerprint: str  # changes with any path, size, statistic or number of rows, and with the filter
    partitions: Mapping[str, str] = field(default_factory=dict)  # types by column, for `partitions.type_of`
    absent: Mapping[str, str] = field(default_factory=dict)  # the same of columns that some files lack
    where: str = ""  # the filter
    where_columns: tuple[str, ...] = ()  # stored columns that the filter refers to
    fold: FoldRows | None = None  # of a cross-validation: the rows to read; None: all matching rows

    def of_fold(self, fold: FoldRows) -> Manifest:
        """Return one side of a fold. All sides have the same row groups, and share a node cache."""
        chosen = fold.ranges([group.rows for group in self.row_groups])
        rows = sum(stop - start for ranges in chosen for start, stop in ranges)
        return replace(self, fold=fold, rows=rows)

    @property
    def ranges(self) -> list[list[Range]]:
        """The rows to read of each row group, as ascending ranges of its matching rows."""
        rows = [group.rows for group in self.row_groups]
        return [[(0, count)] for count in rows] if self.fold is None else self.fold.ranges(rows)

    def joined(self, other: Manifest, url: str) -> Manifest:
        """Return the rows of two disjoint splits as one.

        Args:
            url: of the table.

        Raises:
            DataError: the splits have different filters, and are in different folders.
        """
        where = self.where
        if where != other.where:
            if self.url != other.url:
                raise DataError(
                    f"{url}: the training and the validation split have different conditions and different "
                    "folders, so they cannot be divided into folds. Use one folder"
                )
            where = f"({self.where}) or ({other.where})"
        numbers = {file.path: number for number, file in enumerate(self.files)}
        found = list(self.files)
        groups = {(group.file, group.index): group for group in self.row_groups}
        for group in other.row_groups:
            file = other.files[group.file]
            if (number := numbers.setdefault(file.path, len(found))) == len(found):
                found.append(file)
            same = groups.get((number, group.index))
            rows = group.rows + (same.rows if same else 0)
            groups[number, group.index] = replace(group, file=number, rows=rows)
        return replace(
            self,
            url=url,
            files=tuple(found),
            row_groups=tuple(groups[key] for key in sorted(groups)),
            rows=self.rows + other.rows,
            fingerprint=hashlib.sha256(f"{self.fingerprint} {other.fingerprint}".encode()).hexdigest()[:32],
            absent={**self.absent, **other.absent},
            where=where,
            where_columns=tuple(dict.fromkeys((*self.where_columns, *other.where_columns))),
        )

    def without(self, paths: Collection[str]) -> Manifest:
        """Return the split without these files. Unknown paths are ignored.

        Raises:
            DataError: no rows are left.
        """
        gone = sorted(file.path for file in self.files if file.path in paths)
        if not gone:
            return self
        kept = [number for number, file in enumerate(self.files) if file.path not in paths]
        number_of = {old: new for new, old in enumerate(kept)}
        groups = tuple(
            replace(group, file=number_of[group.file]) for group in self.row_groups if group.file in number_of
        )
        if not groups:
            raise DataError(f"{self.url}: no rows are left without {', '.join(gone)}. Fix the files")
        return replace(
            self,
            files=tuple(self.files[number] for number in kept),
            row_groups=groups,
            rows=sum(group.rows for group in groups),
            fingerprint=hashlib.sha256(json.dumps([self.fingerprint, gone]).encode()).hexdigest(),
        )

    def constants(self, file: int, stored: Collection[str]) -> dict[str, pa.Scalar]:
        """Return the columns that are the same in all rows of a file: partition values, and nulls.

        Args:
            stored: the columns of the file. Those in `absent` that it lacks are null.
        """
        types = {name: partitions.type_of(text) for name, text in self.partitions.items()}
        absent = {
            name: pa.scalar(None, partitions.type_of(text))
            for name, text in self.absent.items()
            if name not in stored
        }
        return {**partitions.values(self.files[file].partition, types), **absent}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Manifest:
        return cls(
            **{
                **record,
                "files": tuple(File(**f) for f in record["files"]),
                "row_groups": tuple(RowGroup(**g) for g in record["row_groups"]),
                "where_columns": tuple(record["where_columns"]),
                "fold": record.get("fold") and FoldRows(**record["fold"]),
            }
        )
