"""Samplers around a sampler: configurations that run first, and proposals that a constraint refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spark_hpo.errors import SpaceError
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.space import Space
from spark_hpo.trial import Params

_TRIES = 20


class EnqueuedSampler:
    """Runs given configurations first, in their order: "start from what we run today".

    Trial i of the study gets configuration i; the other sampler proposes from then on, and has learned of
    these like of any other trial.

    Args:
        sampler: proposes all that follows.
        first: configurations, complete, in the space's own types; see `Space.validate`.
    """

    def __init__(self, sampler: Sampler, first: Sequence[Params]) -> None:
        self.sampler = sampler
        self.first = tuple(first)

    @property
    def size(self) -> int | None:
        """How many trials there can be; None: no limit."""
        size: int | None = getattr(self.sampler, "size", None)
        return size

    def ask(self, trial_id: int) -> Params:
        """Propose parameters. Never changes what the sampler has learned."""
        return self.first[trial_id] if trial_id < len(self.first) else self.sampler.ask(trial_id)

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs with these parameters."""
        self.sampler.start(trial_id, params)

    def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
        """Learn the loss of a trial at a resource."""
        self.sampler.tell(trial_id, resource=resource, loss=loss, others=others)


class ConstrainedSampler:
    """Draws a proposal again that breaks a constraint of the space, so that it is never run.

    A refused proposal is crossed with a valid draw of the space, each parameter from the one or the other,
    until a child is valid; after 20 of them, or where other parameters are active, the draw itself is
    taken. For samplers that do not look at the constraints themselves.
    """

    def __init__(self, sampler: Sampler, space: Space, seed: int) -> None:
        self.sampler = sampler
        self.space = space
        self.seed = seed

    def ask(self, trial_id: int) -> Params:
        """Propose parameters. Never changes what the sampler has learned.

        Raises:
            SpaceError: no draw of the space meets the constraints.
        """
        proposal = self.sampler.ask(trial_id)
        if self.space.allows(proposal):
            return proposal
        rng = np.random.default_rng((self.seed, trial_id, 1))
        valid = self.space.sample(rng)
        refused, goal = self.space.flatten(proposal), self.space.flatten(valid)
        order = [key for key in goal if key in refused and refused[key] != goal[key]]
        for _ in range(_TRIES if goal.keys() == refused.keys() else 0):
            # Some parameters of the one, some of the other: all combinations fit the space.
            taken = {key for key in order if rng.random() < 0.5}
            mixed = self.space.unflatten({k: refused[k] if k in taken else v for k, v in goal.items()})
            if self.space.allows(mixed):
                return mixed
        return valid

    def start(self, trial_id: int, params: Params) -> None:
        """The trial runs with these parameters."""
        self.sampler.start(trial_id, params)

    def tell(self, trial_id: int, *, resource: int, loss: float, others: tuple[float, ...] = ()) -> None:
        """Learn the loss of a trial at a resource."""
        self.sampler.tell(trial_id, resource=resource, loss=loss, others=others)


def checked_configurations(space: Space, configurations: object, place: str) -> list[Params]:
    """Configurations that somebody wrote, in the space's own types.

    Raises:
        SpaceError: one does not fit the space, or breaks a constraint.
    """
    if not isinstance(configurations, list | tuple):
        raise SpaceError(f"{place} is {configurations!r}; it must be a list of configurations")
    checked = []
    for i, configuration in enumerate(configurations):
        params = space.validate(configuration, f"{place}[{i}]")
        if broken := space.broken_constraint(params):
            raise SpaceError(f"{place}[{i}] breaks the constraint {broken!r}")
        checked.append(params)
    return checked
