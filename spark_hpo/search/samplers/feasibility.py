"""The probability that a configuration trains without failing, learned from the trials that failed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from scipy.special import ndtr

from spark_hpo.search.sampler import Outcome
from spark_hpo.search.samplers.memory import MemoryFailures
from spark_hpo.search.space.axis import Array, Axes

_WEAK = 0.25  # blame of a trial that was pruned, or whose batches did not fit a device and were halved
_MAX_FAILED, _MAX_SUCCESSFUL = 64, 96  # latest trials that are used: a fit takes 3 ms
_WIDTH = 0.3  # of a kernel on a number, times n^(-1/5)
_MIN_WIDTH = 0.03
_PRIOR_WEIGHT = 1.0  # of the share of failures, beside the kernels of trials
_MAX_PAIRED = 6  # axes of which pairs are tried: those that explain failures best on their own
_LEAST_VOTE = 1e-3  # smaller ones are left out
_LEAST_PROBABILITY = 1e-3  # nothing is certain to fail
_NEAR = 0.9  # share of the highest probability
_CAUTION = 2.0  # power of the probability; settings are compared in docs/methods.md


class Blame:
    """How far the configuration of a trial is the cause of a failure: 0 not at all, 1 entirely.

    A trial that was lost, for example with its executor, has no known outcome.

    A trace: tell(0, has_failed=True); note(1, of a lost executor); tell(1, has_failed=True);
        tell(2, has_failed=False); known() -> {0: 1.0, 2: 0.0}
    """

    def __init__(self) -> None:
        self._blamed: dict[int, float] = {}  # above 0
        self._successful: dict[int, None] = {}  # an ordered set
        self._outcomes: dict[int, Outcome] = {}  # of trials that report next

    def note(self, trial_id: int, outcome: Outcome) -> None:
        """Learn why the next report of a trial may be a failure. A failure without this is its own fault."""
        self._outcomes[trial_id] = outcome

    def tell(self, trial_id: int, *, has_failed: bool) -> None:
        """Learn whether a trial has failed."""
        outcome = self._outcomes.pop(trial_id, None)
        if outcome is not None and outcome.is_lost:
            return
        blame = 1.0 if has_failed else 0.0
        if outcome is not None and (outcome.is_pruned or (outcome.num_halved and not has_failed)):
            blame = _WEAK
        if blame > self.of(trial_id):
            self._blamed[trial_id] = blame
            self._successful.pop(trial_id, None)
        elif trial_id not in self._blamed:
            self._successful[trial_id] = None

    def of(self, trial_id: int) -> float:
        """Return the blame of a trial; 0 if its outcome is not known."""
        return self._blamed.get(trial_id, 0.0)

    def known(self) -> Mapping[int, float]:
        """Return the blame of the latest trials with a known outcome. Empty if none is to blame."""
        if not self._blamed:
            return {}
        blamed, successful = list(self._blamed), list(self._successful)
        trials = sorted([*blamed[-_MAX_FAILED:], *successful[-_MAX_SUCCESSFUL:]])
        return {trial_id: self.of(trial_id) for trial_id in trials}


class Feasibility:
    """Densities of failed and successful configurations, and the probability of success that they give.

    As in c-TPE (Watanabe and Hutter 2023, arXiv:2211.14411), the probability of success at x is
    s(x) / (s(x) + f(x)), with the densities of successful and failed trials, each times its number of trials,
    and it multiplies the improvement. A joint density of many parameters would need many failures, so several
    pairs of densities vote: over no parameter, over each one, over two, and over all of them. The weight of a
    vote is the likelihood of each outcome under the densities of all other trials. So one failed trial says
    little, and five failed trials on the same side of one parameter rule that side out.

    If the memory of trials is known, its prediction votes, too (`MemoryFailures`).
    """

    def __init__(self, axes: Axes, rows: Array, blame: Array, memory: MemoryFailures | None = None) -> None:
        """Fit the densities.

        Args:
            axes: of the space.
            rows: positions of trials with a known outcome, [trials, axes].
            blame: of each trial, [trials].
            memory: fitted to the same trials; None: it is not known.
        """
        self._axes, self._rows, self._blame, self._memory = axes, rows, blame, memory
        self._share = float((blame.sum() + 0.5) / (len(blame) + 2))
        kernels = self._kernels(rows)
        alone: dict[tuple[int, ...], float] = {
            (i,): self._likelihood_of(kernel) for i, kernel in enumerate(kernels)
        }
        likelihoods: dict[tuple[int, ...], float] = {
            (): self._likelihood_of(np.ones((len(rows), len(rows)))),
            **alone,
        }
        paired = sorted(alone, key=lambda subset: -alone[subset])[:_MAX_PAIRED]
        for i, j in combinations(sorted(i for subset in paired for i in subset), 2):
            likelihoods[i, j] = self._likelihood_of(kernels[i] * kernels[j])
        if len(axes) > 2:
            likelihoods[tuple(range(len(axes)))] = self._likelihood_of(np.prod(kernels, axis=0))
        logs = np.array(list(likelihoods.values()))
        if memory is not None:
            # A cause is more plausible than any one density: it starts with as many votes as all of them.
            logs = np.append(logs, self._likelihood(memory.without_own) + math.log(len(logs)))
        votes = np.exp(logs - logs.max())
        votes[votes < _LEAST_VOTE * votes.sum()] = 0.0
        votes /= votes.sum()
        self._memory_vote = 0.0 if memory is None else float(votes[-1])
        densities = votes[: len(likelihoods)]
        self._votes = [(s, float(vote)) for s, vote in zip(likelihoods, densities, strict=True) if vote]

    def probability(self, rows: Array) -> Array:
        """Return the probability that configurations succeed, from positions [rows, axes]: [rows]."""
        kernels, failure = self._kernels(rows), np.zeros(len(rows))
        for subset, vote in self._votes:
            joint = np.ones((len(rows), len(self._rows)))
            for i in subset:
                joint = joint * kernels[i]
            failure += vote * self._failure(joint)
        if self._memory is not None and self._memory_vote:
            failure += self._memory_vote * self._memory.probability(rows)
        return np.maximum(1 - failure, _LEAST_PROBABILITY)

    def log_weight(self, rows: Array) -> Array:
        """Return the log of the factor by which the improvement of configurations counts, [rows]."""
        return _CAUTION * np.log(self.probability(rows))

    def first_likely(self, rows: Array) -> int:
        """Return the first of some configurations whose probability is near the highest one."""
        probability = self.probability(rows)
        return int(np.argmax(probability >= _NEAR * probability.max()))

    def _kernels(self, rows: Array) -> list[Array]:
        """Return, for each axis, the kernels of all trials at these positions, [rows, trials]."""
        return [self._kernel(i, rows[:, i], self._rows[:, i]) for i in range(len(self._axes))]

    def _kernel(self, number: int, positions: Array, centres: Array) -> Array:
        """Return the kernels on an axis, relative to the prior: 1 where the parameter is inactive."""
        axis = self._axes.axes[number]
        if axis.options:
            smoothing = axis.options / (axis.options + len(centres))
            prior = np.maximum(axis.prior[np.nan_to_num(centres).astype(int)], 1e-12)
            kernel = smoothing + (1 - smoothing) / prior * (positions[:, None] == centres)
        else:
            width = max(_WIDTH * len(centres) ** -0.2, _MIN_WIDTH)
            z = (positions[:, None] - centres) / width
            inside = ndtr((1 - centres) / width) - ndtr(-centres / width)
            kernel = np.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * width * inside)
        return np.where(np.isnan(positions)[:, None] | np.isnan(centres), 1.0, kernel)

    def _failure(self, joint: Array) -> Array:
        """Return the probability of failure, [rows], from the kernels of all trials, [rows, trials]."""
        failed = joint @ self._blame + _PRIOR_WEIGHT * self._share
        return np.asarray(failed / (joint.sum(axis=1) + _PRIOR_WEIGHT))

    def _likelihood_of(self, joint: Array) -> float:
        """Return the log likelihood of the outcomes, each given those of all other trials."""
        return self._likelihood(self._failure(joint - np.diag(np.diag(joint))))

    def _likelihood(self, failure: Array) -> float:
        """Return the log likelihood of the outcomes, given the probability that each is a failure."""
        return float(self._blame @ np.log(failure) + (1 - self._blame) @ np.log1p(-failure))


def log_improvement(log_ratio: Array, gamma: float) -> Array:
    """Return the log of the expected improvement, up to a constant.

    Unlike the ratio itself, it is bounded (Bergstra et al. 2011, equation 7), so it can be compared with the
    log of a probability.

    Args:
        log_ratio: log l(x)/g(x), [rows].
        gamma: share of trials that are good.
    """
    return np.asarray(-np.logaddexp(math.log(gamma), math.log1p(-gamma) - log_ratio))
