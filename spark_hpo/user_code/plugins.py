"""Loads plugins: samplers, schedulers, explorers and readers of other packages, by entry points.

    [project.entry-points."spark_hpo.samplers"]
    crossover = "my_package.crossover:CrossoverSampler"

A plugin is imported when its name is used. Built-in names are looked up first, so a plugin cannot replace
them.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from spark_hpo.errors import ConfigError, cause


def plugin_names(noun: str) -> list[str]:
    """Return the names of installed plugins, such as all of noun "sampler", without importing them."""
    return sorted({entry.name for entry in entry_points(group=f"spark_hpo.{noun}s")})


def load_plugin(noun: str, name: str) -> Any:
    """Return the class or factory of a plugin; None if no package provides that name.

    Raises:
        ConfigError: two packages provide the name, or the plugin cannot be imported or is not callable. The
            key is `noun`.
    """
    entries = list(entry_points(group=f"spark_hpo.{noun}s", name=name))
    if not entries:
        return None
    packages = [f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?" for entry in entries]
    if len(entries) > 1:
        raise ConfigError(
            f"is provided by several packages: {', '.join(packages)}",
            key=noun,
            value=name,
            cure="Uninstall all but one of them",
        )
    origin = f"is provided by the package {packages[0]} as {entries[0].value!r}"
    try:
        plugin = entries[0].load()
    except Exception as exc:  # a module may raise anything when it is imported
        raise ConfigError(
            f"{origin}, which cannot be imported: {type(exc).__name__}: {exc}",
            key=noun,
            value=name,
            cure="Repair or uninstall the package",
        ) from cause(exc)
    if not callable(plugin):
        raise ConfigError(
            f"{origin}, which is {plugin!r}, but must be a class or a function", key=noun, value=name
        )
    return plugin
