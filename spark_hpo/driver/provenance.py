"""What a driver was: the versions, the commit and the command that a study was run with."""

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
    """What to write down of this process, so that somebody can do the same again."""
    return {"versions": _versions(), "git_commit": git_commit(), "command": command_line()}


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


def command_line() -> str | None:
    """The command that this process was started with, but for the credentials in it, with the master and all
    else that spark-submit was given; None where there is none to repeat, as in a notebook."""
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
    """What to type for a program that came with this Python: its place where the path leads to none."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return name if shutil.which(name) or not os.path.exists(beside) else _from_here(beside)


def _as_called(program: str) -> str:
    """A program's name where that is enough to find it, else its place."""
    found = shutil.which(os.path.basename(program))
    is_found = found is not None and os.path.abspath(found) == os.path.abspath(program)
    return os.path.basename(program) if is_found else _from_here(program)


def _spark_submit() -> list[str]:
    """The one beside this Python where none is on the path; it has to be told to take this Python, too."""
    program = program_of_environment("spark-submit")
    return [program] if program == "spark-submit" else ["env", f"PYSPARK_PYTHON={sys.executable}", program]


def _from_here(path: str) -> str:
    place = os.path.relpath(path)
    return path if place.startswith("..") else place


def under_spark_submit() -> bool:
    """PySpark's gateway is there before the program where spark-submit has started it."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def _submitted() -> list[str] | None:
    """What the JVM that started this process was given."""
    with suppress(OSError, ValueError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
        return words[words.index(_SUBMIT_CLASS) + 1 :]
    return None
