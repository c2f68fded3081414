"""Records the versions, the commit and the command of a driver."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spark_hpo.redact import redact

_PACKAGES = (
    *("spark_hpo", "torch", "pyspark", "mlflow", "petastorm", "pyarrow", "numpy", "pandas"),
    *("hyperopt", "optuna"),
)
_SUBMIT_CLASS = "org.apache.spark.deploy.SparkSubmit"


def provenance() -> dict[str, Any]:
    """Return what is needed to reproduce this process: versions, commit and command."""
    return {"versions": _versions(), "git_commit": git_commit(), "command": command_line()}


def git_commit() -> str | None:
    """Return the commit of the working directory, or None outside a repository."""
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


def command_line() -> str | None:
    """Return the command that started this process, with all arguments but without credentials.

    None if there is no command to repeat, as in a notebook.
    """
    program = sys.argv[0] if sys.argv else ""
    if os.path.basename(program) == "spark-hpo":
        words = [_as_called(program), *sys.argv[1:]]
    elif program.endswith(os.path.join("spark_hpo", "__main__.py")):
        words = [_as_called(sys.executable), "-m", "spark_hpo", *sys.argv[1:]]
    elif not program.endswith(".py") or "site-packages" in program:
        return None
    elif under_spark_submit():
        words = [*_spark_submit(), *(_submitted() or sys.argv)]
    else:
        words = [_as_called(sys.executable), _from_here(program), *sys.argv[1:]]
    return redact(shlex.join(words))


def program_of_environment(name: str) -> str:
    """Return how to call a program of this environment: by name if it is on the PATH, else by path."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return name if shutil.which(name) or not os.path.exists(beside) else _from_here(beside)


def _as_called(program: str) -> str:
    """Return the name of a program if it is on the PATH, else its path."""
    found = shutil.which(os.path.basename(program))
    is_found = found is not None and os.path.abspath(found) == os.path.abspath(program)
    return os.path.basename(program) if is_found else _from_here(program)


def _spark_submit() -> list[str]:
    """Return how to call spark-submit; outside the PATH, it also needs to be told which Python to use."""
    program = program_of_environment("spark-submit")
    return [program] if program == "spark-submit" else ["env", f"PYSPARK_PYTHON={sys.executable}", program]


def _from_here(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def under_spark_submit() -> bool:
    """Return True if spark-submit started this process, which it shows by PySpark's gateway port."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _submitted() -> list[str] | None:
    """Return the arguments of the JVM that started this process."""
    with suppress(OSError, ValueError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
        return words[words.index(_SUBMIT_CLASS) + 1 :]
    return None
