"""Samplers, schedulers, explorers and spaces by name: what a study file says becomes an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from spark_hpo.errors import ConfigError, SpaceError
from spark_hpo.search.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.asha import AshaScheduler, AsyncHyperbandScheduler
from spark_hpo.search.bandit import BanditExplorer
from spark_hpo.search.enqueued import ConstrainedSampler, EnqueuedSampler, checked_configurations
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.full import FullScheduler
from spark_hpo.search.grid import GridSampler
from spark_hpo.search.hyperband import HyperbandScheduler
from spark_hpo.search.hyperopt_space import from_hyperopt, is_hyperopt
from spark_hpo.search.median_stopping import MedianStoppingScheduler
from spark_hpo.search.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.optuna_adapter import (
    CmaEsSampler,
    GaussianProcessSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
)
from spark_hpo.search.perturbation import PerturbationExplorer
from spark_hpo.search.population import DifferentialEvolutionSampler, ParticleSwarmSampler
from spark_hpo.search.population_based import PopulationBasedScheduler
from spark_hpo.search.random import RandomSampler
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.sobol import SobolSampler
from spark_hpo.search.space import Space
from spark_hpo.search.successive_halving import SuccessiveHalvingScheduler
from spark_hpo.search.tpe import TpeSampler
from spark_hpo.search.transfer import Knowledge
from spark_hpo.search.wording import nearest

SAMPLERS: Mapping[str, type[Sampler]] = {
    "random": RandomSampler,
    "grid": GridSampler,
    "tpe": MultivariateTpeSampler,
    "multivariate_tpe": MultivariateTpeSampler,  # the same, by the name that tells it from hyperopt's
    "hyperopt_tpe": TpeSampler,
    "sobol": SobolSampler,
    "de": DifferentialEvolutionSampler,
    "pso": ParticleSwarmSampler,
    "gp": GaussianProcessSampler,
    "cmaes": CmaEsSampler,
    "nsga2": Nsga2Sampler,
    "optuna_tpe": OptunaTpeSampler,
}
SCHEDULERS: Mapping[str, type[Scheduler]] = {
    "full": FullScheduler,
    "successive_halving": SuccessiveHalvingScheduler,
    "hyperband": HyperbandScheduler,
    "asha": AshaScheduler,
    "adaptive_asha": AdaptiveAshaScheduler,
    "async_hyperband": AsyncHyperbandScheduler,
    "median_stopping": MedianStoppingScheduler,
    "population_based": PopulationBasedScheduler,
}
EXPLORERS: Mapping[str, type[Explorer]] = {
    "perturbation": PerturbationExplorer,
    "pb2": BanditExplorer,
}


# These learn from all objectives of a study, or from none. What learns from one would search for that alone.
_OF_SEVERAL_OBJECTIVES = (
    MultivariateTpeSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
    RandomSampler,
    SobolSampler,
    GridSampler,
)
# These look at the constraints of a space themselves.
_MINDFUL = (RandomSampler, GridSampler, MultivariateTpeSampler)


def build_space(space: object, place: str = "search.space", *, constraints: Sequence[object] = ()) -> Space:
    """A Space from whatever a user may give: a mapping as in YAML, an `hp.*` expression, or a Space.

    Args:
        constraints: between parameters, as text: `hidden_2 <= hidden_1`.

    Raises:
        SpaceError: it makes no sense as any of these.
    """
    if not isinstance(space, Space):
        space = from_hyperopt(space, place) if is_hyperopt(space) else Space.from_config(space, place)
    return space.constrained(constraints, "constraints") if constraints else space


def build_sampler(
    name: str,
    space: Space,
    seed: int,
    *,
    place: str = "search",
    first: Sequence[object] = (),
    knowledge: Knowledge | None = None,
    num_objectives: int = 1,
    **settings: Any,
) -> Sampler:
    """The sampler of that name.

    Args:
        name: one of `SAMPLERS`; docs/methods.md says which one when, and what its settings do.
        space: what is tuned. A proposal that breaks one of its constraints is drawn again.
        seed: of the study, at least 0.
        place: where the settings were written, for messages.
        first: configurations that run before the sampler is asked, in their order.
        knowledge: of earlier studies. Its best configurations run after `first`; the rest of it helps
            those samplers that can make use of it (`tpe`).
        num_objectives: losses that a trial has, at least 1.
        settings: those of the sampler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that does not fit this sampler, a value out of range, or a
            sampler that learns from one objective where there are several.
        SpaceError: a configuration in `first` is not one of the space.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{place}.seed is {seed!r}; it must be an integer of at least 0")
    given = {"space": space, "seed": seed, "num_objectives": num_objectives}
    sampler: Sampler = _build("sampler", SAMPLERS, name, place, given, settings)
    if num_objectives > 1 and not isinstance(sampler, _OF_SEVERAL_OBJECTIVES):
        able = ", ".join(able for able in SAMPLERS if SAMPLERS[able] in _OF_SEVERAL_OBJECTIVES)
        raise ConfigError(
            f"{place}.sampler is {name!r}, which learns from one objective, and the study has "
            f"{num_objectives}; use one of {able}"
        )
    queue = checked_configurations(space, first, f"{place}.first")
    if knowledge is not None:
        queue += [params for params in knowledge.first if params not in queue]
        if isinstance(sampler, MultivariateTpeSampler):
            sampler.learn_from(knowledge)
    if space.constraints and not isinstance(sampler, _MINDFUL):
        sampler = ConstrainedSampler(sampler, space, seed)
    return EnqueuedSampler(sampler, queue) if queue else sampler


def build_scheduler(name: str, *, place: str = "search", **settings: Any) -> Scheduler:
    """The scheduler of that name.

    Args:
        name: one of `SCHEDULERS`; docs/methods.md says which one when, and what its settings do.
        place: where the settings were written, for messages.
        settings: those of the scheduler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that is missing or does not fit this scheduler, or a value
            out of range.
    """
    scheduler: Scheduler = _build("scheduler", SCHEDULERS, name, place, {}, settings)
    return scheduler


def build_explorer(name: str, space: Space, seed: int, *, place: str = "search", **settings: Any) -> Explorer:
    """The explorer of that name.

    Args:
        name: one of `EXPLORERS`; docs/methods.md says which one when, and what its settings do.
        space: what is tuned.
        seed: of the study, at least 0.
        place: where the settings were written, for messages.
        settings: those of the explorer, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that does not fit this explorer, or a value out of range.
    """
    if name not in EXPLORERS:
        raise ConfigError(f"{place}.explorer is {name!r}; {nearest(name, EXPLORERS)}")
    given = {"space": space, "seed": seed}
    explorer: Explorer = _build("explorer", EXPLORERS, name, f"{place}.explore", given, settings)
    return explorer


def _build(
    noun: str,
    known: Mapping[str, Any],
    name: str,
    place: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Any:
    """What has that name, from what the caller gives, as far as it takes it, and the user's settings."""
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
        return known[name](**{key: given[key] for key in given if key in signature}, **settings)
    except SpaceError:
        raise  # it names its own place
    except ConfigError as exc:
        raise ConfigError(f"{place}.{exc}") from exc
