"""Optuna's samplers behind ask and tell. Optuna itself is imported when one is built."""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spark_hpo.errors import ConfigError
from spark_hpo.search.pareto import Losses, Penalty
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.history import History, Result
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes
from spark_hpo.trial import Params

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True, slots=True)
class _Asked:
    """A proposal that has not been started yet."""

    trial_id: int
    trial: Trial
    row: Array


class OptunaSampler(Sampler, ABC):
    """One of Optuna's samplers, on the axes of the space: numbers evenly spread from 0 to 1, and choices.

    - **Level.** Losses are compared at one resource: the highest that `enough` trials have reported.
      When that is another one than before, Optuna is given a new study with the losses there; what its
      sampler had built up for itself (CMA-ES its matrix, NSGA-II its generations) begins anew.
    - **In flight** trials are running ones for Optuna; what its sampler makes of them is its own affair.
    - **Resumed**, a sampler that keeps state with Optuna's trials (CMA-ES, NSGA-II) is asked again for
      each trial that was started, with the same seed: so the state is there again.
    - **Limits.** Optuna is given penalised losses (`Penalty`): not all of its samplers know constraints. They
      depend on the range of the feasible losses; when that changes, Optuna is given a new study, too.
    - **Several objectives** are as many directions of Optuna's study, for those of its samplers that can
      (`Nsga2Sampler`, `OptunaTpeSampler`).

    Args:
        space: what is tuned.
        seed: of the study.
        enough: results that a level must have before it is the one.
        num_objectives: losses that are learned from, the first ones of those told.
    """

    keeps_state: ClassVar[bool] = False  # whether Optuna's sampler keeps something with its trials
    handles_limits = True

    def __init__(self, space: Space, seed: int, *, enough: int = 10, num_objectives: int = 1) -> None:
        require_integer("enough", enough, 2)
        self._optuna = import_optuna()
        self.space = space
        self.seed = seed
        self.enough = enough
        self.num_objectives = num_objectives
        self._axes = Axes(space)
        self._history = History()
        self._rows: dict[int, Array] = {}
        self._level: int | None = None
        self._numbers: dict[int, int] = {}  # Optuna's number of a trial in the present study
        self._asked: _Asked | None = None  # by the last `ask`, nothing having happened since
        self._penalty = Penalty.among((), num_objectives)  # at the level
        self._base: list[tuple[int, Result]] = []  # by trial, at the level when it was chosen
        self._events: list[tuple[int, Result | None]] = []  # since then: the same, None for a start
        self._study = self._new_study()

    def ask(self, trial_id: int) -> Params:
        """Propose parameters for a new trial. Never changes what the sampler has learned."""
        if self._asked is None or self._asked.trial_id != trial_id:
            self._forget_asked()
            self._asked = self._ask_optuna(trial_id)
        return self._axes.params(self._asked.row)

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs with these parameters: it is in flight until told.

        Raises:
            SpaceError: the parameters do not fit the space.
        """
        self._rows[trial_id] = self._axes.row(params)
        self._history.start(trial_id)
        self._start(trial_id)
        self._events.append((trial_id, None))

    def tell(
        self,
        trial_id: int,
        *,
        resource: int,
        loss: float,
        others: tuple[float, ...] = (),
        violation: float = 0.0,
    ) -> None:
        """Learn the losses of a trial at a resource; infinite or NaN for a failed trial."""
        assert trial_id in self._rows, f"trial {trial_id} was told of before it was started"
        self._forget_asked()
        losses = (loss, *others)[: self.num_objectives]
        self._history.tell(trial_id, resource, loss, losses[1:], violation)
        levels = self._history.levels
        level = max((r for r in levels if len(self._history.ranking(r)) >= self.enough), default=None)
        penalty = None if level is None else self._history.penalty(level)
        before, self._penalty = self._penalty, penalty or self._penalty
        if level != self._level:
            self._level = level
            self._base = [] if level is None else sorted(self._history.results(level).items())
            self._events = [(trial, None) for trial in self._history.in_flight]
            self._rebuild()
        elif resource == level or not _is_finite(losses):
            self._events.append((trial_id, (losses, violation)))
            if self._penalty != before:
                self._rebuild()
            else:
                self._finish(trial_id, (losses, violation))

    @abstractmethod
    def _sampler(self, seed: int) -> Any:
        """Optuna's sampler, newly built with this seed."""

    def _new_study(self) -> Any:
        from optuna.storages import InMemoryStorage

        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        return self._optuna.create_study(
            storage=InMemoryStorage(), study_name="spark_hpo", directions=["minimize"] * self.num_objectives
        )

    def _ask_optuna(self, trial_id: int) -> _Asked:
        seed = int(np.random.SeedSequence((self.seed, trial_id)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
            self._study.sampler = self._sampler(seed)
            trial = self._study.ask()
            row = np.full(len(self._axes), math.nan)
            for i, axis in enumerate(self._axes.axes):
                if not all(row[choice] == option for choice, option in self._axes.conditions[i]):
                    continue
                if axis.options:
                    row[i] = trial.suggest_categorical(str(i), list(range(axis.options)))
                else:
                    row[i] = trial.suggest_float(str(i), 0.0, 1.0)
        return _Asked(trial_id, trial, row)

    def _forget_asked(self) -> None:
        """What was asked and not started has never been."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if self.keeps_state:
            self._rebuild()
        else:
            self._study.tell(asked.trial, state=self._optuna.trial.TrialState.FAIL)

    def _rebuild(self) -> None:
        """A new study: the losses at the present level as they were when it was chosen, and what followed."""
        self._asked = None
        self._study = self._new_study()
        self._numbers = {}
        for trial_id, result in self._base:
            self._add(trial_id, self._penalty.losses(*result))
        for trial_id, event in self._events:
            if event is None:
                self._start(trial_id)
            else:
                self._finish(trial_id, event)

    def _start(self, trial_id: int) -> None:
        row = self._rows[trial_id]
        if self._asked is not None and self._asked.trial_id != trial_id:
            self._forget_asked()
        if self._asked is None and self.keeps_state:
            self._asked = self._ask_optuna(trial_id)
        asked, self._asked = self._asked, None
        if asked is None or (np.isnan(asked.row) != np.isnan(row)).any():  # other parameters are active
            if asked is not None:
                self._study.tell(asked.trial, state=self._optuna.trial.TrialState.FAIL)
            self._add(trial_id, None)
            return
        # What is started is what Optuna shall know: rounded, or somebody else's.
        distributions, values = parameters_of(self._optuna, self._axes, row)
        for name, distribution in distributions.items():
            internal = distribution.to_internal_repr(values[name])
            self._study._storage.set_trial_param(asked.trial._trial_id, name, internal, distribution)
        self._numbers[trial_id] = asked.trial.number

    def _finish(self, trial_id: int, result: Result) -> None:
        """A trial has its losses at the level, or has failed."""
        is_finite = _is_finite(result[0])
        states = self._optuna.trial.TrialState
        number = self._numbers.get(trial_id)
        trials = self._study.get_trials(deepcopy=False)
        if number is not None and trials[number].state is states.RUNNING:
            if is_finite:
                self._study.tell(number, self._penalty.losses(*result))
            else:
                self._study.tell(number, state=states.FAIL)
        elif is_finite:
            self._add(trial_id, self._penalty.losses(*result))

    def _add(self, trial_id: int, losses: Losses | None) -> None:
        """Add a trial that Optuna has not proposed; running where there are no losses."""
        distributions, values = parameters_of(self._optuna, self._axes, self._rows[trial_id])
        states = self._optuna.trial.TrialState
        self._numbers[trial_id] = len(self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=states.RUNNING if losses is None else states.COMPLETE,
                params=values,
                distributions=distributions,
                values=losses,
            )
        )


class OptunaTpeSampler(OptunaSampler):
    """Optuna's multivariate TPE with a constant liar, each option of a choice modelled as a group.

    With several objectives it is MOTPE (Ozaki et al. 2022).
    """

    supports_multiple_objectives = True

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


class GaussianProcessSampler(OptunaSampler):
    """A Gaussian process with log expected improvement: the most of few trials, up to a few hundred.

    Optuna's GPSampler. A proposal takes from a second upwards, and its time grows with the cube of the
    trials. What a choice turns off is drawn independently. Needs torch.

    Args:
        num_startup_trials: trials that are drawn before there is a model.
    """

    def __init__(self, space: Space, seed: int, *, num_startup_trials: int = 10, enough: int = 10) -> None:
        require_integer("num_startup_trials", num_startup_trials, 1)
        _require("torch")
        self.num_startup_trials = num_startup_trials
        super().__init__(space, seed, enough=enough)

    def _sampler(self, seed: int) -> Any:
        sampler = self._optuna.samplers.GPSampler
        # Optuna 4.0 has no such argument, and does not warn.
        quiet = "warn_independent_sampling" in inspect.signature(sampler).parameters
        arguments = {"warn_independent_sampling": False} if quiet else {}
        return sampler(seed=seed, n_startup_trials=self.num_startup_trials, **arguments)


class CmaEsSampler(OptunaSampler):
    """CMA-ES (Hansen 2016, arXiv:1604.00772): for many trials of many numbers that depend on each other.

    Optuna's CmaEsSampler, with the package `cmaes`. Choices, and what they turn off, are drawn
    independently.
    """

    keeps_state = True

    def __init__(self, space: Space, seed: int, *, enough: int = 10) -> None:
        _require("cmaes")
        super().__init__(space, seed, enough=enough)

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


class Nsga2Sampler(OptunaSampler):
    """NSGA-II (Deb et al. 2002), an evolutionary algorithm; on one objective it ranks by the loss alone.

    Args:
        population_size: trials of a generation.
        enough: results that a level must have before it is the one.
        num_objectives: losses that are learned from, the first ones of those told.
    """

    supports_multiple_objectives = True

    keeps_state = True

    def __init__(
        self,
        space: Space,
        seed: int,
        *,
        population_size: int = 20,
        enough: int = 10,
        num_objectives: int = 1,
    ) -> None:
        require_integer("population_size", population_size, 2)
        self.population_size = population_size
        super().__init__(space, seed, enough=enough, num_objectives=num_objectives)

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population_size)


def _is_finite(losses: Losses) -> bool:
    return all(map(math.isfinite, losses))


def parameters_of(optuna: Any, axes: Axes, row: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Optuna's distributions and values of a row, by the number of the axis."""
    distributions: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for i, axis in enumerate(axes.axes):
        if math.isnan(row[i]):
            continue
        if axis.options:
            distributions[str(i)] = optuna.distributions.CategoricalDistribution(tuple(range(axis.options)))
            values[str(i)] = int(row[i])
        else:
            distributions[str(i)] = optuna.distributions.FloatDistribution(0.0, 1.0)
            values[str(i)] = float(row[i])
    return distributions, values


def import_optuna() -> Any:
    """Optuna, which takes half a second to import."""
    _require("optuna")
    import optuna

    return optuna


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(
            f"needs the package {package}, which is not installed",
            key="sampler",
            cure='Run: pip install "spark_hpo[optuna]"',
        )
