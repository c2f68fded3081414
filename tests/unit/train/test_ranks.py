"""Several real ranks, connected by gloo, train what one rank trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.gloo_ranks import run_ranks
from tests.support.tables import write_clusters

pytestmark = pytest.mark.medium

ROWS = 121  # one of two ranks gets one row more than the other


class Branches(nn.Module):
    """Two heads and a branch, of which a step uses a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 8)
        self.branch = nn.Linear(8, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])

    def forward(self, batch: Batch, *, uses_branch: bool) -> list[Tensor]:
        hidden = self.first(torch.stack([batch["x"], batch["y"]], dim=1)).relu()
        if uses_branch:
            hidden = hidden + self.branch(hidden).relu()
        return [head(hidden) for head in self.heads]


class BranchTask(LabelledTask):
    """Trains one head. `branch` says which steps use the branch: all, none or odd ones."""

    steps = 0

    def build_model(self) -> nn.Module:
        return Branches()

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        self.steps += model.training
        branch = self.params["branch"]
        used = branch == "all" or (branch == "odd" and self.steps % 2 == 1)
        outputs: Tensor = model(batch, uses_branch=used)[0]
        if self.params.get("both_heads"):
            outputs = outputs + 0.1 * model(batch, uses_branch=used)[1]
        return outputs


@pytest.fixture(scope="module")
def server() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", timeout_s=60.0)
    yield server
    server.close()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters", rows=ROWS)))


@pytest.fixture
def spec(table: Table, tmp_path: Path, server: RendezvousServer) -> RankSpec:
    return RankSpec(
        study_id=tmp_path.name,
        storage=Storage(tmp_path / "study"),
        trainable=BranchTask,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=ROWS),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
        rendezvous=server.address,
    )


def assignment(start: int, stop: int, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=1,
        params={"learning_rate": 0.01, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def one_rank(spec: RankSpec, assignment: Assignment) -> Report:
    other = replace(spec, storage=Storage(spec.storage.url + "-one-rank"), rendezvous=None)
    return run_rank(other, assignment, rank=0, world_size=1)


@pytest.mark.parametrize("branch", ["all", "none"])
def test_ranks_train_a_trial_that_leaves_parameters_out(spec: RankSpec, branch: str) -> None:
    """Both leave out a head, after its output was computed; "none" also a branch of the model."""
    one = one_rank(spec, assignment(0, 3, branch=branch))
    two = run_ranks(spec, assignment(0, 3, branch=branch))
    assert one.failure is None
    assert two.failure is None, two.failure.traceback
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5)


def test_failure_names_a_parameter_that_only_some_steps_use(spec: RankSpec) -> None:
    """The first step uses all parameters. A later one would leave the ranks with different weights."""
    two = run_ranks(spec, assignment(0, 3, branch="odd", both_heads=True))
    assert two.failure is not None
    assert two.failure.kind is FailureKind.TRIAL
    assert "'branch.weight'" in two.failure.message


def test_ranks_train_steps_that_differ_if_the_first_leaves_parameters_out(spec: RankSpec) -> None:
    one = one_rank(spec, assignment(0, 4, branch="odd"))
    two = run_ranks(spec, assignment(0, 4, branch="odd"))
    assert two.failure is None, two.failure.traceback
    assert len(two.curve) == len(one.curve) == 4
