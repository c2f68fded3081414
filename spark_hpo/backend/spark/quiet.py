"""Keeps Spark's JVM from filling the terminal when a command starts it."""

from __future__ import annotations

import os
from pathlib import Path

LOG_LEVEL = "spark.log.level"  # Spark prints that it sets it, so a quiet JVM is better off without
_OPTIONS = "SPARK_SUBMIT_OPTS"  # spark-submit gives them to its own JVM, which is the driver's
_PROPERTY = "log4j2.configurationFile"
_FILE = Path(__file__).with_name("log4j2.properties")


def quiet_jvm() -> None:
    """Make the JVM that this process will start log little, unless its user has configured log4j."""
    home = Path(os.environ.get("SPARK_HOME", ""))
    folder = Path(os.environ.get("SPARK_CONF_DIR", home / "conf"))
    options = os.environ.get(_OPTIONS, "")
    # The package may be imported from a zip file, which log4j cannot read.
    if "log4j" in options or (folder / "log4j2.properties").is_file() or not _FILE.is_file():
        return
    os.environ[_OPTIONS] = f'{options} "-D{_PROPERTY}=file:{_FILE}"'.strip()


def is_quiet() -> bool:
    """Return True if `quiet_jvm` has configured the JVM, or the Makefile in the same way."""
    return str(_FILE) in os.environ.get(_OPTIONS, "")
