"""What the results at all rungs say about how trials would end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from spark_hpo.search.agreement import MIN_PAIRS, expected_agreement, unrestricted
from spark_hpo.search.pareto import Ints
from spark_hpo.search.samplers.history import Ranking
from spark_hpo.search.space.axis import Array

_AGREEMENTS = (-0.5, 0.99)  # estimates are clipped to this range
_LEAST_AGREEMENT = 0.25  # with the last rung; weaker ones count less instead
_MIN_VARIANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalScores:
    """Each trial's latest result, as a noisy observation of its score at the highest rung with results.

    A score is a normal quantile: if all trials were trained to that rung, they would have mean 0 and
    deviation 1. Lower is better.
    """

    trials: Ints  # ascending
    values: Array  # [trials]
    noise: Array  # variance of each value, given the final score, [trials]

    def best_first(self) -> Ints:
        """Return the indices of the trials, in the order of what is expected without knowing parameters."""
        return np.argsort(self.values / (1 + self.noise), kind="stable")

    def of(self, keep: Ints) -> FinalScores:
        """Return the observations with these indices, which ascend."""
        return FinalScores(trials=self.trials[keep], values=self.values[keep], noise=self.noise[keep])


def final_scores(rankings: Sequence[Ranking]) -> FinalScores:
    """Relate the results at all rungs to each other.

    At the lowest rung, the score of a trial is the normal quantile of its rank. The trials of a higher rung
    were selected, mostly by their scores below, so their ranks among each other do not compare with those of
    other trials. But from the correlation r of the scores at the two rungs follow the mean and the variance
    that the selected trials have among all: r m and 1 - r^2 + r^2 v, if m and v are those of their scores
    below. So a trial that reached the last rung early, because there was no other, is not taken for the best.
    A trial that stopped below has the expected final score r z, with the variance 1 - r^2. As an observation
    of the final score, this is z / r, with the variance (1 - r^2) / r^2.

    The correlation is estimated from the trials at both rungs, corrected for their selection (Thorndike 1949,
    case 2), and shrunk towards a prior. Where low rungs mislead it is near 0 or negative, and the trials that
    stopped there count little, or in the opposite direction.

    Args:
        rankings: of the rungs with results, the lowest first; at least one.
    """
    numbers = [np.array([trial_id for _, trial_id in ranking]) for ranking in rankings]
    size = 1 + max(int(trials.max()) for trials in numbers)
    scores = np.full(size, math.nan)  # by trial, at the highest rung that it has reached
    rungs = np.zeros(size, dtype=np.int64)
    agreements: list[float] = []  # of each rung with the next
    for rung, (ranking, trials) in enumerate(zip(rankings, numbers, strict=True)):
        quantiles = _quantiles(ranking)
        mean, deviation = 0.0, 1.0
        if rung:
            agreement, mean, deviation = _selection(quantiles, scores[trials])
            agreements.append(agreement)
        scores[trials] = mean + deviation * quantiles
        rungs[trials] = rung
    with_last = np.cumprod([1.0, *reversed(agreements)])[::-1]
    trials = np.flatnonzero(~np.isnan(scores))
    agreement_of = with_last[rungs[trials]]
    strength = np.maximum(np.abs(agreement_of), _LEAST_AGREEMENT)
    return FinalScores(
        trials=trials,
        values=scores[trials] * agreement_of / strength**2,
        noise=(1 - strength**2) / strength**2,
    )


def _quantiles(ranking: Ranking) -> Array:
    """Return the normal quantile of each trial's rank; equal scores share theirs."""
    values = np.array([score.loss for score, _ in ranking])
    is_new = values[1:] != values[:-1]
    if ranking[-1][0].violation:
        violations = np.array([score.violation for score, _ in ranking])
        is_new |= violations[1:] != violations[:-1]
    number = np.concatenate([[0], np.cumsum(is_new)])  # of distinct scores, from 0
    last = np.cumsum(np.bincount(number))
    first = np.concatenate([[0], last[:-1]])
    quantiles: Array = ndtri((first + last) / 2 / len(ranking))[number]
    return quantiles


def _selection(quantiles: Array, below: Array) -> tuple[float, float, float]:
    """Return the agreement of a rung with the one below, and mean and deviation of its trials among all.

    Args:
        quantiles: of the trials of the rung among each other.
        below: their scores at the rung below; NaN where a trial has none.
    """
    has_both = ~np.isnan(below)
    x, y = below[has_both], quantiles[has_both]
    if not len(x):
        return expected_agreement(None, 0), 0.0, 1.0
    corrected = None
    if len(x) >= MIN_PAIRS and x.std() > 0 and y.std() > 0:
        corrected = unrestricted(float(np.corrcoef(x, y)[0, 1]), float(x.std()))
    agreement = min(max(expected_agreement(corrected, len(x)), _AGREEMENTS[0]), _AGREEMENTS[1])
    variance = 1 - agreement**2 + agreement**2 * float(x.var())
    return agreement, agreement * float(x.mean()), math.sqrt(max(variance, _MIN_VARIANCE))
