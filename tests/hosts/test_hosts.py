"""Studies on a Spark cluster of several hosts: each has its own name, address, clock, files and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.cluster import WORKERS, HostsCluster, HostsStudy, cluster_of
from tests.support.hosts import missing_parts

pytestmark = pytest.mark.skipif(bool(missing_parts()), reason=f"needs {missing_parts()}")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[HostsCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with cluster_of(folder) as cluster:
        yield cluster


@pytest.fixture
def new_study(tmp_path: Path, cluster: HostsCluster) -> Iterator[Callable[..., HostsStudy]]:
    studies: list[HostsStudy] = []

    def make(**config: Any) -> HostsStudy:
        folder = tmp_path / "study"
        folder.mkdir()
        studies.append(HostsStudy(folder, cluster, **config))
        return studies[-1]

    yield make
    for study in studies:
        study.kill_all()


TWO_RANKS = {"world_size": 2, "rank_timeout_s": 60, "slot_timeout_s": 60}


@pytest.mark.parametrize("rendezvous", ["driver", "spark"])
def test_ranks_of_a_trial_train_together_on_two_hosts(
    new_study: Callable[..., HostsStudy], rendezvous: str
) -> None:
    study = new_study(resources={**TWO_RANKS, "rendezvous": rendezvous}, budget={"trials": 2})
    study.finish_and_check()
    for trial_id in (0, 1):
        assert study.hosts_of_trial(trial_id) == set(WORKERS)
        assert len({(step.rank, step.host) for step in study.steps_of(trial_id)}) == 2
    assert study.lost() == []
