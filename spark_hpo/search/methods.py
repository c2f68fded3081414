"""Methods of the literature: pairs of a sampler and a scheduler, some with an explorer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spark_hpo.errors import ConfigError, suggestion


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The parts of a method. The user's settings override these."""

    sampler: str
    scheduler: str
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)
    explorer: str = "perturbation"  # used only by population based schedulers


METHODS_VERSION = 5
"""Version of the settings in `METHODS`. A study keeps those that it began with (`Definition.methods`)."""

METHODS: Mapping[str, Method] = {
    # How its settings were chosen: docs/methods.md. Where it wins and loses: docs/benchmarks/search.md.
    "default": Method(
        sampler="multifidelity_gp",
        scheduler="pioneer_asha",
        sampler_settings={"learns_from_memory": True},
    ),
    # Falkner et al. 2018, arXiv:1807.01774; unlike there, brackets overlap, so that no slot idles.
    "bohb": Method(sampler="tpe", scheduler="hyperband", sampler_settings={"random_fraction": 1 / 3}),
    # Awad et al. 2021, arXiv:2105.09821.
    "dehb": Method(sampler="de", scheduler="hyperband"),
    # Klein et al. 2020, arXiv:2003.10865: a Gaussian process over asynchronous brackets.
    "mobster": Method(sampler="gp", scheduler="asha"),
    # Li et al. 2020, arXiv:1810.05934.
    "asha": Method(sampler="random", scheduler="asha"),
    # Li et al. 2018, arXiv:1603.06560.
    "hyperband": Method(sampler="random", scheduler="hyperband"),
    # Jaderberg et al. 2017, arXiv:1711.09846.
    "pbt": Method(sampler="sobol", scheduler="population_based"),
    # Parker-Holder et al. 2020, arXiv:2002.02518.
    "pb2": Method(sampler="sobol", scheduler="population_based", explorer="pb2"),
    # Lorraine et al. 2020, arXiv:1911.02590: trials learn `search.learn`, and the rest is searched as above.
    "hypergradient": Method(sampler="tpe", scheduler="adaptive_asha"),
    # Bergstra and Bengio 2012.
    "random": Method(sampler="random", scheduler="full"),
}

# Methods whose settings have changed, as they were, by the last version that had them.
_EARLIER: Mapping[int, Mapping[str, Method]] = {
    1: {"default": Method(sampler="tpe", scheduler="adaptive_asha")},
    2: {
        "default": Method(
            sampler="tpe",
            scheduler="adaptive_asha",
            sampler_settings={"enough": 10, "learns_from_paused": True},
            scheduler_settings={"has_leader": True, "control_share": 0.1},
        )
    },
    3: {"default": Method(sampler="multifidelity_gp", scheduler="guided_asha")},
    4: {"default": Method(sampler="multifidelity_gp", scheduler="pioneer_asha")},
}


def find_method(name: str, version: int = METHODS_VERSION) -> Method:
    """Return the method of that name, with the settings that it had in a version.

    Raises:
        ConfigError: the name is unknown, or the version is newer than this one.
    """
    if name not in METHODS:
        raise ConfigError("is not a valid method", key="method", value=name, cure=suggestion(name, METHODS))
    if version > METHODS_VERSION:
        raise ConfigError(
            f"has settings of a newer spark_hpo (version {version} of its methods; this one knows "
            f"{METHODS_VERSION})",
            key="method",
            value=name,
            cure="Install the version that began the study",
        )
    for last in sorted(_EARLIER):
        if version <= last and name in _EARLIER[last]:
            return _EARLIER[last][name]
    return METHODS[name]
