"""Full training, without early stopping."""

from __future__ import annotations

import sys

from spark_hpo.search.schedulers.bracket import BracketScheduler
from spark_hpo.search.schedulers.rungs import Rung
from spark_hpo.search.settings import require_integer


class FullScheduler(BracketScheduler):
    """Trains every trial to `max_resource` at once: one bracket with one rung.

    Args:
        max_resource: epochs per trial.
        max_trials: number of trials to start; None: until `close`.
    """

    stops_early = False

    def __init__(self, max_resource: int, max_trials: int | None = None) -> None:
        require_integer("max_resource", max_resource, 1)
        rung = Rung(sys.maxsize if max_trials is None else max_trials, max_resource)
        super().__init__(
            iter([(rung,)]), max_resource=max_resource, reduction_factor=2, max_trials=max_trials
        )
