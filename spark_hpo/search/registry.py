"""Samplers, schedulers, explorers and spaces by name: what a study file says becomes an object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spark_hpo.errors import ConfigError, SpaceError, cause
from spark_hpo.plugins import load_plugin, plugin_names
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.bandit import BanditExplorer
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.evolution import DifferentialEvolutionSampler, ParticleSwarmSampler
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.optuna_samplers import (
    CmaEsSampler,
    GaussianProcessSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
)
from spark_hpo.search.samplers.random import RandomSampler
from spark_hpo.search.samplers.sobol import SobolSampler
from spark_hpo.search.samplers.tpe import TpeSampler
from spark_hpo.search.samplers.transfer import Knowledge
from spark_hpo.search.samplers.wrappers import (
    ConstrainedSampler,
    EnqueuedSampler,
    WrappedSampler,
    checked_configurations,
)
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.schedulers.adaptive_asha import AdaptiveAshaScheduler
from spark_hpo.search.schedulers.asha import AshaScheduler, AsyncHyperbandScheduler
from spark_hpo.search.schedulers.full import FullScheduler
from spark_hpo.search.schedulers.hyperband import HyperbandScheduler
from spark_hpo.search.schedulers.median_stopping import MedianStoppingScheduler
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.schedulers.successive_halving import SuccessiveHalvingScheduler
from spark_hpo.search.space import Space
from spark_hpo.search.space.hyperopt_space import from_hyperopt, is_hyperopt
from spark_hpo.suggest import suggestion

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
_BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "sampler": SAMPLERS,
    "scheduler": SCHEDULERS,
    "explorer": EXPLORERS,
}
# What somebody else's has to have, too: the methods of the seam.
_SEAMS = {
    "sampler": ("ask", "start", "tell"),
    "scheduler": ("next_slot", "report", "close", "is_done"),
    "explorer": ("explore", "start", "tell"),
}


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
    enqueue: Sequence[object] = (),
    knowledge: Knowledge | None = None,
    num_objectives: int = 1,
    **settings: Any,
) -> Sampler:
    """The sampler of that name.

    Args:
        name: one of `SAMPLERS`, or a plugin's; docs/methods.md has them with their settings.
        space: what is tuned. A proposal that breaks one of its constraints is drawn again.
        seed: of the study, at least 0.
        place: where the settings were written, for messages.
        enqueue: configurations that run first, in this order.
        knowledge: of earlier studies. Its best configurations run after those in `enqueue`; samplers that
            implement `learn_from` use the rest.
        num_objectives: losses that a trial has, at least 1.
        settings: those of the sampler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that does not fit this sampler, a value out of range, or a
            sampler that learns from one objective where there are several.
        SpaceError: a configuration in `enqueue` does not fit the space.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"{place}.seed is {seed!r}; it must be an integer of at least 0")
    given = {"space": space, "seed": seed, "num_objectives": num_objectives}
    make = _find("sampler", name, place)
    sampler: Sampler = _build("sampler", make, name, place, given, settings)
    if not isinstance(sampler, Sampler):  # a plugin that implements the methods alone
        sampler = WrappedSampler(sampler)
        sampler.supports_multiple_objectives |= "num_objectives" in inspect.signature(make).parameters
    if num_objectives > 1 and not sampler.supports_multiple_objectives:
        able = ", ".join(able for able in SAMPLERS if SAMPLERS[able].supports_multiple_objectives)
        raise ConfigError(
            f"{place}.sampler is {name!r}, which learns from one objective, and the study has "
            f"{num_objectives}; use one of {able}"
        )
    queue = checked_configurations(space, enqueue, f"{place}.first")
    if knowledge is not None:
        queue += [params for params in knowledge.first if params not in queue]
        sampler.learn_from(knowledge)
    if space.constraints and not sampler.handles_constraints:
        sampler = ConstrainedSampler(sampler, space, seed)
    return EnqueuedSampler(sampler, queue) if queue else sampler


def build_scheduler(name: str, *, place: str = "search", **settings: Any) -> Scheduler:
    """The scheduler of that name.

    Args:
        name: one of `SCHEDULERS`, or a plugin's; docs/methods.md has them with their settings.
        place: where the settings were written, for messages.
        settings: those of the scheduler, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that is missing or does not fit this scheduler, or a value
            out of range.
    """
    make = _find("scheduler", name, place)
    scheduler: Scheduler = _build("scheduler", make, name, place, {}, settings)
    return scheduler


def build_explorer(name: str, space: Space, seed: int, *, place: str = "search", **settings: Any) -> Explorer:
    """The explorer of that name.

    Args:
        name: one of `EXPLORERS`, or a plugin's; docs/methods.md has them with their settings.
        space: what is tuned.
        seed: of the study, at least 0.
        place: where the settings were written, for messages.
        settings: those of the explorer, by the names of its constructor.

    Raises:
        ConfigError: an unknown name, a setting that does not fit this explorer, or a value out of range.
    """
    make = _find("explorer", name, place)
    given = {"space": space, "seed": seed}
    explorer: Explorer = _build("explorer", make, name, f"{place}.explore", given, settings)
    return explorer


def names_of(noun: str) -> list[str]:
    """What may be named as a sampler, a scheduler or an explorer: our own, then what packages bring."""
    return list(dict.fromkeys([*_BUILT_IN[noun], *plugin_names(noun)]))


def _find(noun: str, name: str, place: str) -> Callable[..., Any]:
    """What makes the part of that name."""
    if name in _BUILT_IN[noun]:
        return _BUILT_IN[noun][name]  # type: ignore[no-any-return]
    try:
        make: Callable[..., Any] | None = load_plugin(noun, name)
    except ConfigError as exc:
        raise ConfigError(f"{place}.{noun} is {exc}") from exc
    if make is None:
        raise ConfigError(f"{place}.{noun} is {name!r}. {suggestion(name, names_of(noun))}")
    return make


def _build(
    noun: str,
    make: Callable[..., Any],
    name: str,
    place: str,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Any:
    """What has that name, from what the caller gives, as far as it takes it, and the user's settings."""
    signature = inspect.signature(make).parameters
    names = [parameter for parameter in signature if parameter not in given]
    for setting in settings:
        if setting not in names:
            raise ConfigError(
                f"{place}.{setting} is set, but {noun} {name!r} does not take it. "
                f"{suggestion(setting, names)}"
            )
    for required in names:
        if signature[required].default is inspect.Parameter.empty and required not in settings:
            raise ConfigError(f"{place}.{required} is missing; {noun} {name!r} needs it")
    try:
        part = make(**{key: given[key] for key in given if key in signature}, **settings)
    except SpaceError:
        raise  # it names its own place
    except ConfigError as exc:
        raise ConfigError(f"{place}.{exc}") from exc
    except Exception as exc:  # what somebody else's package raises is not known
        if name in _BUILT_IN[noun]:
            raise  # a mistake of ours
        raise ConfigError(
            f"{place}.{noun} is {name!r}, and it cannot be made ({type(exc).__name__}: {exc}): look at its "
            "settings, or at the package that brings it"
        ) from cause(exc)
    missing = [method for method in _SEAMS[noun] if not callable(getattr(part, method, None))]
    if missing:
        raise ConfigError(
            f"{place}.{noun} is {name!r}, and {type(part).__name__} has no {' and no '.join(missing)}: "
            f"a {noun} must have {', '.join(_SEAMS[noun])}"
        )
    return part
