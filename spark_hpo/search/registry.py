"""Builds samplers, schedulers, explorers and spaces from their names and settings in a study file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spark_hpo.errors import ConfigError, cause, suggestion, within
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.explorers.bandit import BanditExplorer
from spark_hpo.search.explorers.perturbation import PerturbationExplorer
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.samplers.evolution import (
    DifferentialEvolutionSampler,
    GeneticSampler,
    ParticleSwarmSampler,
)
from spark_hpo.search.samplers.grid import GridSampler
from spark_hpo.search.samplers.multifidelity_gp import MultifidelityGpSampler
from spark_hpo.search.samplers.multivariate_tpe import MultivariateTpeSampler
from spark_hpo.search.samplers.optuna_samplers import (
    CmaEsSampler,
    GaussianProcessSampler,
    Nsga2Sampler,
    OptunaTpeSampler,
)
from spark_hpo.search.samplers.random import RandomSampler, SobolSampler
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
from spark_hpo.search.schedulers.guided_asha import GuidedAshaScheduler
from spark_hpo.search.schedulers.median_stopping import MedianStoppingScheduler
from spark_hpo.search.schedulers.pioneer_asha import PioneerAshaScheduler
from spark_hpo.search.schedulers.population_based import PopulationBasedScheduler
from spark_hpo.search.schedulers.synchronous import (
    FullScheduler,
    HyperbandScheduler,
    SuccessiveHalvingScheduler,
)
from spark_hpo.search.settings import require_integer
from spark_hpo.search.space import Space
from spark_hpo.search.space.hyperopt_space import from_hyperopt, is_hyperopt
from spark_hpo.user_code.plugins import load_plugin, plugin_names

SAMPLERS: Mapping[str, type[Sampler]] = {
    "random": RandomSampler,
    "grid": GridSampler,
    "tpe": MultivariateTpeSampler,
    "multivariate_tpe": MultivariateTpeSampler,  # an alias, in contrast to hyperopt's
    "hyperopt_tpe": TpeSampler,
    "sobol": SobolSampler,
    "de": DifferentialEvolutionSampler,
    "pso": ParticleSwarmSampler,
    "genetic": GeneticSampler,
    "multifidelity_gp": MultifidelityGpSampler,
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
    "guided_asha": GuidedAshaScheduler,
    "pioneer_asha": PioneerAshaScheduler,
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
# The methods that a plugin must implement.
_METHODS = {
    "sampler": ("ask", "start", "tell"),
    "scheduler": ("next_slot", "report", "close", "is_done"),
    "explorer": ("explore", "start", "tell"),
}
# Where the section `search` of a study file has the settings of a part.
_SETTINGS_KEYS = {"sampler": "sampler_settings", "scheduler": "scheduler_settings", "explorer": "explore"}
_SEARCH_KEYS = ("max_resource", "min_resource", "reduction_factor", "max_trials")


def build_space(space: object, *, constraints: Sequence[object] = ()) -> Space:
    """Return a Space from a mapping as in YAML, an `hp.*` expression, or a Space.

    Args:
        constraints: between parameters, as text: `hidden_2 <= hidden_1`.

    Raises:
        SpaceError: the space or a constraint is invalid.
    """
    if not isinstance(space, Space):
        space = from_hyperopt(space) if is_hyperopt(space) else Space.from_config(space)
    return space.constrained(constraints) if constraints else space


def build_sampler(
    name: str,
    space: Space,
    seed: int,
    *,
    enqueue: Sequence[object] = (),
    knowledge: Knowledge | None = None,
    num_objectives: int = 1,
    first_space: Space | None = None,
    **settings: Any,
) -> Sampler:
    """Build a sampler by name.

    Args:
        name: one of `SAMPLERS`, or of a plugin; docs/methods.md lists them with their settings.
        space: the search space. Proposals that violate one of its constraints are repaired.
        seed: of the study, >= 0.
        enqueue: configurations that run first, in this order.
        knowledge: of earlier studies. Its best configurations run after those in `enqueue`; samplers that
            implement `learn_from` use the rest.
        num_objectives: losses per trial, >= 1.
        first_space: the space with which the study began, if its ranges have changed since.
        settings: arguments of the sampler's constructor.

    Raises:
        ConfigError: the name is unknown, a setting is invalid, or the sampler does not support several
            objectives. Keys are those of the section `search` of a study file.
        SpaceError: a configuration in `enqueue` does not fit the space.
    """
    require_integer("seed", seed, 0)
    make = _find("sampler", name)
    study = {
        "space": space,
        "seed": seed,
        "num_objectives": num_objectives,
        "first_space": first_space,
    }
    sampler: Sampler = _build("sampler", make, name, study, settings)
    if not isinstance(sampler, Sampler):  # a plugin that implements only the methods
        sampler = WrappedSampler(sampler)
        sampler.supports_multiple_objectives |= "num_objectives" in inspect.signature(make).parameters
    if num_objectives > 1 and not sampler.supports_multiple_objectives:
        able = ", ".join(able for able in SAMPLERS if SAMPLERS[able].supports_multiple_objectives)
        raise ConfigError(
            f"supports one objective, but the study has {num_objectives}",
            key="sampler",
            value=name,
            cure=f"Use one of {able}",
        )
    with within("enqueue"):
        queue = checked_configurations(space, enqueue)
    if knowledge is not None:
        queue += [params for params in knowledge.best if params not in queue]
        sampler.learn_from(knowledge)
    if space.constraints and not sampler.handles_constraints:
        sampler = ConstrainedSampler(sampler, space, seed)
    return EnqueuedSampler(sampler, queue) if queue else sampler


def build_scheduler(name: str, **settings: Any) -> Scheduler:
    """Build one of `SCHEDULERS`, or a plugin's scheduler, like `build_sampler`."""
    scheduler: Scheduler = _build("scheduler", _find("scheduler", name), name, {}, settings)
    return scheduler


def build_explorer(name: str, space: Space, seed: int, **settings: Any) -> Explorer:
    """Build one of `EXPLORERS`, or a plugin's explorer, like `build_sampler`."""
    study = {"space": space, "seed": seed}
    explorer: Explorer = _build("explorer", _find("explorer", name), name, study, settings)
    return explorer


def accepts(noun: str, name: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a part has these settings. False for an unknown name, too."""
    make = _BUILT_IN[noun].get(name) or load_plugin(noun, name)
    return make is not None and settings.keys() <= inspect.signature(make).parameters.keys()


def names_of(noun: str) -> list[str]:
    """Return the names of all samplers, schedulers or explorers, built-in ones first."""
    return list(dict.fromkeys([*_BUILT_IN[noun], *plugin_names(noun)]))


def _find(noun: str, name: str) -> Callable[..., Any]:
    """Return the class or factory of that name."""
    if name in _BUILT_IN[noun]:
        return _BUILT_IN[noun][name]  # type: ignore[no-any-return]
    make: Callable[..., Any] | None = load_plugin(noun, name)
    if make is None:
        cure = suggestion(name, names_of(noun))
        raise ConfigError(f"is not a valid {noun}", key=noun, value=name, cure=cure)
    return make


def _build(
    noun: str, make: Callable[..., Any], name: str, study: Mapping[str, Any], settings: Mapping[str, Any]
) -> Any:
    """Call the factory with those values of the study that it accepts, and with the user's settings."""
    signature = inspect.signature(make).parameters
    names = [parameter for parameter in signature if parameter not in study]
    for setting in settings:
        if setting not in names:
            cure = suggestion(setting, names)
            raise ConfigError(f"is not a setting of the {noun} {name!r}", key=_key(noun, setting), cure=cure)
    for required in names:
        if signature[required].default is inspect.Parameter.empty and required not in settings:
            raise ConfigError(f"is missing; the {noun} {name!r} needs it", key=_key(noun, required))
    try:
        part = make(**{key: study[key] for key in study if key in signature}, **settings)
    except ConfigError as exc:
        exc.key = _key(noun, exc.key) if exc.key in names else exc.key
        raise
    except Exception as exc:  # a plugin may raise anything
        if name in _BUILT_IN[noun]:
            raise
        raise ConfigError(
            f"comes from a plugin that cannot be built: {type(exc).__name__}: {exc}",
            key=noun,
            value=name,
            cure="Check its settings, or the package that provides it",
        ) from cause(exc)
    missing = [method for method in _METHODS[noun] if not callable(getattr(part, method, None))]
    if missing:
        raise ConfigError(
            f"is the class {type(part).__name__}, which lacks {', '.join(missing)}; a {noun} has "
            f"{', '.join(_METHODS[noun])}",
            key=noun,
            value=name,
        )
    return part


def _key(noun: str, setting: str) -> str:
    """Return the key of a setting in the section `search` of a study file."""
    return setting if setting in _SEARCH_KEYS else f"{_SETTINGS_KEYS[noun]}.{setting}"
