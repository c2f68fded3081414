"""How far one rung's ranking can be trusted: its rank correlation with the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from spark_hpo.objective import Score
from spark_hpo.search.space.axis import Array

LEAST_PAIRS = 5  # with fewer, nothing can be said


T = TypeVar("T", float, Score)


def rank_agreement(pairs: Sequence[tuple[T, T]], field: Sequence[T] | None = None) -> float | None:
    """Spearman's correlation between losses, or scores, at one rung and at the next, -1..1.

    Trials that have reached the next rung were mostly chosen for their losses, and within a narrow choice
    any correlation looks weak. It is corrected by how much of the field's spread the choice covers
    (Thorndike 1949, case 2, on ranks): r/u / sqrt(1 - r^2 + (r/u)^2), where u is the ratio of spreads.

    Args:
        pairs: (loss here, loss at the next rung) of trials that have both.
        field: losses of all trials here, those of the pairs among them; None: the pairs are all.

    Returns:
        None where fewer than 5 pairs, or losses that are all alike, say nothing.
    """
    if len(pairs) < LEAST_PAIRS:
        return None
    here: list[Any] = [first for first, _ in pairs]
    there: list[Any] = [second for _, second in pairs]
    x, y = _ranks(_numbered(here, here)), _ranks(_numbered(there, there))
    if not (x.std() > 0 and y.std() > 0):
        return None
    r = float(np.corrcoef(x, y)[0, 1])
    if field is None or len(field) <= len(pairs):
        return r
    everyone = set(here).union(field)
    chosen, ordered = _numbered(here, everyone), np.sort(_numbered(field, everyone))
    # Where the pairs stand in the field, 0..1: evenly spread, the deviation is sqrt(1/12).
    places = (np.searchsorted(ordered, chosen) + np.searchsorted(ordered, chosen, side="right")) / 2
    spread = float((places / len(ordered)).std()) * math.sqrt(12)
    if spread <= 0:
        return None
    ratio = r / min(spread, 1.0)
    return ratio / math.sqrt(1 - r * r + ratio * ratio)


def _numbered(values: Iterable[Any], among: Iterable[Any]) -> Array:
    """Number the distinct values in their order: all that ranks depend on."""
    numbers = {value: number for number, value in enumerate(sorted(set(among)))}
    return np.array([numbers[value] for value in values], dtype=float)


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts + 1) / 2)[inverse.reshape(-1)]
    return mean
