"""Random faults in one study, whose results must be those of an undisturbed study."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import psutil
import pytest

from spark_hpo.search.schedulers.rungs import bracket_rungs, resource_levels
from tests.faults.cost_table import CostTable
from tests.faults.processes import LIMIT_S, eventually, stopped
from tests.faults.small_disk import SmallDisk, can_mount
from tests.faults.study_run import StudyRun

# Six faults with their recoveries and several drivers, perhaps on a slow machine.
pytestmark = pytest.mark.timeout(900)

SEEDS = range(10)
FAULTS_OF_A_STUDY = 6  # of ten kinds, or nine without permission to mount a disk
REPORTS_BETWEEN = 3  # reports between two faults
STOPPED_S = 3.0
DISK_KIB = 8192
# 42 trials at the lowest rung, 14 at the next, 4 at the last.
TRIALS, MAX_RESOURCE, REDUCTION_FACTOR = 42, 9, 3
SETTINGS: dict[str, Any] = {
    "step_s": 0.02,
    "data": {"cache": {"enabled": False}},  # so that the next reader sees a damaged table
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


class FaultInjector:
    """Injects one fault after another into a study. The seed determines the faults and their targets."""

    def __init__(self, study: StudyRun, disk: SmallDisk | None, seed: int) -> None:
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
        """Yield different kinds of faults in random order."""
        for index in self._rng.permutation(len(self.faults))[:FAULTS_OF_A_STUDY]:
            yield self.faults[index]

    def act(self, fault: Callable[[], None]) -> None:
        assert len(self._study.reported()) < NUM_ASSIGNMENTS, f"the study has ended after {self.done}"
        self.done.append(fault.__name__)
        with contextlib.suppress(psutil.NoSuchProcess):  # the process had ended
            fault()

    def kill_an_executor(self) -> None:
        self._one_of(self._study.processes.executors()).kill()

    def kill_a_rank(self) -> None:
        self._a_rank().kill()

    def stop_a_rank(self) -> None:
        """Stop a rank for good: the driver has to detect this."""
        self._a_rank().send_signal(signal.SIGSTOP)

    def stop_an_executor_for_a_while(self) -> None:
        with stopped(self._one_of(self._study.processes.executors())):
            time.sleep(STOPPED_S)

    def kill_the_driver(self) -> None:
        self._study.kill_driver()
        self._study.start_driver()

    def interrupt_the_driver(self) -> None:
        assert self._study.process is not None
        self._study.process.terminate()
        self._driver_ends_with(130)
        self._study.start_driver()

    def start_a_second_driver(self) -> None:
        first = self._study.process
        self._study.start_driver(log="second.txt")
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
        self._study.start_driver()

    def damage_the_table(self) -> None:
        """Truncate a file, and repair it when the driver has ended because of it."""
        file = self._study.folder / "table/train/part-0.parquet"
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        self._driver_ends_with(3)
        file.write_bytes(whole)
        self._study.start_driver()

    def _driver_ends_with(self, code: int) -> None:
        assert self._study.process is not None
        found = self._study.process.wait(LIMIT_S)
        assert found == code, f"exit code {found}\n{self._study.log[-4000:]}"

    def _a_rank(self) -> psutil.Process:
        """Return a rank that has just made a step."""
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
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """The results of the study without faults."""
    folder = tmp_path_factory.mktemp("expected")
    study = StudyRun(folder, **{**SETTINGS, "step_s": 0.0}, backend="inline")
    study.finish_and_check()
    return study.results()


def test_study_has_sixty_assignments() -> None:
    levels = resource_levels(1, MAX_RESOURCE, REDUCTION_FACTOR)
    rungs = bracket_rungs(TRIALS, levels, REDUCTION_FACTOR)
    assert sum(rung.size for rung in rungs) == NUM_ASSIGNMENTS


@pytest.mark.parametrize("seed", SEEDS)
def test_study_with_random_faults_gives_the_undisturbed_results(
    new_study: Callable[..., StudyRun],
    costs: CostTable,
    expected: dict[tuple[int, int], Any],
    small_disk: Callable[[int], SmallDisk],
    seed: int,
) -> None:
    disk = small_disk(DISK_KIB) if can_mount() else None
    study = (
        new_study(**SETTINGS) if disk is None else disk.attach(new_study(**SETTINGS, study_dir="disk/study"))
    )
    injector = FaultInjector(study, disk, seed)
    study.start_driver()
    before: dict[tuple[int, int], Any] = {}
    lost = 0
    for fault in injector.schedule():
        reach(study, len(study.reported()) + REPORTS_BETWEEN)
        lost += len(before.keys() - study.results().keys())
        before = study.results()
        injector.act(fault)
    reach(study, NUM_ASSIGNMENTS)
    study.finish_and_check()

    lost += len(before.keys() - study.results().keys())
    assert lost == 0, injector.done
    # Storage and data failures only if a full disk or a damaged file was among the faults.
    allowed = {"infrastructure", "interrupted"}
    allowed |= {"storage"} if "fill_the_disk" in injector.done else set()
    allowed |= {"data"} if "damage_the_table" in injector.done else set()
    assert {event["failure"]["kind"] for event in study.of_kind("lost")} <= allowed, injector.done
    assert study.results() == expected, injector.done
    costs.add(
        f"random, {FAULTS_OF_A_STUDY} faults per study",
        tries=FAULTS_OF_A_STUDY,
        repeated_s=study.repeated_s(),
    )


def reach(study: StudyRun, reports: int) -> None:
    """Wait for a number of reports, from a driver that must not end before."""

    def there() -> bool:
        if len(study.reported()) >= reports:
            return True
        assert study.process is not None
        code = study.process.poll()
        assert code is None, f"exit code {code}\n{study.log[-4000:]}"
        return False

    eventually(there, "the next reports", limit_s=2 * LIMIT_S)
