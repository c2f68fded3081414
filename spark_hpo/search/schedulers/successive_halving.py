"""Successive halving: train many trials briefly, and the best of them longer."""

from __future__ import annotations

from itertools import repeat

from spark_hpo.errors import ConfigError
from spark_hpo.search.schedulers.bracket import BracketScheduler, check_resources
from spark_hpo.search.schedulers.rungs import Rung, bracket_rungs, resource_levels
from spark_hpo.search.settings import require_integer


class SuccessiveHalvingScheduler(BracketScheduler):
    """Repeats one bracket until all trials have started.

    Jamieson and Talwalkar 2016, arXiv:1502.07943: n is num_trials, eta is reduction_factor.

    Args:
        num_trials: trials at the lowest rung of each bracket; None: `max_trials`, for a single bracket.
        max_resource: epochs of a fully trained trial.
        min_resource: lower bound of the epochs at the lowest rung; see `rungs.resource_levels`.
        reduction_factor: a rung promotes 1 / reduction_factor of its trials.
        max_trials: number of trials to start, in all brackets together; None: until `close`.

    Raises:
        ConfigError: a value is out of range, or both num_trials and max_trials are missing.
    """

    def __init__(
        self,
        *,
        max_resource: int,
        num_trials: int | None = None,
        min_resource: int = 1,
        reduction_factor: int = 3,
        max_trials: int | None = None,
    ) -> None:
        num_trials = max_trials if num_trials is None else num_trials
        if num_trials is None:
            raise ConfigError("is missing", key="num_trials", cure="Set it, or budget.trials")
        require_integer("num_trials", num_trials, 1)
        check_resources(min_resource, max_resource, reduction_factor)
        levels = resource_levels(min_resource, max_resource, reduction_factor)
        self.rungs: tuple[Rung, ...] = bracket_rungs(num_trials, levels, reduction_factor)
        super().__init__(
            repeat(self.rungs),
            max_resource=max_resource,
            reduction_factor=reduction_factor,
            max_trials=max_trials,
        )
