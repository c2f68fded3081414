"""Schedulers of synchronous brackets: full training, successive halving and Hyperband."""

from __future__ import annotations

import sys
from itertools import cycle, repeat

from spark_hpo.errors import ConfigError
from spark_hpo.search.schedulers.bracket import BracketScheduler, check_resources
from spark_hpo.search.schedulers.rungs import Rounding, Rung, bracket_rungs, hyperband_rungs, resource_levels
from spark_hpo.search.settings import require_integer
from spark_hpo.suggest import suggestion


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


class HyperbandScheduler(BracketScheduler):
    """Runs rounds of brackets until all trials have started. Brackets overlap.

    Li et al. 2018, arXiv:1603.06560: R is max_resource, eta is reduction_factor. For R = 81 and eta = 3 a
    round has brackets of 81/27/9/3/1, 27/9/3/1, 9/3/1, 6/2 and 5 trials, as in their Table 1.

    Args:
        max_resource: epochs of a fully trained trial.
        min_resource: lower bound of the epochs at the lowest rung; see `rungs.resource_levels`.
        reduction_factor: a rung promotes 1 / reduction_factor of its trials.
        max_trials: number of trials to start; None: until `close`.
        rounding: of the size of a bracket, "floor" (Table 1) or "ceiling" (Algorithm 1).
    """

    def __init__(
        self,
        max_resource: int,
        min_resource: int = 1,
        reduction_factor: int = 3,
        max_trials: int | None = None,
        rounding: Rounding | str = Rounding.FLOOR,
    ) -> None:
        check_resources(min_resource, max_resource, reduction_factor)
        if rounding not in list(Rounding):
            raise ConfigError(
                "is not a valid rounding", key="rounding", value=rounding, cure=suggestion(rounding, Rounding)
            )
        self.brackets: tuple[tuple[Rung, ...], ...] = hyperband_rungs(
            min_resource, max_resource, reduction_factor, Rounding(rounding)
        )
        super().__init__(
            cycle(self.brackets),
            max_resource=max_resource,
            reduction_factor=reduction_factor,
            max_trials=max_trials,
        )
