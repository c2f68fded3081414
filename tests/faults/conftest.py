"""Fixtures of the fault tests: studies whose processes are killed afterwards, expected results, costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cost_table import CostTable
from tests.faults.small_disk import SmallDisk, can_mount
from tests.faults.study_run import StudyRun
from tests.support.spark_home import SparkHome

_COSTS = pytest.StashKey[CostTable]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", type=Path, help="write the table of costs to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COSTS] = CostTable()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if (page := config.getoption("--faults-page", None)) is not None:
        terminalreporter.section("faults")
        config.stash[_COSTS].show(page)


@pytest.fixture
def costs(pytestconfig: pytest.Config) -> CostTable:
    return pytestconfig.stash[_COSTS]


@pytest.fixture(scope="session")
def spark_home(tmp_path_factory: pytest.TempPathFactory) -> SparkHome:
    return SparkHome(tmp_path_factory.mktemp("home"))


@pytest.fixture
def new_study(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., StudyRun]]:
    """Creates studies, each in its own folder, and kills all their processes when the test ends."""
    studies: list[StudyRun] = []

    def make(name: str = "one", **settings: Any) -> StudyRun:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)  # a small disk may have created it
        uses_spark = settings.get("backend", "spark") == "spark"
        home = request.getfixturevalue("spark_home") if uses_spark else None
        studies.append(StudyRun(folder, home, **settings))
        return studies[-1]

    yield make
    for study in studies:
        study.kill_all()


@pytest.fixture(params=["spark", "local"])
def new_study_anywhere(
    new_study: Callable[..., StudyRun], request: pytest.FixtureRequest
) -> Callable[..., StudyRun]:
    """Creates studies on each backend that runs ranks as processes of their own."""
    return partial(new_study, backend=request.param)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Creates a disk of the given KiB as `disk` in the folder of the study that `new_study` creates."""
    disks: list[SmallDisk] = []

    def make(size: int) -> SmallDisk:
        if not can_mount():
            pytest.skip("needs permission to create a mount namespace")
        (tmp_path / "one").mkdir()
        disks.append(SmallDisk(tmp_path / "one" / "disk", size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """The results of the study of `new_study` without faults; run without Spark, which must not matter."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = StudyRun(folder, step_s=0.0, backend="inline")
    study.finish_and_check()
    return study.results()
