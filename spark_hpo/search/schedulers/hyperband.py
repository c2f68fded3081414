"""Hyperband: brackets of successive halving, from many short trials to a few long ones."""

from __future__ import annotations

from itertools import cycle

from spark_hpo.errors import ConfigError
from spark_hpo.search.schedulers.bracket import BracketScheduler, check_resources
from spark_hpo.search.schedulers.rungs import Rounding, Rung, hyperband_rungs
from spark_hpo.suggest import suggestion


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
