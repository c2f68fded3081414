"""Suggests the nearest valid name for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_LISTED = 30


def closest(name: object, names: Iterable[object]) -> str | None:
    """Return the valid name that is spelt most like `name`; None if none is close."""
    return next(iter(get_close_matches(str(name), [str(valid) for valid in names], n=1)), None)


def suggestion(name: object, names: Iterable[object]) -> str:
    """Return the cure for an unknown name, as sentences.

    A trace: suggestion("hyperbnad", ["asha", "hyperband"])
        -> "Did you mean 'hyperband'? Valid names: asha, hyperband"
    """
    valid = [str(name) for name in names]
    guess = closest(name, valid)
    listed = ", ".join(valid[:_MAX_LISTED]) or "none"
    if len(valid) > _MAX_LISTED:
        listed += f" and {len(valid) - _MAX_LISTED} more"
    return f"Did you mean {guess!r}? Valid names: {listed}" if guess else f"Valid names: {listed}"
