"""Successive halving: train many trials a little, the best of them further."""

from __future__ import annotations

from itertools import repeat

from spark_hpo.errors import ConfigError
from spark_hpo.search.schedulers.bracket import BracketScheduler, check_resources
from spark_hpo.search.schedulers.rungs import Rung, bracket_rungs, resource_levels
from spark_hpo.search.settings import require_integer


class SuccessiveHalvingScheduler(BracketScheduler):
    """The same bracket again and again, while trials remain.

    Jamieson and Talwalkar 2016, arXiv:1502.07943: n is num_trials, eta is reduction_factor.

    Args:
        num_trials: trials at the lowest rung of each bracket; None: `max_trials`, so that there is one.
        max_resource: epochs of a trial that is promoted to the end.
        min_resource: epochs at the lowest rung, at least; see `rungs.resource_levels`.
        reduction_factor: a rung promotes one trial in so many.
        max_trials: trials in all brackets together; None: until `close`. Equal to `num_trials`, there is
            one bracket.

    Raises:
        ConfigError: a value is out of range, or neither num_trials nor max_trials is given.
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
