"""The section `split`: how rows are divided into training, validation and test rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, model_validator

from spark_hpo.config.messages import as_config_error, mistake
from spark_hpo.config.section import FromList, PositiveNumber, Section
from spark_hpo.errors import within

Value = str | int | bool


def _names(value: Any) -> Any:
    """Convert one name, or a list of names, to a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _values(value: Any) -> Any:
    """Convert each value of a mapping, or list of values, to a tuple."""
    if not isinstance(value, dict):
        return value
    return {side: tuple(v) if isinstance(v, list | tuple) else (v,) for side, v in value.items()}


_Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class SplitConfig(Section):
    """How rows are divided into training, validation and test rows. Without `key`, `group`, `time`, `column`
    or `stratify`, a copied table is split by a hash of all columns, and a table in place by row groups."""

    key: _Names = ()
    """Columns that identify a row: `customer_id`, or a list. The split is a hash of these columns alone, so
    that adding or dropping another column moves no row."""
    group: _Names = ()
    """Columns whose values stay together: rows with the same `customer_id` are all in one split."""
    time: str | None = None
    """A column of dates, times or numbers: the newest rows are the test split, those before them the
    validation split. With `group`, each split has its own groups and its own period."""
    column: str | None = None
    """A column that names the split of each row: `train`, `validation` or `test`."""
    values: Annotated[
        dict[Literal["train", "validation", "test"], tuple[Value, ...]] | None, BeforeValidator(_values)
    ] = None
    """The values of `column`, if they are others: `{train: [0, 1, 2], validation: 3, test: 4}`."""
    stratify: str | None = None
    """A column, usually the label, each of whose values is divided by the same fractions."""
    fractions: Annotated[tuple[PositiveNumber, ...] | None, FromList] = None
    """Shares of train, validation and test. Default: `[0.8, 0.1, 0.1]`, or `[0.6, 0.2, 0.2]` of a copied
    table with fewer than 2,000 rows."""
    seed: int = 0
    """Seed of the hash."""

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        ways = [name for name in ("key", "group", "time", "column") if getattr(self, name)]
        if len(ways) > 1 and ways != ["group", "time"]:
            raise mistake(f"and {ways[1]} exclude each other", key=ways[0], cure="Set only one of them")
        if self.stratify and (other := [name for name in ways if name != "key"]):
            raise mistake(f"and {other[0]} exclude each other", key="stratify", cure="Set only one of them")
        if self.values is not None and not self.column:
            raise mistake("needs column", key="values", cure="Name the column that has these values")
        if self.values is not None and len(self.values) < 3:
            raise mistake("must have train, validation and test", key="values", value=list(self.values))
        if self.column and self.fractions:
            raise mistake("and column exclude each other", key="fractions", cure="The column has the shares")
        if self.fractions is not None and (len(self.fractions) != 3 or abs(sum(self.fractions) - 1) > 1e-6):
            raise mistake(
                "must be three numbers above 0 (train, validation, test) that sum to 1",
                key="fractions",
                value=list(self.fractions),
                cure="For example [0.8, 0.1, 0.1]",
            )
        return self

    @property
    def is_default(self) -> bool:
        """True if a hash of all columns (of row groups, in place) assigns the rows."""
        return not (self.key or self.group or self.time or self.column or self.stratify)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that decide the split of a row."""
        single = (self.time, self.column, self.stratify)
        return tuple(dict.fromkeys((*self.key, *self.group, *(name for name in single if name))))

    def options(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as JSON types."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return dumped


def split_config(section: Mapping[str, Any]) -> SplitConfig:
    """Check a section `split`.

    Raises:
        ConfigError: a setting is wrong. Its key begins with `split`.
    """
    try:
        return SplitConfig.model_validate(section)
    except ValidationError as exc:
        with within("split"):
            raise as_config_error(exc, SplitConfig) from None
