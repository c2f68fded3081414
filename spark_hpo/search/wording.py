"""The parts of a message that errors of this package share."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from spark_hpo.errors import ConfigError


def nearest(name: object, names: Iterable[str]) -> str:
    """The cure for a misspelt name: the nearest right one, then all of them."""
    known = [str(name) for name in names]
    close = get_close_matches(str(name), known, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known here: {', '.join(known) or 'nothing'}"


def require_integer(name: str, value: object, least: int) -> None:
    """Raise ConfigError unless a setting is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be an integer of at least {least}")
