"""Compares finalists that were trained with several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_DRAWS = 20_000
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A configuration and its losses with other seeds."""

    trial_id: int
    losses: tuple[float, ...]  # of the seeds that succeeded
    num_failed: int
    mean: float  # infinite if no seed succeeded
    spread: float | None  # standard deviation of the sample; None: fewer than two losses
    chance: float  # that its expected loss is the lowest, 0 to 1

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sort key, the best first: one that fails with some seeds comes after those that never fail."""
        return self.num_failed, self.mean, self.trial_id


def compare(losses: Mapping[int, Sequence[float]]) -> list[Finalist]:
    """Return the finalists, the best first.

    The chance is that of a t distribution around each mean: the losses of all seeds are taken to be normal,
    with one variance, which is estimated from all finalists together. The losses of the search itself are not
    among them, because a finalist was chosen for a low one.

    Args:
        losses: of the new seeds, by trial; infinite for a seed that failed.
    """
    finite = {trial_id: [loss for loss in each if math.isfinite(loss)] for trial_id, each in losses.items()}
    chances = _chances(finite)
    found = [
        Finalist(
            trial_id=trial_id,
            losses=tuple(each),
            num_failed=len(losses[trial_id]) - len(each),
            mean=statistics.fmean(each) if each else math.inf,
            spread=statistics.stdev(each) if len(each) > 1 else None,
            chance=chances.get(trial_id, 0.0),
        )
        for trial_id, each in finite.items()
    ]
    return sorted(found, key=lambda finalist: finalist.rank)


def _chances(losses: Mapping[int, Sequence[float]]) -> dict[int, float]:
    able = [trial_id for trial_id, each in losses.items() if each]
    if not able:
        return {}
    counts = np.array([len(losses[trial_id]) for trial_id in able])
    means = np.array([statistics.fmean(losses[trial_id]) for trial_id in able])
    freedom = int(counts.sum()) - len(able)
    if freedom == 0:  # one loss each says nothing about the spread
        return dict.fromkeys(able, 1 / len(able))
    squares = sum((loss - mean) ** 2 for i, mean in zip(able, means, strict=True) for loss in losses[i])
    errors = math.sqrt(squares / freedom) / np.sqrt(counts)
    draws = means + errors * np.random.default_rng(_SEED).standard_t(freedom, size=(_DRAWS, len(able)))
    best = np.bincount(draws.argmin(axis=1), minlength=len(able)) / _DRAWS
    return {trial_id: float(share) for trial_id, share in zip(able, best, strict=True)}
