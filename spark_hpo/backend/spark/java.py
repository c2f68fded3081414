"""The Java that Spark starts: where there is none, its user is told so, not shown a traceback of Spark's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pyspark.errors import PySparkRuntimeError

from spark_hpo.errors import ConfigError

_SIGN = "JAVA_GATEWAY_EXITED"


@contextlib.contextmanager
def java_is_needed() -> Iterator[None]:
    """Around what starts Spark.

    Raises:
        ConfigError: there is no Java that it could start.
    """
    try:
        yield
    except (PySparkRuntimeError, FileNotFoundError) as exc:
        if isinstance(exc, PySparkRuntimeError) and _SIGN not in str(exc):
            raise
        home = os.environ.get("JAVA_HOME")
        where = (
            f"JAVA_HOME is {home}" if home else "JAVA_HOME is not set, so that it takes the java on the path"
        )
        raise ConfigError(
            f"Spark does not start: its Java ends at once, or is not there; {where}. Install Java 17 or 21 "
            "(apt-get install openjdk-17-jre-headless, brew install openjdk@17), and point JAVA_HOME at it"
        ) from exc
