"""Samplers that wrap another one: enqueued configurations, constraints, plugins without a base class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_hpo.errors import SpaceError, within
from spark_hpo.search.sampler import Outcome, Sampler
from spark_hpo.search.samplers.transfer import Knowledge
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

_TRIES = 20


@dataclass(eq=False)
class WrappedSampler(Sampler):
    """Delegates to a sampler and declares the same; what that sampler does not declare has its default."""

    sampler: Sampler  # any object with `ask`, `start` and `tell`

    def __post_init__(self) -> None:
        for name in (
            "supports_multiple_objectives",
            "handles_constraints",
            "handles_limits",
            "is_define_by_run",
            "accepts_foreign",
            "size",
        ):
            setattr(self, name, getattr(self.sampler, name, getattr(Sampler, name)))

    def ask(self, trial_id: int) -> Params:
        return self.sampler.ask(trial_id)

    def start(self, trial_id: int, params: Params) -> None:
        self.sampler.start(trial_id, params)

    def tell(self, trial_id: int, **result: Any) -> None:
        self.sampler.tell(trial_id, **result)

    def note(self, trial_id: int, outcome: Outcome) -> None:
        if hasattr(self.sampler, "note"):
            self.sampler.note(trial_id, outcome)

    def expected(self, trial_ids: Sequence[int]) -> Sequence[float] | None:
        expected = getattr(self.sampler, "expected", None)  # a plugin may have none
        return None if expected is None else expected(trial_ids)

    def learn_from(self, knowledge: Knowledge) -> None:
        if hasattr(self.sampler, "learn_from"):
            self.sampler.learn_from(knowledge)

    def resolve_params(self, trial_id: int, params: Params, notes: Mapping[str, Any]) -> None:
        self.sampler.resolve_params(trial_id, params, notes)


@dataclass(eq=False)
class EnqueuedSampler(WrappedSampler):
    """Proposes given configurations for the first trials, in their order: "start from what we run today".

    Trial i of the study gets configuration i. The wrapped sampler proposes all later ones, and learns from
    the enqueued ones like from any other trial.
    """

    enqueued: Sequence[Params]  # complete configurations in the space's own types; see `Space.validate`

    def ask(self, trial_id: int) -> Params:
        return self.enqueued[trial_id] if trial_id < len(self.enqueued) else self.sampler.ask(trial_id)


@dataclass(eq=False)
class ConstrainedSampler(WrappedSampler):
    """Repairs proposals that violate a constraint of the space, for samplers that ignore constraints.

    An invalid proposal is crossed with a valid draw from the space, each parameter taken from one or the
    other, until a child is valid. After 20 invalid children, or if the two have different active parameters,
    the draw itself is proposed.
    """

    space: Space
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.handles_constraints = True

    def ask(self, trial_id: int) -> Params:
        proposal = self.sampler.ask(trial_id)
        if self.space.allows(proposal):
            return proposal
        rng = np.random.default_rng((self.seed, trial_id, 1))
        valid = self.space.sample(rng)
        invalid, goal = self.space.flatten(proposal), self.space.flatten(valid)
        order = [key for key in goal if key in invalid and invalid[key] != goal[key]]
        for _ in range(_TRIES if goal.keys() == invalid.keys() else 0):
            # The same parameters are active in both, so any mix of them fits the space.
            taken = {key for key in order if rng.random() < 0.5}
            mixed = self.space.unflatten({k: invalid[k] if k in taken else v for k, v in goal.items()})
            if self.space.allows(mixed):
                return mixed
        return valid


def checked_configurations(space: Space, configurations: object) -> list[Params]:
    """Return user-written configurations in the space's own types.

    Raises:
        SpaceError: a configuration does not fit the space or violates a constraint. The key is its index.
    """
    if not isinstance(configurations, list | tuple):
        raise SpaceError("must be a list of configurations", value=configurations)
    checked = []
    for i, configuration in enumerate(configurations):
        with within(f"[{i}]"):
            params = space.validate(configuration)
            if broken := space.broken_constraint(params):
                raise SpaceError(f"violates the constraint {broken!r}", value=configuration)
            checked.append(params)
    return checked
