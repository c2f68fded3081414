"""The local backend: the contract of backends, and what happens when one of its processes dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from spark_hpo.backend.base import Backend
from spark_hpo.backend.local.backend import LocalBackend
from spark_hpo.testing import BackendContract, stub_training
from spark_hpo.trial import Assignment, Failure, FailureKind, Report
from tests.support.ranks import LIMIT_S, meet

# Ranks may not be able to import a test module: what is defined here travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def train(assignment: Assignment, *, rank: int, world_size: int, **_: Any) -> Report:
    """A stub of training, which may kill its process, leave a process behind, or wait for another trial."""
    params = assignment.params
    if params.get("die") == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if "child" in params:
        code = "import time; time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        Path(params["child"]).write_text(str(child.pid))
    if "pid" in params:
        Path(params["pid"], str(rank)).write_text(str(os.getpid()))
    if "print" in params:
        print("printed by a rank")
    report = stub_training(assignment, rank=rank, world_size=world_size)
    if "meet" in params and not meet(Path(params["meet"]), assignment.trial_id):
        report = replace(report, failure=Failure(kind=FailureKind.TRIAL, message="the other trial never ran"))
    return report


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def written_pid(file: Path) -> int:
    assert until(lambda: file.exists() and file.read_text() != "")
    return int(file.read_text())


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_hpo.backend.local.backend.num_cores", lambda: 2)


class TestLocalBackend(BackendContract):
    @pytest.fixture
    def backend(self, two_cores: None) -> Iterator[Backend]:
        backend = LocalBackend(train)
        yield backend
        backend.close()

    def test_num_slots_is_that_of_the_machine(self, backend: Backend) -> None:
        assert backend.num_slots == 2

    def test_assignments_run_at_the_same_time(self, backend: Backend, tmp_path: Path) -> None:
        for trial_id in (1, 2):
            backend.submit(self.assignment(trial_id, meet=str(tmp_path)))
        reports = [self.next_report(backend), self.next_report(backend)]
        assert {report.trial_id for report in reports} == {1, 2}
        assert [report.failure for report in reports] == [None, None]

    def test_every_assignment_has_its_own_process(self, backend: Backend) -> None:
        pids = set()
        for trial_id in range(3):
            backend.submit(self.assignment(trial_id))
            pids.add(self.next_report(backend).metrics["pid"])
        assert len(pids) == 3

    def test_assignment_whose_process_is_killed_is_lost(self, backend: Backend) -> None:
        backend.submit(self.assignment(1, die=0))
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is FailureKind.INFRASTRUCTURE
        assert failure.message == "the process of rank 0 was killed by SIGKILL"

    def test_process_killed_for_memory_fails_its_trial(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kills = iter([3, 4])  # the kernel's counter before and after
        name = "spark_hpo.backend.local.backend.num_out_of_memory_kills"
        monkeypatch.setattr(name, lambda: next(kills))
        backend.submit(self.assignment(1, die=0))
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is FailureKind.MEMORY
        assert "resources.max_concurrent" in failure.message

    def test_cancel_kills_a_rank_that_is_suspended(self, backend: Backend, tmp_path: Path) -> None:
        backend.submit(self.assignment(1, pid=str(tmp_path), seconds=LIMIT_S))
        pid = written_pid(tmp_path / "0")
        os.kill(pid, signal.SIGSTOP)
        backend.cancel(1)
        assert until(lambda: not is_running(pid))
        backend.submit(self.assignment(2))
        assert self.next_report(backend).trial_id == 2

    def test_processes_of_a_rank_end_with_it(self, backend: Backend, tmp_path: Path) -> None:
        backend.submit(self.assignment(1, child=str(tmp_path / "child")))
        assert self.next_report(backend).failure is None
        child = written_pid(tmp_path / "child")
        assert until(lambda: not is_running(child))

    def test_loss_of_the_server_loses_what_runs_and_nothing_else(
        self, backend: Backend, tmp_path: Path
    ) -> None:
        backend.submit(self.assignment(1, pid=str(tmp_path), seconds=LIMIT_S))
        rank = written_pid(tmp_path / "0")
        psutil.Process(rank).parent().kill()
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.kind is FailureKind.INFRASTRUCTURE
        assert until(lambda: not is_running(rank)), "a rank that nobody waits for would keep its GPU"
        backend.submit(self.assignment(2))
        assert self.next_report(backend).failure is None

    def test_output_of_a_rank_is_not_that_of_the_driver(
        self, backend: Backend, capfd: pytest.CaptureFixture[str]
    ) -> None:
        backend.submit(self.assignment(1, print=True))
        self.next_report(backend)
        assert "printed by a rank" not in capfd.readouterr().out


class TestLocalBackendOfTwoRanks(BackendContract):
    @pytest.fixture
    def backend(self, two_cores: None) -> Iterator[Backend]:
        backend = LocalBackend(train, world_size=2)
        yield backend
        backend.close()

    def test_report_of_two_ranks_is_that_of_rank_0(self, backend: Backend) -> None:
        backend.submit(self.assignment(1))
        metrics = self.next_report(backend).metrics
        assert (metrics["rank"], metrics["world_size"]) == (0, 2)

    def test_ranks_of_an_assignment_are_those_of_its_rung(self, two_cores: None) -> None:
        backend = LocalBackend(train, world_size={0: 1, 2: 2})
        try:
            assert backend.num_slots == 2
            for trial_id, rung, ranks in ((1, 0, 1), (2, 2, 2), (3, 1, 1)):
                backend.submit(replace(self.assignment(trial_id), rung=rung))
                assert self.next_report(backend).metrics["world_size"] == ranks
        finally:
            backend.close()

    def test_death_of_a_rank_ends_its_peer(self, backend: Backend, tmp_path: Path) -> None:
        backend.submit(self.assignment(1, die=1, pid=str(tmp_path), seconds=LIMIT_S))
        began = time.monotonic()
        failure = self.next_report(backend).failure
        assert failure is not None
        assert failure.message == "the process of rank 1 was killed by SIGKILL"
        assert time.monotonic() - began < LIMIT_S / 2
        assert [pid for pid in tmp_path.iterdir() if is_running(int(pid.read_text()))] == []


DRIVER = """
    import sys
    from spark_hpo.backend.local.backend import LocalBackend
    from spark_hpo.testing import BackendContract
    from tests.contract.test_local_backend import train

    backend = LocalBackend(train)
    backend.submit(BackendContract().assignment(1, pid=sys.argv[1], seconds=600))
    backend.wait(600)
"""


def test_ranks_end_with_a_killed_driver(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL) as driver:
        try:
            rank = written_pid(tmp_path / "0")
            server = psutil.Process(rank).parent()
        finally:
            driver.kill()
    assert until(lambda: not is_running(rank))
    assert until(lambda: not is_running(server.pid))
