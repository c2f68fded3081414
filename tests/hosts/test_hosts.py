"""Studies on a Spark cluster of several hosts: each has its own name, address, clock, files and processes.

The hosts accept connections only on the ports that `docs/cluster.md` lists.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.processes import eventually
from tests.hosts.cluster import (
    DRIVER,
    RANK_PORTS,
    SPARK_PORTS,
    STORE_PORTS,
    WORKERS,
    HostsCluster,
    HostsStudy,
    cluster_of,
)
from tests.support.hosts import missing_parts
from tests.support.workspace import ROOT

MISSING = missing_parts()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}"), pytest.mark.timeout(900)]

NewStudy = Callable[..., HostsStudy]
TWO_RANKS = {"world_size": 2, "rank_timeout_s": 60, "ports": STORE_PORTS, "max_infra_retries": 6}
CUT_OFF_S = 12  # longer than Spark waits for an executor, see SPARK_SETTINGS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostsCluster]:
    with cluster_of(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def new_study(tmp_path: Path, cluster: HostsCluster) -> Iterator[NewStudy]:
    studies: list[HostsStudy] = []
    cluster.hosts[DRIVER].allow_ports(SPARK_PORTS, STORE_PORTS)

    def make(**config: Any) -> HostsStudy:
        folder = tmp_path / "study"
        folder.mkdir()
        studies.append(HostsStudy(folder, cluster, **config))
        return studies[-1]

    yield make
    for study in studies:
        study.kill_all()


def test_hosts_disappear_with_a_killed_test_run(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from tests.support.hosts import Hosts;"
        "hosts = Hosts(pathlib.Path(sys.argv[1]), ['a', 'b']);"
        "print(hosts['a'].init, hosts['b'].init, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    first_processes = [int(pid) for pid in run.stdout.split()]
    assert len(first_processes) == 2, run.stderr
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in first_processes), "their end", limit_s=20)


@pytest.mark.parametrize(
    ("rendezvous", "driver_ports", "ports"),
    [("driver", (SPARK_PORTS, STORE_PORTS), STORE_PORTS), ("spark", (SPARK_PORTS,), RANK_PORTS)],
)
def test_two_hosts_train_a_trial_over_the_documented_ports(
    new_study: NewStudy, cluster: HostsCluster, rendezvous: str, driver_ports: tuple[str, ...], ports: str
) -> None:
    driver, worker = cluster.hosts[DRIVER], cluster.hosts[WORKERS[0]]
    driver.allow_ports(*driver_ports)
    study = new_study(resources={**TWO_RANKS, "rendezvous": rendezvous, "ports": ports}, budget={"trials": 2})
    study.finish_and_check()
    for trial_id in (0, 1):
        assert {(step.rank, step.host) for step in study.steps_of(trial_id)} in (
            {(0, "two"), (1, "three")},
            {(0, "three"), (1, "two")},
        )
    assert study.lost() == []
    hosts = [driver, *(cluster.hosts[name] for name in WORKERS)]
    assert [host.refused_connections() for host in hosts] == [0, 0, 0]
    with pytest.raises(AssertionError):  # the filter does its work
        worker.run("bash", "-c", f"timeout 2 bash -c '< /dev/tcp/{driver.address}/40002'")
    assert driver.refused_connections() > 0


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the clock of the processes that load it."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_hosts_whose_clocks_are_an_hour_off_train_and_respect_the_lease(
    new_study: NewStudy, cluster: HostsCluster, clock: Path
) -> None:
    clocks = {"LD_PRELOAD": str(clock), "CLOCKS": "two=-3600 three=3600"}
    study = new_study(
        step_s=0.3,
        spark={f"spark.executorEnv.{name}": value for name, value in clocks.items()},
        resources=TWO_RANKS,
        budget={"trials": 1},
    )
    study.start_driver()
    eventually(lambda: {step.host for step in study.steps()} == set(WORKERS), "steps on both hosts")
    shifts = {step.host: round((step.time - time.time()) / 3600) for step in study.steps()}
    assert shifts == {"two": -1, "three": 1}
    for name in WORKERS:
        second = subprocess.run(
            [
                *cluster.hosts[name].command(study.folder),
                *("env", f"PYTHONPATH={ROOT}", *(f"{key}={value}" for key, value in clocks.items())),
                *(*study.python, "-m", "spark_hpo", "gc", "study"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "running this study, so nothing was deleted" in second.stdout, second.stderr
    study.finish_and_check()
    assert study.lost() == []


def test_host_that_is_cut_off_in_a_rung_and_joins_again_is_used_again(
    new_study: NewStudy, cluster: HostsCluster
) -> None:
    study = new_study(
        step_s=0.5,
        resources={**TWO_RANKS, "slot_timeout_s": 200},
        budget={"trials": 1},
        training={"batch_size": 16, "checkpoint_every": {"epochs": 1}},
    )
    study.start_driver()
    study.wait_for_step(0, step=9)  # in the second epoch, after a checkpoint
    before = len(study.lost())  # 0, unless this machine is slow
    cluster.hosts.cut(cluster.hosts["three"])
    cut = time.time()
    eventually(lambda: len(study.lost()) > before, "the loss of the attempt")
    time.sleep(max(0.0, cut + CUT_OFF_S - time.time()))
    assert study.process is not None
    assert study.process.poll() is None
    cluster.hosts.join(cluster.hosts["three"])
    joined = time.time()
    study.finish_and_check()

    again = [step for step in study.steps_of(0) if step.time > joined]
    assert {step.host for step in again} == set(WORKERS), "both hosts train again"
    assert min(step.step for step in again) >= 8, "from the checkpoint after the first epoch"
    assert {event["failure"]["kind"] for event in study.of_kind("lost")} == {"infrastructure"}


def test_trials_of_a_host_that_vanishes_continue_on_the_other_one(
    new_study: NewStudy, cluster: HostsCluster
) -> None:
    """Last in this file, because the host does not return."""
    study = new_study(
        step_s=0.5, resources={"rank_timeout_s": 60, "max_infra_retries": 6}, budget={"trials": 2}
    )
    study.start_driver()
    eventually(lambda: any(step.host == "three" for step in study.steps()), "a step on the host")
    cluster.hosts.vanish(cluster.hosts["three"])
    vanished = time.time()
    study.finish_and_check()

    assert {step.host for step in study.steps() if step.time > vanished} == {"two"}
    assert set(study.results()) == {(0, 3), (1, 3)}
    assert len(study.lost()) == 1, "the trial that it was training"
