"""What other packages bring: samplers, schedulers, explorers and readers, found by entry points.

    [project.entry-points."spark_hpo.samplers"]
    crossover = "my_package.crossover:CrossoverSampler"

Of such a package nothing is imported before its name is asked for, and names of our own are never asked for
here: a package cannot take their place.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from spark_hpo.errors import ConfigError, cause


def plugin_names(noun: str) -> list[str]:
    """What installed packages offer: `plugin_names("sampler")`. Imports nothing of them."""
    return sorted({entry.name for entry in entry_points(group=f"spark_hpo.{noun}s")})


def load_plugin(noun: str, name: str) -> Any:
    """What an installed package offers under that name; None: no package does.

    Raises:
        ConfigError: two packages do, or what they name cannot be imported or called. The message begins
            with the name.
    """
    entries = list(entry_points(group=f"spark_hpo.{noun}s", name=name))
    if not entries:
        return None
    packages = [f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?" for entry in entries]
    if len(entries) > 1:
        raise ConfigError(
            f"{name!r}, and the packages {' and '.join(packages)} both bring a {noun} of that name: "
            "uninstall one of them"
        )
    origin = f"{name!r}, which the package {packages[0]} brings as {entries[0].value!r}"
    try:
        plugin = entries[0].load()
    except Exception as exc:  # whatever a module of somebody else's raises when it is imported
        raise ConfigError(
            f"{origin}, and that cannot be imported here ({type(exc).__name__}: {exc}): repair the package, "
            "or uninstall it"
        ) from cause(exc)
    if not callable(plugin):
        raise ConfigError(
            f"{origin}, and that is {plugin!r}; it must be a class, or a function that makes one"
        )
    return plugin
