"""OptunaDefineByRunSampler: Optuna's samplers for objectives that define the space as they run."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_hpo.search.pareto import Losses
from spark_hpo.search.sampler import Sampler
from spark_hpo.trial import Params

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DISTRIBUTIONS, VALUES, INTERMEDIATE = "distributions", "values", "intermediate_values"
USER_ATTRS, SYSTEM_ATTRS, STATE = "user_attrs", "system_attrs", "state"
"""Names of the notes in which a trial records its Optuna trial: see `frozen_trial`."""


@dataclass(eq=False)
class OptunaDefineByRunSampler(Sampler):
    """Proposes a value for each parameter that an earlier trial has asked for.

    The space is not known before trials have run. A trial draws a parameter itself if there is no proposal
    for it, and drops the proposals that it does not ask for. `resolve_params` passes its real parameters, and
    Optuna's sampler learns from these alone.

    - **Running** trials are running trials for Optuna too, with their proposals as parameters.
    - **When a study is resumed**, Optuna's sampler proposes for each started trial again, with the same seed,
      which restores the state that samplers such as CMA-ES and NSGA-II keep in their trials.
    """

    is_define_by_run = True

    sampler: BaseSampler  # its random generators are reseeded for each proposal
    seed: int
    directions: Sequence[str] = ("minimize",)  # or "maximize", for each objective
    enqueue: Sequence[Params] = ()  # of trials that run before all others; a trial may have only some of them

    def __post_init__(self) -> None:
        self._study = quiet_study(directions=self.directions)
        self._distributions: dict[str, Any] = {}  # by name, of all parameters so far
        self._asked: tuple[int, Trial] | None = None  # proposed, but not started
        self._running: dict[int, Trial] = {}
        self._resolved: dict[int, tuple[Params, Mapping[str, Any]]] = {}

    def ask(self, trial_id: int) -> Params:
        if self._asked is None or self._asked[0] != trial_id:
            self._forget_asked()
            self._asked = trial_id, self._ask_optuna(trial_id)
        given = self.enqueue[trial_id] if trial_id < len(self.enqueue) else {}
        return {**self._asked[1].params, **given}

    def start(self, trial_id: int, params: Params) -> None:
        self.ask(trial_id)
        assert self._asked is not None
        self._running[trial_id], self._asked = self._asked[1], None

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        self._resolved[trial_id] = params, notes

    def tell(
        self, trial_id: int, *, resource: int, loss: float, others: Losses = (), violation: float = 0.0
    ) -> None:
        self._forget_asked()
        trial = self._running.pop(trial_id)
        system_attrs = self._study._storage.get_trial(trial._trial_id).system_attrs
        states = _trial_states()
        self._study.tell(trial, state=states.FAIL)  # it has the proposals, not the real parameters
        params, notes = self._resolved.pop(trial_id, ({}, {}))
        if not notes or notes[STATE] == "FAIL":
            return
        ended = frozen_trial(params, notes)
        ended.system_attrs = {**system_attrs, **ended.system_attrs}
        self._study.add_trial(ended)
        self._distributions.update(ended.distributions)

    def _ask_optuna(self, trial_id: int) -> Trial:
        seed = int(np.random.SeedSequence((self.seed, trial_id)).generate_state(1)[0])
        self._study.sampler = reseeded(self.sampler, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about Optuna's experimental features
            return self._study.ask(fixed_distributions=self._distributions)

    def _forget_asked(self) -> None:
        if self._asked is not None:
            self._study.tell(self._asked[1], state=_trial_states().FAIL)
            self._asked = None


def notes_of(trial: FrozenTrial, *, state: str, values: Sequence[float] | None) -> dict[str, Any]:
    """Return everything but the parameters of an Optuna trial, as JSON values by name."""
    from optuna.distributions import distribution_to_json

    return {
        STATE: state,
        VALUES: None if values is None else list(values),
        DISTRIBUTIONS: {name: distribution_to_json(d) for name, d in trial.distributions.items()},
        INTERMEDIATE: [
            [step, value if math.isfinite(value) else str(value)]
            for step, value in sorted(trial.intermediate_values.items())
        ],
        USER_ATTRS: {name: _as_json(value) for name, value in trial.user_attrs.items()},
        SYSTEM_ATTRS: {name: _as_json(value) for name, value in trial.system_attrs.items()},
    }


def frozen_trial(params: Params, notes: Mapping[str, Any], **times: Any) -> FrozenTrial:
    """Return an Optuna trial that has ended, from its parameters and its notes."""
    from optuna.distributions import json_to_distribution
    from optuna.trial import create_trial

    distributions = {name: json_to_distribution(text) for name, text in notes[DISTRIBUTIONS].items()}
    intermediate = {int(step): float(value) for step, value in notes[INTERMEDIATE]}
    values = notes[VALUES]
    if notes[STATE] == "PRUNED" and intermediate:
        values = [intermediate[max(intermediate)]]  # as Optuna itself does
    trial = create_trial(
        state=_trial_states()[notes[STATE]],
        values=values,
        params={name: params[name] for name in distributions},
        distributions=distributions,
        intermediate_values=intermediate,
        user_attrs=dict(notes[USER_ATTRS]),
        system_attrs=dict(notes[SYSTEM_ATTRS]),
    )
    for name, time in times.items():
        setattr(trial, name, time)
    return trial


def quiet_study(**arguments: Any) -> Study:
    """Create an in-memory Optuna study without a log line."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(storage=optuna.storages.InMemoryStorage(), **arguments)
    finally:
        optuna.logging.set_verbosity(before)


def reseeded(sampler: BaseSampler, seed: int) -> BaseSampler:
    """Return a copy of an Optuna sampler with all of its random generators reseeded."""
    from optuna.samplers._lazy_random_state import LazyRandomState

    copied = copy.deepcopy(sampler)
    for number, generator in enumerate(_generators(copied, LazyRandomState, set())):
        generator.rng.seed(np.random.SeedSequence((seed, number)).generate_state(4))
    return copied


def _generators(value: Any, kind: type, seen: set[int]) -> Iterator[Any]:
    """Yield all objects of a type that an Optuna object refers to, directly or indirectly."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, kind):
        yield value
    elif type(value).__module__.startswith("optuna."):
        for _, attribute in sorted(getattr(value, "__dict__", {}).items()):
            yield from _generators(attribute, kind, seen)


def _trial_states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _as_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value
