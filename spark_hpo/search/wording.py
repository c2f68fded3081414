"""The parts of a message that errors of this package share."""

from __future__ import annotations

from spark_hpo.errors import ConfigError


def require_integer(name: str, value: object, least: int) -> None:
    """Raise ConfigError unless a setting is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
