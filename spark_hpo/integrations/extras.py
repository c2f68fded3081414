"""The message about an extra that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spark_hpo.errors import ConfigError


@contextmanager
def needs(*packages: str, extra: str) -> Iterator[None]:
    """Import packages of an extra inside this.

    Raises:
        ConfigError: one of the packages is not installed.
    """
    try:
        yield
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in packages:
            raise
        raise ConfigError(
            f"spark_hpo.integrations.{extra} needs the package {exc.name}, which is not installed here: "
            f'pip install "spark_hpo[{extra}]" on the driver and on the executors'
        ) from exc
