"""Helpers that call `ask` and `tell` of a sampler directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from spark_hpo.search.sampler import Sampler
from spark_hpo.trial import Params

AnySampler = TypeVar("AnySampler", bound=Sampler)


def best_of(sampler: Sampler, loss: Callable[[Params], float], num_trials: int) -> float:
    """Return the smallest loss of a search of sequential trials."""
    losses = []
    for trial_id in range(num_trials):
        params = sampler.ask(trial_id)
        sampler.start(trial_id, params)
        losses.append(loss(params))
        sampler.tell(trial_id, resource=1, loss=losses[-1])
    return min(losses)


def tell(sampler: AnySampler, points: Mapping[int, Sequence[tuple[float, float]]]) -> AnySampler:
    """Tell a sampler results, as (x, loss) by resource, and return it."""
    trial_id = 0
    for resource, told in points.items():
        for x, loss in told:
            sampler.start(trial_id, {"x": x})
            sampler.tell(trial_id, resource=resource, loss=loss)
            trial_id += 1
    return sampler


def proposals(sampler: Sampler, num: int = 60) -> list[float]:
    """Return the x of further proposals."""
    return [sampler.ask(1000 + i)["x"] for i in range(num)]
