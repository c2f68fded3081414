"""Checks of this machine: Java, and the versions of packages."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from spark_hpo.config import StudyConfig
from spark_hpo.data.readers import resolve_reader
from spark_hpo.doctor.context import Context
from spark_hpo.doctor.finding import Verdict, fail, ok, skip, warn
from spark_hpo.errors import ConfigError

# The versions in Spark's documentation, by Spark's major version.
_JAVAS = {3: (8, 11, 17), 4: (17, 21)}
_LIMIT_S = 20.0
SHOWN = ("spark_hpo", "pyspark", "pyarrow", "petastorm", "numpy", "pandas", "torch", "mlflow")
_EXTRAS = {"pyspark": ("sql", "connect")}  # whose requirements apply
# Conflicts that the metadata of the packages do not contain.
_KNOWN_BAD = (
    ("petastorm>=0.13", (), "loses rows with its thread pool", "pip install petastorm==0.12.1"),
    (
        "petastorm<0.13",
        ("pyarrow>=15",),
        "calls functions that pyarrow 15 removed",
        "pip install 'pyarrow<15', or data.reader: arrow",
    ),
    (
        "pyarrow<16",
        ("numpy>=2",),
        "was built for numpy 1 and crashes",
        "pip install 'numpy<2', or a newer pyarrow",
    ),
    (
        "torch<2.3",
        ("numpy>=2",),
        "was built for numpy 1, so arrays cannot become tensors",
        "pip install 'torch>=2.4'",
    ),
)


def java(context: Context) -> Verdict:
    """Check that Java exists, in a version that Spark supports."""
    config = context.config
    if not config.needs_spark:
        return skip(f"backend: {config.backend} does not need Java")
    if context.spark is not None:
        return skip("Spark is already running")
    if config.spark.get("spark.remote") or os.environ.get("SPARK_REMOTE"):
        return skip("Spark Connect does not need Java here")
    spark = metadata.version("pyspark")
    return judge_java(os.environ.get("JAVA_HOME"), spark)


def judge_java(home: str | None, spark: str) -> Verdict:
    """Check the Java of JAVA_HOME, or else on the path, for a version of Spark."""
    good = _JAVAS.get(int(spark.partition(".")[0]), _JAVAS[4])
    wanted = " or ".join(map(str, good))
    cure = f"install Java {good[-2]} or {good[-1]}, and point JAVA_HOME at it"
    program = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if program is None:
        return fail(f"Java is not on the path, and JAVA_HOME is not set; Spark {spark} needs {wanted}", cure)
    of_home = f"JAVA_HOME is {home}, and " if home else ""
    try:
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except OSError as exc:
        return fail(f"{of_home}{program} cannot be started: {exc.strerror}", cure)
    except subprocess.TimeoutExpired:
        return fail(f"{program} -version does not return", cure)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    if found is None:
        return fail(f"{of_home}{program} does not print its version", cure)
    version = int(found[1])
    message = f"{of_home}{program} is Java {version}"
    if version in good:
        return ok(f"{message}, for Spark {spark}")
    if version > max(good):
        return warn(f"{message}; Spark {spark} is tested with {wanted}", cure)
    return fail(f"{message}; Spark {spark} needs {wanted}", cure)


def packages(context: Context) -> Verdict:
    """Check the installed versions against the requirements of the packages and known conflicts."""
    installed: dict[str, str] = {
        canonicalize_name(d.metadata["Name"]): d.version
        for d in metadata.distributions()
        if d.metadata["Name"]
    }
    requirements: dict[str, list[str]] = {
        name: _requirements(name) for name in map(canonicalize_name, SHOWN) if name in installed
    }
    problems = list(conflicts(installed, requirements))
    shown = ", ".join(
        f"{n} {installed[canonicalize_name(n)]}" for n in SHOWN if canonicalize_name(n) in installed
    )
    shown = f"Python {platform.python_version()}, {shown}"
    if not problems:
        return ok(shown)
    # A conflict of Petastorm does not matter if it is not the reader.
    config: StudyConfig | None = vars(context).get("config")  # packages are checked without a study, too
    reader = config.data.reader if config is not None and config.data is not None else "auto"
    serious = [
        (what, cure) for who, what, cure in problems if who != "petastorm" or _reads_with_petastorm(reader)
    ]
    what = "; ".join(f"{text} ({cure})" for _, text, cure in problems)
    return fail(f"{shown}: {what}") if serious else warn(f"{shown}: {what}", "the reader is arrow")


def conflicts(
    installed: Mapping[str, str], requirements: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, str]]:
    """Yield conflicts between packages: package, conflict, fix.

    Args:
        installed: versions by canonical name.
        requirements: of some packages, from their metadata.
    """
    for text, others, fault, cure in _KNOWN_BAD:
        if _meets(text, installed) and all(_meets(other, installed) for other in others):
            with_them = "".join(f" with {_named(other, installed)}" for other in others)
            yield Requirement(text).name, f"{_named(text, installed)}{with_them} {fault}", cure
    for name, texts in requirements.items():
        for text in texts:
            try:
                wanted = Requirement(text)
            except InvalidRequirement:
                continue
            extras = ("", *_EXTRAS.get(name, ()))
            if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
                continue
            has = installed.get(canonicalize_name(wanted.name))
            # A missing package is reported by the check that needs it.
            if has is not None and not wanted.specifier.contains(has, prereleases=True):
                yield (
                    name,
                    f"{name} {installed[name]} requires {wanted.name}{wanted.specifier}, not {has}",
                    (f"pip install '{wanted.name}{wanted.specifier}'"),
                )


def _requirements(name: str) -> list[str]:
    return list(metadata.requires(name) or ())


def _meets(text: str, installed: Mapping[str, str]) -> bool:
    wanted = Requirement(text)
    has = installed.get(canonicalize_name(wanted.name))
    return has is not None and wanted.specifier.contains(Version(has).base_version, prereleases=True)


def _named(text: str, installed: Mapping[str, str]) -> str:
    name = Requirement(text).name
    return f"{name} {installed[canonicalize_name(name)]}"


def _reads_with_petastorm(reader: str) -> bool:
    try:
        return resolve_reader(reader) == "petastorm"
    except ConfigError:
        return True  # configured, but cannot be imported
