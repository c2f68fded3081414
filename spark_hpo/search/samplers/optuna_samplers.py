"""Optuna's samplers. Optuna is imported when one of them is built."""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.search.pareto import Losses, Penalty
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.acquisitions import ACQUISITIONS, acquisition_sampler
from spark_hpo.search.samplers.history import History, Result
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.search.space.axis import Array, Axes, Axis
from spark_hpo.trial import Params

if TYPE_CHECKING:
    from optuna.trial import Trial


@dataclass(frozen=True, slots=True)
class _Asked:
    """A proposal that has not been started."""

    trial_id: int
    trial: Trial
    row: Array


@dataclass(eq=False)
class OptunaSampler(Sampler, ABC):
    """Base of Optuna's samplers. They work on the axes of the space: numbers from 0 to 1, and choices.

    - **Level.** Losses are compared at one resource: the highest that `enough` trials have reported. When
      the level changes, a new Optuna study is created with the losses at the new level, and what Optuna's
      sampler had built up (the matrix of CMA-ES, the generations of NSGA-II) starts again.
    - **In flight** trials are running trials of the Optuna study. Its sampler decides how to use them.
    - **Resume.** A sampler that keeps state with Optuna's trials (CMA-ES, NSGA-II) is asked again, with the
      same seed, for each trial that was started, which restores the state.
    - **Limits.** Optuna gets penalised losses (`Penalty`), because not all of its samplers support
      constraints. The penalties depend on the range of the feasible losses. When it changes, a new Optuna
      study is created, too.
    - **Several objectives** become directions of the Optuna study in the samplers that support them
      (`Nsga2Sampler`, `OptunaTpeSampler`).
    """

    keeps_state: ClassVar[bool] = False  # whether Optuna's sampler stores state with its trials
    handles_limits = True

    space: Space
    seed: int
    _: KW_ONLY
    enough: int = 10  # results that a level needs before it is used
    num_objectives: int = 1  # number of losses to learn from

    def __post_init__(self) -> None:
        require_integer("enough", self.enough, 2)
        _require("optuna")
        import optuna  # takes half a second

        self._optuna: Any = optuna
        self._axes = Axes(self.space)
        self._history = History()
        self._rows: dict[int, Array] = {}
        self._level: int | None = None
        self._numbers: dict[int, int] = {}  # Optuna's number of each trial in the current study
        self._asked: _Asked | None = None  # by the last `ask`, if nothing was called since
        self._penalty = Penalty.among((), self.num_objectives)  # at the current level
        self._base: list[tuple[int, Result]] = []  # trials and their results when the level was chosen
        self._events: list[tuple[int, Result | None]] = []  # later ones; None for a start
        self._study = self._new_study()

    def ask(self, trial_id: int) -> Params:
        if self._asked is None or self._asked.trial_id != trial_id:
            self._forget_asked()
            self._asked = self._ask_optuna(trial_id)
        return self._axes.params(self._asked.row)

    def start(self, trial_id: int, params: Params) -> None:
        self._rows[trial_id] = self._axes.row(params)
        self._history.start(trial_id)
        self._start(trial_id)
        self._events.append((trial_id, None))

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        assert trial_id in self._rows, f"trial {trial_id} reported before it was started"
        self._forget_asked()
        losses = (loss, *others)[: self.num_objectives]
        self._history.tell(trial_id, resource, loss, losses[1:], violation)
        level = self._history.highest_level(self.enough)
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
        """Build Optuna's sampler with this seed."""

    def _new_study(self) -> Any:
        from optuna.storages import InMemoryStorage

        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        return self._optuna.create_study(
            storage=InMemoryStorage(), study_name="spark_hpo", directions=["minimize"] * self.num_objectives
        )

    def _ask_optuna(self, trial_id: int) -> _Asked:
        seed = int(np.random.SeedSequence((self.seed, trial_id)).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental features
            self._study.sampler = self._sampler(seed)
            trial = self._study.ask()

            def suggest(number: int, axis: Axis) -> float:
                if axis.options:
                    return float(trial.suggest_categorical(str(number), list(range(axis.options))))
                return float(trial.suggest_float(str(number), 0.0, 1.0))

            return _Asked(trial_id, trial, self._axes.build_row(suggest))

    def _forget_asked(self) -> None:
        """Discard a proposal that was not started."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if self.keeps_state:
            self._rebuild()
        else:
            self._study.tell(asked.trial, state=self._optuna.trial.TrialState.FAIL)

    def _rebuild(self) -> None:
        """Create a new study from the results when the level was chosen, and replay later events."""
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
        # Optuna must know the parameters that were started: rounded, or not its own proposal.
        distributions, values = parameters_of(self._optuna, self._axes, row)
        for name, distribution in distributions.items():
            internal = distribution.to_internal_repr(values[name])
            self._study._storage.set_trial_param(asked.trial._trial_id, name, internal, distribution)
        self._numbers[trial_id] = asked.trial.number

    def _finish(self, trial_id: int, result: Result) -> None:
        """Report a trial's losses at the level, or its failure."""
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
        """Add a trial that Optuna did not propose; a running trial if there are no losses."""
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
    """Optuna's multivariate TPE with a constant liar and grouped conditional parameters.

    With several objectives this is MOTPE (Ozaki et al. 2022).
    """

    supports_multiple_objectives = True

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


@dataclass(eq=False, kw_only=True)
class GaussianProcessSampler(OptunaSampler):
    """A Gaussian process, for up to a few hundred trials: Optuna's GPSampler with log expected improvement,
    or another acquisition function over a process of ours.

    A proposal takes a second or more, and its time grows with the cube of the number of trials. Conditional
    parameters are drawn independently. Needs torch.
    """

    num_startup_trials: int = 10  # that are drawn before the model is used
    acquisition: str = "ei"  # ei: expected improvement; ucb: confidence bound; pi: probability; thompson

    def __post_init__(self) -> None:
        require_integer("num_startup_trials", self.num_startup_trials, 1)
        if self.acquisition not in ACQUISITIONS:
            raise ConfigError(
                "is not a valid acquisition function",
                key="acquisition",
                value=self.acquisition,
                cure=suggestion(str(self.acquisition), ACQUISITIONS),
            )
        _require("torch")
        super().__post_init__()

    def _sampler(self, seed: int) -> Any:
        if self.acquisition != "ei":
            return acquisition_sampler(
                self._optuna, self.acquisition, seed=seed, num_startup_trials=self.num_startup_trials
            )
        sampler = self._optuna.samplers.GPSampler
        # Optuna 4.0 has no such argument, and does not warn.
        quiet = "warn_independent_sampling" in inspect.signature(sampler).parameters
        arguments = {"warn_independent_sampling": False} if quiet else {}
        return sampler(seed=seed, n_startup_trials=self.num_startup_trials, **arguments)


class CmaEsSampler(OptunaSampler):
    """CMA-ES (Hansen 2016, arXiv:1604.00772), for many trials with many interacting numbers.

    Optuna's CmaEsSampler, with the package `cmaes`. Choices and conditional parameters are drawn
    independently.
    """

    keeps_state = True

    def __post_init__(self) -> None:
        _require("cmaes")
        super().__post_init__()

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)


@dataclass(eq=False, kw_only=True)
class Nsga2Sampler(OptunaSampler):
    """NSGA-II (Deb et al. 2002), an evolutionary algorithm for several objectives."""

    supports_multiple_objectives = True
    keeps_state = True

    population_size: int = 20  # trials per generation

    def __post_init__(self) -> None:
        require_integer("population_size", self.population_size, 2)
        super().__post_init__()

    def _sampler(self, seed: int) -> Any:
        return self._optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population_size)


def _is_finite(losses: Losses) -> bool:
    return all(map(math.isfinite, losses))


def parameters_of(optuna: Any, axes: Axes, row: Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Optuna's distributions and values for a row, by the number of the axis."""
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


def _require(package: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise ConfigError(
            f"needs the package {package}, which is not installed",
            key="sampler",
            cure='Run: pip install "spark_hpo[optuna]"',
        )
