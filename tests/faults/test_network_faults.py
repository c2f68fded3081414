"""Ranks that cannot reach each other any more, and executors that leave and return."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.cost_table import CostTable
from tests.faults.network import Network
from tests.faults.processes import eventually
from tests.faults.study_run import StudyRun
from tests.support.standalone import StandaloneCluster, standalone_cluster

NewStudy = Callable[..., StudyRun]


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    probe = ["unshare", "--net", "--uts", "--mount", "ip", "link", "set", "lo", "up"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("makes a network namespace, which takes a superuser and iproute2")
    (tmp_path / "one").mkdir()
    network = Network(tmp_path / "one")
    yield network
    network.close()


def test_ranks_cut_off_from_each_other_are_retried(
    new_study: NewStudy, costs: CostTable, network: Network
) -> None:
    study = new_study(
        step_s=0.1,
        resources={"world_size": 2, "rank_timeout_s": 5, "max_infra_retries": 6},
        budget={"trials": 1},
    )
    study.start_driver(command=(*network.command, *study.command))
    victim = study.wait_for_step(0, step=3)
    network.cut()
    cut = time.time()
    eventually(lambda: len(study.lost()) >= 1, "the loss of the attempt")
    network.restore()
    again = study.wait_for_step(0, after=cut + 1, not_by={victim.pid})
    study.finish_and_check()

    assert study.lost()[0] == (0, 1)
    assert {e["failure"]["kind"] for e in study.of_kind("lost")} == {"infrastructure"}
    costs.add("network cut between ranks", repeated_s=study.repeated_s(), recovery_s=again.time - cut)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandaloneCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with standalone_cluster(folder, workers=2, cores=1) as cluster:
        yield cluster


@pytest.mark.cluster
def test_study_waits_until_there_are_enough_slots_again(
    new_study: NewStudy, costs: CostTable, cluster: StandaloneCluster
) -> None:
    study = new_study(
        step_s=0.1,
        spark={"spark.master": cluster.url},
        resources={"world_size": 2, "rank_timeout_s": 6, "max_infra_retries": 3},
        budget={"trials": 2},
    )
    study.start_driver()
    victim = study.wait_for_step(0, step=3)
    cluster.workers[1].kill()
    killed = time.time()
    eventually(lambda: "no free slot for a trial; waiting" in study.log, "word of it")
    assert study.process is not None
    assert study.process.poll() is None
    cluster.add_worker()
    back = time.time()
    again = study.wait_for_step(0, after=killed, not_by={victim.pid})
    study.finish_and_check()

    assert again.time > back, "it cannot have been before"
    assert set(study.results()) == {(0, 3), (1, 3)}
    costs.add(
        "slots below the world size, then enough",
        repeated_s=study.repeated_s(),
        recovery_s=again.time - back,
    )
