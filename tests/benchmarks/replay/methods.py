"""Methods as they are written on a command line: `default`, `bohb`, or a pair such as `tpe+hyperband`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from spark_hpo.errors import ConfigError, suggestion
from spark_hpo.search.explorer import Explorer
from spark_hpo.search.methods import METHODS
from spark_hpo.search.registry import build_explorer, build_sampler, build_scheduler, names_of
from spark_hpo.search.sampler import Sampler
from spark_hpo.search.scheduler import Scheduler
from spark_hpo.search.space import Space

DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A sampler and a scheduler, to be built anew for each replay."""

    name: str  # as written
    sampler: str
    scheduler: str
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict)
    explorer: str = "perturbation"

    def build_sampler(self, space: Space, seed: int) -> Sampler:
        return build_sampler(self.sampler, space, seed, **self.sampler_settings)

    def build_scheduler(self, max_resource: int) -> Scheduler:
        settings = {"max_resource": max_resource, **self.scheduler_settings}
        return build_scheduler(self.scheduler, **settings)

    def build_explorer(self, space: Space, seed: int) -> Explorer:
        return build_explorer(self.explorer, space, seed)


def parse_method(text: str) -> Method:
    """The method of that name.

    A trace: "default", "bohb" -> as in a study file's `search.method`; "tpe+asha" -> sampler "tpe",
    scheduler "asha"; "tpe" -> with scheduler "full"; "tpe:num_candidates=64+hyperband:min_resource=3,
    reduction_factor=2" -> with settings, in YAML.

    Raises:
        ConfigError: an unknown name, or a setting that is not name=value.
    """
    if text in METHODS:
        known_as = METHODS[text]
        return Method(
            name=text,
            sampler=known_as.sampler,
            scheduler=known_as.scheduler,
            sampler_settings=known_as.sampler_settings,
            scheduler_settings=known_as.scheduler_settings,
            explorer=known_as.explorer,
        )
    first, _, second = text.partition("+")
    sampler, sampler_settings = _part(text, first)
    scheduler, scheduler_settings = _part(text, second or "full")
    for noun, name in (("sampler", sampler), ("scheduler", scheduler)):
        known = names_of(noun)
        if name not in known:
            names = [*known, *METHODS] if "+" not in text else known
            raise ConfigError(f"method {text!r}: {noun} is {name!r}. {suggestion(name, names)}")
    return Method(
        name=text,
        sampler=sampler,
        scheduler=scheduler,
        sampler_settings=sampler_settings,
        scheduler_settings=scheduler_settings,
    )


def _part(method: str, text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    settings = {}
    for setting in filter(None, rest.split(",")):
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(f"method {method!r}: {setting!r} must be name=value")
        settings[key] = yaml.safe_load(value)
    return name, settings
