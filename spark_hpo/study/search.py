"""The deciding parts of a study, as one value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spark_hpo.objective import Choice, Score
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.steerable import Steerable, SteerableExplorer
from spark_hpo.search.stopping import StoppingRule
from spark_hpo.trial import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """How many of the best trials are trained again, and with how many other seeds each."""

    top: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Decides on parameters, on the trial to train next, and on the end of the search."""

    sampler: Sampler
    scheduler: Scheduler
    explorer: Explorer | None = None  # needed by schedulers whose trials have parents
    stopping: Sequence[StoppingRule] = ()
    steerable_explorer: SteerableExplorer | None = None  # the explorer, if people can change its ranges
    steerable: Steerable | None = None  # the sampler, if people can add trials and change ranges
    first_max_trials: int | None = None  # that might start when the study began; None: no limit
    max_trials: int | None = None  # that may start now
    described: Callable[[Assignment], str] = str  # says what an assignment trains
    has_folds: bool = False  # a unit of the resource is a fold of a cross-validation
    confirm: Confirm | None = None  # None: finalists are not trained again
    choice: Choice = field(default_factory=Choice)
    seed: int = 0  # each trial derives the seed of its training from it
    warning: str | None = None  # for the user, in one line: something about the combination of these parts


def result_for(method: Sampler | Scheduler | Explorer, score: Score) -> dict[str, float]:
    """Return the loss and the violation to report to a method.

    To a plugin that does not handle limits, a trial that breaks one has failed.
    """
    if getattr(method, "handles_limits", False):
        return {"loss": score.loss, "violation": score.violation}
    return {"loss": score.loss if score.violation == 0 else math.inf}
