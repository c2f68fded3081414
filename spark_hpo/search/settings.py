"""Checks of the settings of samplers, schedulers, explorers and stopping rules."""

from __future__ import annotations

import math

from spark_hpo.errors import ConfigError


def require_integer(key: str, value: object, minimum: int) -> None:
    """Raise ConfigError unless the value is an integer >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"must be an integer >= {minimum}", key=key, value=value)


def require_number(
    key: str, value: object, *, above: float | None = None, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise ConfigError unless the value is a finite number with above < value, low <= value <= high."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if is_number and (above is None or value > above) and low <= value <= high:  # type: ignore[operator]
        return
    bounds = [f"> {above:g}"] if above is not None else []
    bounds += [f"{sign} {end:g}" for sign, end in ((">=", low), ("<=", high)) if math.isfinite(end)]
    raise ConfigError(f"must be a finite number {' and '.join(bounds)}".rstrip(), key=key, value=value)
