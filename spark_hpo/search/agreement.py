"""Rank correlation between rungs: how far the ranking at one rung predicts the ranking at the next."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from spark_hpo.objective import Score
from spark_hpo.search.space.axis import Array

MIN_PAIRS = 5

_PRIOR = 0.85  # correlation of two neighbouring rungs, before any trial has reached both
_PRIOR_WEIGHT = 4.0  # in trials
_MOST = 0.99  # correlation that is measured at most

T = TypeVar("T", float, Score)


def rank_agreement(pairs: Sequence[tuple[T, T]], field: Sequence[T] | None = None) -> float | None:
    """Return Spearman's correlation of losses, or scores, at one rung with those at the next, -1..1.

    Trials that reached the next rung were mostly selected by their losses, and within a narrow selection any
    correlation is attenuated. The correlation is corrected for this restriction of range, on ranks.

    Args:
        pairs: (loss here, loss at the next rung) of the trials that have both.
        field: losses of all trials at this rung, including those in `pairs`; None: `pairs` has them all.

    Returns:
        None for fewer than `MIN_PAIRS` pairs, or if all losses of a rung are equal.
    """
    if len(pairs) < MIN_PAIRS:
        return None
    here: list[Any] = [first for first, _ in pairs]
    there: list[Any] = [second for _, second in pairs]
    x, y = _mean_ranks(here, here), _mean_ranks(there, there)
    if not (x.std() > 0 and y.std() > 0):
        return None
    r = float(np.corrcoef(x, y)[0, 1])
    if field is None or len(field) <= len(pairs):
        return r
    # Quantiles of the pairs in the field, 0..1. The deviation of uniform quantiles is sqrt(1/12).
    spread = float(((_mean_ranks(here, field) + 0.5) / len(field)).std()) * math.sqrt(12)
    if spread <= 0:
        return None
    return unrestricted(r, spread)


def unrestricted(correlation: float, spread: float) -> float:
    """Return the correlation among all trials, from that among trials which were selected at a rung.

    Thorndike 1949, case 2.

    Args:
        spread: deviation of the selected trials at the rung, in parts of that of all trials. > 0.
    """
    ratio = correlation / min(spread, 1.0)
    return ratio / math.sqrt(1 - correlation**2 + ratio**2)


def expected_agreement(correlation: float | None, num_pairs: int) -> float:
    """Return the correlation of two neighbouring rungs to expect after a measurement, -1..1.

    The measured value and a prior are averaged by Fisher's transformation, whose variance is 1 / (pairs - 3).

    Args:
        correlation: measured on `num_pairs` trials; None: none could be measured.
    """
    transformed, weight = 0.0, 0
    if correlation is not None:
        transformed, weight = math.atanh(min(max(correlation, -_MOST), _MOST)), num_pairs - 3
    total = transformed * weight + math.atanh(_PRIOR) * _PRIOR_WEIGHT
    return math.tanh(total / (weight + _PRIOR_WEIGHT))


def _mean_ranks(values: Iterable[Any], among: Iterable[Any]) -> Array:
    """Return the rank from 0 of each value among others; equal values share their mean rank."""
    ordered = sorted(among)
    ranks = [(bisect_left(ordered, value) + bisect_right(ordered, value) - 1) / 2 for value in values]
    return np.array(ranks)
