"""Optuna's samplers for objectives that say what they want to know as they run: define by run."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_hpo.search.sampler import Sampler
from spark_hpo.trial import Params

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

DISTRIBUTIONS, VALUES, INTERMEDIATE = "distributions", "values", "intermediate_values"
USER_ATTRS, SYSTEM_ATTRS, STATE = "user_attrs", "system_attrs", "state"
"""What a trial has noted: see `frozen_trial`."""


class SuggestingSampler(Sampler):
    """Proposes a value for each parameter that an earlier trial has asked for.

    The space is not known before trials have run. What a trial asks for beyond the proposal, it draws
    itself; what it does not ask for, it leaves out. `resolve_params` brings what it has had, and Optuna's
    sampler learns from that alone.

    - **In flight** trials are running ones for Optuna, with what was proposed to them.
    - **Resumed**, the sampler is asked again for each trial that was started, with the same seed: what it
      keeps with its trials (CMA-ES, NSGA-II) is there again.

    Args:
        sampler: Optuna's. Its own generators are not used: each proposal has a seed of its own.
        seed: of the study.
        directions: "minimize" or "maximize", for each objective.
        first: parameters of trials that run before any other, as far as they are given.
    """

    is_define_by_run = True

    def __init__(
        self,
        sampler: BaseSampler,
        seed: int,
        *,
        directions: Sequence[str] = ("minimize",),
        first: Sequence[Params] = (),
    ) -> None:
        self._sampler = sampler
        self.seed = seed
        self._first = tuple(first)
        self._study = quiet_study(directions=directions)
        self._seen: dict[str, Any] = {}  # distributions by name
        self._asked: tuple[int, Trial] | None = None  # not started yet
        self._running: dict[int, Trial] = {}
        self._found: dict[int, tuple[Params, Mapping[str, Any]]] = {}

    def ask(self, trial_id: int) -> Params:
        """Propose values, as far as it is known what will be asked for. Never changes what was learned."""
        if self._asked is None or self._asked[0] != trial_id:
            self._forget_asked()
            self._asked = trial_id, self._ask_optuna(trial_id)
        given = self._first[trial_id] if trial_id < len(self._first) else {}
        return {**self._asked[1].params, **given}

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs, with this proposal."""
        self.ask(trial_id)
        assert self._asked is not None
        self._running[trial_id], self._asked = self._asked[1], None

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        """What a trial has asked for, and what it got."""
        self._found[trial_id] = params, notes

    def tell(
        self,
        trial_id: int,
        *,
        resource: int,
        loss: float,
        others: tuple[float, ...] = (),
        violation: float = 0.0,
    ) -> None:
        """A trial has ended: well, if `resolve_params` says so."""
        self._forget_asked()
        trial = self._running.pop(trial_id)
        system_attrs = self._study._storage.get_trial(trial._trial_id).system_attrs
        states = _trial_states()
        self._study.tell(trial, state=states.FAIL)  # with all that was proposed: it was never like that
        params, notes = self._found.pop(trial_id, ({}, {}))
        if not notes or notes[STATE] == "FAIL":
            return
        ended = frozen_trial(params, notes)
        ended.system_attrs = {**system_attrs, **ended.system_attrs}
        self._study.add_trial(ended)
        self._seen.update(ended.distributions)

    def _ask_optuna(self, trial_id: int) -> Trial:
        seed = int(np.random.SeedSequence((self.seed, trial_id)).generate_state(1)[0])
        self._study.sampler = reseeded(self._sampler, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's, of features that it calls experimental
            return self._study.ask(fixed_distributions=self._seen)

    def _forget_asked(self) -> None:
        if self._asked is not None:
            self._study.tell(self._asked[1], state=_trial_states().FAIL)
            self._asked = None


def notes_of(trial: FrozenTrial, *, state: str, values: Sequence[float] | None) -> dict[str, Any]:
    """What a trial of Optuna's is but for its parameters, as JSON."""
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
    """A trial of Optuna's from its parameters and its notes."""
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
    """A study of Optuna's in memory; nothing is said of it."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(storage=optuna.storages.InMemoryStorage(), **arguments)
    finally:
        optuna.logging.set_verbosity(before)


def reseeded(sampler: BaseSampler, seed: int) -> BaseSampler:
    """A copy of a sampler of Optuna's, all its generators seeded."""
    from optuna.samplers._lazy_random_state import LazyRandomState

    twin = copy.deepcopy(sampler)
    for number, generator in enumerate(_generators(twin, LazyRandomState, set())):
        generator.rng.seed(np.random.SeedSequence((seed, number)).generate_state(4))
    return twin


def _generators(thing: Any, kind: type, seen: set[int]) -> Iterator[Any]:
    """All of one kind that hang on an object of Optuna's."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, kind):
        yield thing
    elif type(thing).__module__.startswith("optuna."):
        for _, value in sorted(getattr(thing, "__dict__", {}).items()):
            yield from _generators(value, kind, seen)


def _trial_states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _as_json(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value
