"""What a driver was: the versions, the commit and the command that a study was run with."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from spark_hpo.redact import redact

_PACKAGES = (
    *("spark_hpo", "torch", "pyspark", "mlflow", "petastorm", "pyarrow", "numpy", "pandas"),
    *("hyperopt", "optuna"),
)


def provenance() -> dict[str, Any]:
    """What to write down of this process, so that somebody can do the same again."""
    return {"versions": _versions(), "git_commit": git_commit(), "command": _command()}


def git_commit() -> str | None:
    """The commit of the working directory; None outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _command() -> str | None:
    """The command line of this process; None where there is none to repeat, as in a notebook."""
    program = sys.argv[0] if sys.argv else ""
    if os.path.basename(program) == "spark-hpo":
        words = ["spark-hpo", *sys.argv[1:]]
    elif program.endswith(".py") and "site-packages" not in program:
        place = os.path.relpath(program)
        # PySpark's gateway is there before the program where spark-submit has started it.
        start = "spark-submit" if "PYSPARK_GATEWAY_PORT" in os.environ else "python"
        words = [start, program if place.startswith("..") else place, *sys.argv[1:]]
    else:
        return None
    return redact(shlex.join(words))
