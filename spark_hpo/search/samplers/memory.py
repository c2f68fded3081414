"""The probability that a configuration fails because it needs more memory than there is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_hpo.search.samplers.costs import CostModel, Memory
from spark_hpo.search.space.axis import Array, Axes

_MOST = 0.99  # probability of needing too much: the model may be wrong


class MemoryFailures:
    """Failures, if memory decides about them.

    A configuration needs more memory than the limit with a probability that a model of the memory gives
    (`CostModel`). Trials that finished count too: those that used most of the memory show where the limit is
    near, before others fail. Needing too much may not be fatal, because batches may be halved: as often as it
    was for the trials that did not fit. Other failures hit all configurations alike.
    """

    def __init__(self, axes: Axes, memory: Memory, trials: Sequence[int], rows: Array, blame: Array) -> None:
        """Fit the model.

        Args:
            axes: of the space.
            memory: of trials, of which at least one did not fit.
            trials: with a known outcome, at least one of them in `memory`.
            rows: their positions, [trials, axes].
            blame: of each, [trials].
        """
        is_unfit = np.array([trial_id in memory.unfit for trial_id in trials])
        is_known = np.array([trial_id in memory.logs for trial_id in trials])
        logs = np.array([memory.logs[trial_id] for trial_id in trials if trial_id in memory.logs])
        self._log_limit = memory.log_limit
        self._model = CostModel(axes, rows[is_known], logs, is_unfit[is_known])
        self._fatal = float(blame[is_unfit].mean())
        self._other = float((blame[~is_unfit].sum() + 0.5) / (len(trials) + 2))
        above = np.empty(len(trials))
        above[is_known] = self._model.above_without_own(self._log_limit)
        if not is_known.all():
            above[~is_known] = self._model.above(self._log_limit, rows[~is_known])
        self.without_own = self._failure(above)
        """The probability of failure of each trial, as it would be without this trial, [trials]."""

    def probability(self, rows: Array) -> Array:
        """Return the probability that configurations fail, from positions [rows, axes]: [rows]."""
        return self._failure(self._model.above(self._log_limit, rows))

    def _failure(self, above: Array) -> Array:
        return 1 - (1 - self._other) * (1 - self._fatal * np.minimum(above, _MOST))
