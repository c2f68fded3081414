"""Schedulers of synchronous brackets: full training, successive halving and Hyperband."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, repeat

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.search.schedulers.bracket import BracketScheduler
from spark_hpo.search.schedulers.rungs import Rounding, Rung, bracket_rungs, hyperband_rungs, resource_levels
from spark_hpo.search.settings import require_integer


@dataclass(eq=False)
class FullScheduler(BracketScheduler):
    """Trains every trial to `max_resource` at once: one bracket with one rung."""

    stops_early = False

    min_resource: int = field(default=1, init=False)
    reduction_factor: int = field(default=2, init=False)

    def _plan(self) -> Iterator[tuple[Rung, ...]]:
        self.num_rungs = 1
        size = sys.maxsize if self.max_trials is None else self.max_trials
        return iter([(Rung(size, self.max_resource),)])


@dataclass(eq=False, kw_only=True)
class SuccessiveHalvingScheduler(BracketScheduler):
    """Repeats one bracket until `max_trials` have started in all brackets together.

    Jamieson and Talwalkar 2016, arXiv:1502.07943: n is num_trials, eta is reduction_factor.

    Raises:
        ConfigError: a value is out of range, or both num_trials and max_trials are missing.
    """

    num_trials: int | None = None  # at the lowest rung of each bracket; None: `max_trials`, in one bracket

    def _plan(self) -> Iterator[tuple[Rung, ...]]:
        num_trials = self.max_trials if self.num_trials is None else self.num_trials
        if num_trials is None:
            raise ConfigError("is missing", key="num_trials", cure="Set it, or budget.trials")
        require_integer("num_trials", num_trials, 1)
        levels = resource_levels(self.min_resource, self.max_resource, self.reduction_factor)
        self.rungs = bracket_rungs(num_trials, levels, self.reduction_factor)
        self.num_rungs = len(levels)
        return repeat(self.rungs)


@dataclass(eq=False, kw_only=True)
class HyperbandScheduler(BracketScheduler):
    """Runs rounds of brackets until all trials have started. Brackets overlap.

    Li et al. 2018, arXiv:1603.06560: R is max_resource, eta is reduction_factor. For R = 81 and eta = 3 a
    round has brackets of 81/27/9/3/1, 27/9/3/1, 9/3/1, 6/2 and 5 trials, as in their Table 1.
    """

    rounding: Rounding | str = Rounding.FLOOR  # of bracket sizes: "floor" (Table 1), "ceiling" (Algorithm 1)

    def _plan(self) -> Iterator[tuple[Rung, ...]]:
        if self.rounding not in list(Rounding):
            cure = suggestion(self.rounding, Rounding)
            raise ConfigError("is not a valid rounding", key="rounding", value=self.rounding, cure=cure)
        self.brackets = hyperband_rungs(
            self.min_resource, self.max_resource, self.reduction_factor, Rounding(self.rounding)
        )
        self.num_rungs = len(self.brackets[0])
        return cycle(self.brackets)
