"""The section `windows`: how the steps of series become rows for `task: forecast`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError, model_validator

from spark_hpo.config.messages import as_config_error, mistake
from spark_hpo.config.section import PositiveInt, Section
from spark_hpo.errors import within


def _names(value: Any) -> Any:
    """Convert one name, or a list of names, to a tuple."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


_Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class WindowsConfig(Section):
    """How a table with a row per series and time step becomes a table with a row per forecast. The label is
    the value to forecast."""

    time: str
    """The column of dates, times or numbers that orders the steps of a series."""
    series: _Names = ()
    """Columns that tell the series apart: `shop`, or a list. Default: the table is one series."""
    history: PositiveInt
    """Steps that the model sees of the value and of the other numbers, up to the forecast."""
    horizon: PositiveInt
    """Steps to forecast."""
    season: PositiveInt = 1
    """Steps after which values repeat, such as 7 for days. The baseline repeats the last season."""
    known: _Names = ()
    """Columns of numbers whose values are known ahead, such as prices and holidays: the model sees those of
    the steps to forecast as well."""
    stride: PositiveInt = 1
    """Steps from one forecast to the next."""

    @model_validator(mode="after")
    def _consistent(self) -> WindowsConfig:
        if self.season >= self.history:
            raise mistake(
                f"must be below history ({self.history})",
                key="season",
                value=self.season,
                cure="The baseline needs more than one season",
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the settings name."""
        return tuple(dict.fromkeys((self.time, *self.series, *self.known)))

    def options(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as JSON types."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return dumped


def windows_config(section: Mapping[str, Any]) -> WindowsConfig:
    """Check a section `windows`.

    Raises:
        ConfigError: a setting is wrong. Its key begins with `windows`.
    """
    try:
        return WindowsConfig.model_validate(section)
    except ValidationError as exc:
        with within("windows"):
            raise as_config_error(exc, WindowsConfig) from None
