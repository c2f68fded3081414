"""Checks the columns that the section `data` names."""

from __future__ import annotations

from collections.abc import Sequence

from spark_hpo.config import DataConfig
from spark_hpo.errors import ConfigError, suggestion

COLUMN_LISTS = ("drop", "categorical", "numeric", "time", "text")
_MOST_NAMES = 50  # in a message


def check_columns(data: DataConfig, names: Sequence[str]) -> None:
    """Check that the columns that the settings name exist.

    Raises:
        ConfigError: a column does not exist.
    """
    named: list[tuple[str, str | None]] = [("label", name) for name in (data.label, *data.extra_labels)]
    named += [*((key, name) for key in COLUMN_LISTS for name in getattr(data, key))]
    named += [("split", name) for name in data.split.columns]
    named += [("windows", name) for name in (data.windows.columns if data.windows else ())]
    for key, name in named:
        if name is not None and name not in names:
            raise ConfigError(
                f"is not a column of {data.place}",
                key=f"data.{key}",
                value=name,
                cure=suggestion(name, names) or f"Its columns: {listed(names)}",
            )


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
