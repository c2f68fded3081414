"""Samplers, schedulers and spaces by name: what a study file says becomes an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.full import FullScheduler
from spark_hpo.search.grid import GridSampler
from spark_hpo.search.hyperband import HyperbandScheduler
from spark_hpo.search.hyperopt_space import from_hyperopt, is_hyperopt
from spark_hpo.search.random import RandomSampler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space
from spark_hpo.search.successive_halving import SuccessiveHalvingScheduler
from spark_hpo.search.tpe import TpeSampler
from spark_hpo.search.wording import nearest

SAMPLERS: Mapping[str, type[Sampler]] = {"random": RandomSampler, "grid": GridSampler, "tpe": TpeSampler}
SCHEDULERS: Mapping[str, type[Scheduler]] = {
    "full": FullScheduler,
    "successive_halving": SuccessiveHalvingScheduler,
    "hyperband": HyperbandScheduler,
}


def build_space(space: object, place: str = "search.space") -> Space:
    """A Space from whatever a user may give: a mapping as in YAML, an `hp.*` expression, or a Space.

    Raises:
        SpaceError: it makes no sense as any of these.
    """
    if isinstance(space, Space):
        return space
    return from_hyperopt(space, place) if is_hyperopt(space) else Space.from_config(space, place)


def build_sampler(name: str, space: Space, seed: int, *, place: str = "search", **settings: Any) -> Sampler:
    """The sampler of that name.

    Args:
        name: "random"; "grid" (resolution); "tpe" (num_startup_trials, num_candidates).
        space: what is tuned.
        seed: of the study, at least 0.
        place: where the settings were written, for messages.
        settings: those of the sampler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that does not fit this sampler, or a value out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{place}.seed is {seed!r}; it must be an integer of at least 0")
    sampler: Sampler = _build("sampler", SAMPLERS, name, place, {"space": space, "seed": seed}, settings)
    return sampler


def build_scheduler(name: str, *, place: str = "search", **settings: Any) -> Scheduler:
    """The scheduler of that name.

    Args:
        name: "full" (max_resource, max_trials); "successive_halving" (num_trials, max_resource,
            min_resource, reduction_factor, max_trials); "hyperband" (max_resource, min_resource,
            reduction_factor, max_trials, rounding).
        place: where the settings were written, for messages.
        settings: those of the scheduler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that is missing or does not fit this scheduler, or a value
            out of range.
    """
    scheduler: Scheduler = _build("scheduler", SCHEDULERS, name, place, {}, settings)
    return scheduler


def _build(
    noun: str,
    known: Mapping[str, Any],
    name: str,
    place: str,
    given: dict[str, Any],
    settings: dict[str, Any],
) -> Any:
    if name not in known:
        raise ConfigError(f"{place}.{noun} is {name!r}; {nearest(name, known)}")
    signature = inspect.signature(known[name]).parameters
    names = [parameter for parameter in signature if parameter not in given]
    for setting in settings:
        if setting not in names:
            raise ConfigError(
                f"{place}.{setting} is set, but {noun} {name!r} does not take it; {nearest(setting, names)}"
            )
    for required in names:
        if signature[required].default is inspect.Parameter.empty and required not in settings:
            raise ConfigError(f"{place}.{required} is missing; {noun} {name!r} needs it")
    try:
        return known[name](**given, **settings)
    except SpaceError:
        raise  # it names its own place
    except ConfigError as exc:
        raise ConfigError(f"{place}.{exc}") from exc
