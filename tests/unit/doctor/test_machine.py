"""The doctor's look at Java and at the versions of packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.doctor.finding import Status
from spark_hpo.doctor.machine import conflicts, judge_java

GOOD = {"pyspark": "4.0.5", "pyarrow": "14.0.2", "petastorm": "0.12.1", "numpy": "1.26.4", "torch": "2.13.0"}


def home(folder: Path, says: str) -> str:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("version", "spark", "status"),
    [
        ("17.0.15", "4.0.5", Status.OK),
        ("21", "4.3.0", Status.OK),
        ("1.8.0_392", "3.5.9", Status.OK),
        ("11.0.2", "4.0.5", Status.FAIL),
        ("1.8.0_392", "4.0.5", Status.FAIL),
        ("25", "4.0.5", Status.WARN),
        ("21", "3.5.9", Status.WARN),
    ],
)
def test_java_is_held_against_the_version_of_spark(
    tmp_path: Path, version: str, spark: str, status: Status
) -> None:
    found = judge_java(home(tmp_path, f'openjdk version "{version}" 2025-04-15'), spark)
    assert found.status is status
    assert ("install Java" in found.cure) is (status is not Status.OK)


def test_java_home_without_java_gets_a_fix(tmp_path: Path) -> None:
    found = judge_java(str(tmp_path / "jdk"), "4.0.5")
    assert found.status is Status.FAIL
    assert f"JAVA_HOME is {tmp_path}/jdk, and" in found.message
    assert "No such file" in found.message
    assert found.cure == "install Java 17 or 21, and point JAVA_HOME at it"


def test_something_that_is_no_java_is_seen(tmp_path: Path) -> None:
    assert "does not print its version" in judge_java(home(tmp_path, "hello"), "4.0.5").message


def test_versions_that_go_together_are_no_problem() -> None:
    requirements = {"petastorm": ["pyarrow>=0.17.1", "pyspark>=2.1.0"]}
    assert list(conflicts(GOOD, requirements)) == []


@pytest.mark.parametrize(
    ("changed", "who", "cure"),
    [
        ({"petastorm": "0.13.1"}, "petastorm", "petastorm==0.12.1"),
        ({"pyarrow": "25.0.1"}, "petastorm", "data.reader: arrow"),
        ({"numpy": "2.4.6"}, "pyarrow", "numpy<2"),
        ({"torch": "2.2.0", "numpy": "2.0.0"}, "torch", "torch>=2.4"),
    ],
)
def test_known_bad_pairs_are_named_with_their_versions(changed: dict[str, str], who: str, cure: str) -> None:
    found = {name: (what, how) for name, what, how in conflicts({**GOOD, **changed}, {})}
    what, how = found[who]
    assert cure in how
    assert next(iter(changed.values())) in what


def test_versions_are_compared_with_the_requirements() -> None:
    requirements = {
        "pyspark": ['pyarrow>=15; extra == "sql"', 'googleapis>=9; extra == "ml"', "py4j==0.10.9"]
    }
    [(who, what, cure)] = conflicts({**GOOD, "googleapis": "1"}, requirements)
    assert who == "pyspark"
    assert what == "pyspark 4.0.5 requires pyarrow>=15, not 14.0.2"
    assert cure == "pip install 'pyarrow>=15'"
