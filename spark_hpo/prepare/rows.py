"""The rows of a table while it is prepared: on Spark, or in this process. Both give the same tables.

`SparkRows` and `ArrowRows` count, convert and write; the modules that take `Rows` decide what follows. Both
have the types of Spark, so that schema.json names them alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import TextForm
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.split_conditions import TableFacts
from spark_hpo.trial import Split


class Reading(StrEnum):
    """How a column is converted, besides the forms of text."""

    CATEGORY = "category"  # text; whole numbers without a decimal point; text stays as it is
    TOKENS = "tokens"  # lists of text
    FLAG = "flag"  # booleans as 0 and 1


class Rows(Protocol):
    """The rows of a table. Immutable: methods that change something return other rows."""

    @property
    def schema(self) -> T.StructType: ...

    @property
    def columns(self) -> list[str]: ...

    def original(self, null_values: Sequence[str]) -> Rows:
        """Return the original values: text trimmed, missing values null, dates as seconds since 1970.

        In lists, missing texts become the empty text. Booleans become text.
        """
        ...

    def converted(self, readings: Mapping[str, TextForm | Reading]) -> Rows:
        """Convert columns: dates and times to seconds, numbers to doubles. What does not fit becomes null."""
        ...

    def with_copy(self, name: str, of: str, form: TextForm = TextForm.NONE) -> Rows:
        """Add a column: another one, in text of this form."""
        ...

    def without(self, names: Collection[str]) -> Rows: ...

    def where_present(self, name: str) -> Rows:
        """Return the rows in which a column is not null."""
        ...

    def kept(self) -> AbstractContextManager[Rows]:
        """Keep the rows in memory or on disk, if reading them again takes longer."""
        ...

    def is_fewer_than(self, rows: int) -> bool: ...

    def head(self, names: Sequence[str], rows: int) -> Sequence[Sequence[Any]]:
        """Return the values of the first rows, whichever these are."""
        ...

    def examples(self, names: Sequence[str], rows: int) -> list[Any]:
        """Return the first rows as JSON objects."""
        ...

    # Statistics

    def text_facts(self, name: str) -> Mapping[str, int]:
        """Count the values of a text column: `present`, those of each form of dates, and numbers.

        Also `unreadable`: what readers of the original files cannot parse as a time.
        """
        ...

    def count_fractions(self, name: str) -> int:
        """Count the numbers that are not whole."""
        ...

    def scalar_facts(
        self,
        names: Sequence[str],
        wanted: Collection[str],
        labels: Sequence[str],
        forms: Mapping[str, Sequence[TextForm]],
        *,
        is_small: bool,
    ) -> dict[str, Any]:
        """Return facts about the wanted columns, by `<fact>_<index in names>`, and the number of `rows`.

        `labelled` are the rows with all labels. `same<j>` counts the rows in which a number equals label j.

        Args:
            forms: the forms to count, for texts that may be parsed.
            is_small: whether distinct values can be held in memory; otherwise they are estimated.
        """
        ...

    def pairs(self, names: Sequence[str], label: str) -> list[Collection[Sequence[Any]]]:
        """Return the different pairs of a value of each column and the label. None is null."""
        ...

    def summary(self, kinds: Mapping[str, ColumnKind]) -> Mapping[str, Any]:
        """Count values, moments and lengths of all columns, by `<fact>_<index of the column>`."""
        ...

    def values(
        self, texts: Sequence[str], labels: Sequence[str], limit: int, *, in_place: bool
    ) -> dict[str, list[str]]:
        """Return the `limit` most frequent values of text columns in training rows, of labels in all rows."""
        ...

    # Splits

    def with_order(self, seed: int) -> Rows:
        """Add the column `splits.ORDER`, which shuffles the rows."""
        ...

    def with_split(self, fractions: Sequence[float], seed: int) -> Rows:
        """Add the columns `splits.SPLIT` and `splits.ORDER`."""
        ...

    def table_facts(self, names: Sequence[str]) -> TableFacts: ...

    def count_matches(self, where: Mapping[Split, str]) -> Mapping[str, int]:
        """Count the `rows`, those that meet each condition, and those that meet two, as `train, test`."""
        ...

    def split_where(self, where: Mapping[Split, str]) -> Rows:
        """Add the column `splits.SPLIT`, and leave out the rows that meet no condition."""
        ...

    def split_by_row_groups(self, groups: Sequence[AssignedGroup], folder: str) -> Rows:
        """Add the column `splits.SPLIT`.

        Args:
            folder: that the names of files are relative to.
        """
        ...

    def with_fold(self, term: str) -> Rows:
        """Add the column `splits.FOLD`: a call of xxhash64, or a column in SQL."""
        ...

    def write(self, analysis: Analysis, folder: str, row_group_rows: int) -> Mapping[str, int]:
        """Encode and write the splits. Return the number of rows of each."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignedGroup:
    """A row group and its split."""

    file: str  # path below the table
    index: int
    start: int  # the first row in the file
    stop: int  # the last row + 1
    split: Split


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned table, with one sentence for the user about each change."""

    rows: Rows
    remarks: tuple[str, ...]
    count: int = 0  # of rows; 0: not counted
    forms: Mapping[str, TextForm] = field(default_factory=dict)  # of the columns that were parsed
    dropped: Mapping[str, str] = field(default_factory=dict)  # reasons, as the end of a sentence
