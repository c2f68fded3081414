"""What fault tests share: studies that are swept, the results of one without faults, the table of costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk import SmallDisk, can_mount
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy
from tests.faults.spark_home import SparkHome

_LEDGER = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults-page", type=Path, help="where the table of costs is written")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEDGER] = Ledger()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among all other tests only the quick ones run; here is a folder for who asks for it."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    here = Path(__file__).parent
    slow = [item for item in items if here in item.path.parents and not item.get_closest_marker("quick")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if (page := config.getoption("--faults-page", None)) is not None:
        terminalreporter.section("faults")
        config.stash[_LEDGER].show(page)


@pytest.fixture
def ledger(pytestconfig: pytest.Config) -> Ledger:
    return pytestconfig.stash[_LEDGER]


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def spark_home(tmp_path_factory: pytest.TempPathFactory) -> SparkHome:
    return SparkHome(tmp_path_factory.mktemp("home"))


@pytest.fixture
def live(
    tmp_path: Path, empty_mlflow: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., LiveStudy]]:
    """Makes studies, each in a folder of its own. Whatever becomes of the test, their processes end."""
    studies: list[LiveStudy] = []

    def make(name: str = "one", **settings: Any) -> LiveStudy:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)  # a namespace may have been made around it
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        uses_spark = settings.get("backend") != "inline"
        home = request.getfixturevalue("spark_home") if uses_spark else None
        studies.append(LiveStudy(folder, home, **settings))
        return studies[-1]

    yield make
    for study in studies:
        study.sweep()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], SmallDisk]]:
    """Makes a disk of so many KiB, as `disk` in the folder of the study that `live` makes."""
    disks: list[SmallDisk] = []

    def make(size: int) -> SmallDisk:
        if not can_mount():
            pytest.skip("makes a mount namespace, which this user may not")
        (tmp_path / "one").mkdir()
        disks.append(SmallDisk(tmp_path / "one" / "disk", size))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> dict[tuple[int, int], Any]:
    """What the study of `live` finds when nothing happens to it; without Spark, which must not matter."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    study = LiveStudy(folder, step_s=0.0, backend="inline")
    study.finish_soundly()
    return study.results()
