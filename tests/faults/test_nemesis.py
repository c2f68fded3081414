"""Many faults at random over one study: in the end it has found what it finds without any."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from spark_hpo.search.schedulers.rungs import bracket_rungs, resource_levels
from tests.faults.disk import SmallDisk, can_mount
from tests.faults.family import LIMIT_S, eventually, stopped
from tests.faults.ledger import Ledger
from tests.faults.live import LiveStudy

# Six faults and their recoveries, several drivers, on a machine that may be slow.
pytestmark = pytest.mark.timeout(900)

SEEDS = range(10)
FAULTS_OF_A_STUDY = 6  # of ten kinds; of nine where no disk can be mounted
REPORTS_BETWEEN = 3  # two faults, and more while one of them takes its time
STOPPED_S = 3.0
DISK_KIB = 8192
# 42 trials at the lowest rung, 14 at the next, 4 at the last.
TRIALS, MAX_RESOURCE, REDUCTION_FACTOR = 42, 9, 3
SETTINGS: dict[str, Any] = {
    "step_s": 0.02,
    "data": {"cache": {"enabled": False}},  # a damaged table is met by whoever reads next
    "search": {
        "scheduler": "successive_halving",
        "max_resource": MAX_RESOURCE,
        "reduction_factor": REDUCTION_FACTOR,
    },
    "budget": {"trials": TRIALS},
    "training": {"checkpoint_every": {"seconds": 0.5}},
    "resources": {"rank_timeout_s": 4, "max_infra_retries": 20, "grace_s": 10},
}
NUM_ASSIGNMENTS = 60


class Nemesis:
    """Does one fault after another to a study. Which, and to whom, is drawn from a seed."""

    def __init__(self, study: LiveStudy, disk: SmallDisk | None, seed: int) -> None:
        self._study = study
        self._disk = disk
        self._rng = np.random.default_rng(seed)
        self.done: list[str] = []

    @property
    def faults(self) -> list[Callable[[], None]]:
        return [
            self.kill_an_executor,
            self.kill_a_rank,
            self.stop_a_rank,
            self.stop_an_executor_for_a_while,
            self.kill_the_driver,
            self.interrupt_the_driver,
            self.start_a_second_driver,
            self.lock_mlflow,
            self.damage_the_table,
            *([self.fill_the_disk] if self._disk else []),
        ]

    def schedule(self) -> Iterator[Callable[[], None]]:
        """Kinds of faults, each once, in an order of the seed's."""
        for index in self._rng.permutation(len(self.faults))[:FAULTS_OF_A_STUDY]:
            yield self.faults[index]

    def act(self, fault: Callable[[], None]) -> None:
        assert len(self._study.reported()) < NUM_ASSIGNMENTS, f"nothing is left to hurt after {self.done}"
        self.done.append(fault.__name__)
        with contextlib.suppress(psutil.NoSuchProcess):  # it was faster
            fault()

    def kill_an_executor(self) -> None:
        self._one_of(self._study.family.executors()).kill()

    def kill_a_rank(self) -> None:
        self._a_rank().kill()

    def stop_a_rank(self) -> None:
        """For ever: it has to be noticed."""
        self._a_rank().send_signal(signal.SIGSTOP)

    def stop_an_executor_for_a_while(self) -> None:
        with stopped(self._one_of(self._study.family.executors())):
            time.sleep(STOPPED_S)

    def kill_the_driver(self) -> None:
        self._study.kill_driver()
        self._study.begin()

    def interrupt_the_driver(self) -> None:
        assert self._study.process is not None
        self._study.process.terminate()
        self._driver_ends_with(130)
        self._study.begin()

    def start_a_second_driver(self) -> None:
        first = self._study.process
        self._study.begin(log="second.txt")
        self._driver_ends_with(1)
        self._study.process = first

    def lock_mlflow(self) -> None:
        with closing(sqlite3.connect(self._study.folder / "mlflow.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA busy_timeout = 20000")
            connection.execute("BEGIN EXCLUSIVE")
            time.sleep(STOPPED_S)
            connection.execute("ROLLBACK")

    def fill_the_disk(self) -> None:
        assert self._disk is not None
        self._disk.fill()
        self._driver_ends_with(1)
        self._disk.make_room()
        self._study.begin()

    def damage_the_table(self) -> None:
        """Until somebody has noticed."""
        file = self._study.folder / "table/train/part-0.parquet"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        self._driver_ends_with(3)
        file.write_bytes(whole)
        self._study.begin()

    def _driver_ends_with(self, code: int) -> None:
        assert self._study.process is not None
        found = self._study.process.wait(LIMIT_S)
        assert found == code, f"exit code {found}\n{self._study.log[-4000:]}"

    def _a_rank(self) -> psutil.Process:
        """One that has just made a step."""
        found: list[psutil.Process] = []

        def there() -> bool:
            recent = {step.pid for step in self._study.steps()[-20:] if step.time > time.time() - 1}
            found[:] = [psutil.Process(pid) for pid in sorted(recent) if psutil.pid_exists(pid)]
            return bool(found)

        eventually(there, "a rank")
        return self._one_of(found)

    def _one_of(self, processes: list[psutil.Process]) -> psutil.Process:
        if not processes:
            raise psutil.NoSuchProcess(0)
        return processes[self._rng.integers(len(processes))]


@pytest.fixture(scope="module")
def peaceful(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> dict[tuple[int, int], Any]:
    """What the study finds when nothing happens to it."""
    folder = tmp_path_factory.mktemp("peaceful")
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    study = LiveStudy(folder, **{**SETTINGS, "step_s": 0.0}, backend="inline")
    study.finish_soundly()
    return study.results()


def test_the_study_has_sixty_assignments() -> None:
    levels = resource_levels(1, MAX_RESOURCE, REDUCTION_FACTOR)
    rungs = bracket_rungs(TRIALS, levels, REDUCTION_FACTOR)
    assert sum(rung.size for rung in rungs) == NUM_ASSIGNMENTS


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_the_study_finds_the_same(
    live: Callable[..., LiveStudy],
    ledger: Ledger,
    peaceful: dict[tuple[int, int], Any],
    small_disk: Callable[[int], SmallDisk],
    seed: int,
) -> None:
    disk = small_disk(DISK_KIB) if can_mount() else None
    study = live(**SETTINGS) if disk is None else disk.hold(live(**SETTINGS, study_dir="disk/study"))
    nemesis = Nemesis(study, disk, seed)
    study.begin()
    before: dict[tuple[int, int], Any] = {}
    lost = 0
    for fault in nemesis.schedule():
        reach(study, len(study.reported()) + REPORTS_BETWEEN)
        lost += len(before.keys() - study.results().keys())
        before = study.results()
        nemesis.act(fault)
    reach(study, NUM_ASSIGNMENTS)
    study.finish_soundly()

    lost += len(before.keys() - study.results().keys())
    assert lost == 0, nemesis.done
    # A disk that refuses, or a damaged file, only where that was among the faults.
    allowed = {"infrastructure", "interrupted"}
    allowed |= {"storage"} if "fill_the_disk" in nemesis.done else set()
    allowed |= {"data"} if "damage_the_table" in nemesis.done else set()
    assert {event["failure"]["kind"] for event in study.of_kind("lost")} <= allowed, nemesis.done
    assert study.results() == peaceful, nemesis.done
    ledger.add(
        f"nemesis, {FAULTS_OF_A_STUDY} faults a study", tries=FAULTS_OF_A_STUDY, repeated_s=study.repeated_s()
    )


def reach(study: LiveStudy, reports: int) -> None:
    """Wait for so many reports, from a driver that lives meanwhile."""

    def there() -> bool:
        if len(study.reported()) >= reports:
            return True
        assert study.process is not None
        code = study.process.poll()
        assert code is None, f"exit code {code}\n{study.log[-4000:]}"
        return False

    eventually(there, "the next reports", limit_s=2 * LIMIT_S)
