"""Turns Spark's "Java gateway exited" into an actionable error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pyspark.errors import PySparkRuntimeError

from spark_hpo.errors import ConfigError

_GATEWAY_EXITED = "JAVA_GATEWAY_EXITED"


@contextlib.contextmanager
def java_is_needed() -> Iterator[None]:
    """Translate the error of code that starts Spark's JVM.

    Raises:
        ConfigError: there is no Java that Spark can start.
    """
    try:
        yield
    except (PySparkRuntimeError, FileNotFoundError) as exc:
        if isinstance(exc, PySparkRuntimeError) and _GATEWAY_EXITED not in str(exc):
            raise
        home = os.environ.get("JAVA_HOME")
        where = f"JAVA_HOME is {home}" if home else "JAVA_HOME is not set, so Spark uses the java on the path"
        raise ConfigError(
            f"Spark does not start, because Java is missing or exits at once ({where})",
            cure="Install Java 17 or 21 (apt-get install openjdk-17-jre-headless, brew install openjdk@17), "
            "and set JAVA_HOME to it",
        ) from exc
