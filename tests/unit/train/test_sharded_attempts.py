"""Attempts of several real ranks whose model FSDP2 shards: each saves its part, in the background."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir import layout, manifest
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import StrategyKind, TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.gloo_ranks import run_ranks
from tests.support.tables import write_clusters
from tests.support.torch_versions import needs_newer_fsdp

pytestmark = pytest.mark.medium

STEPS = 4  # per pass: 120 rows in batches of 32


class Failing(TabularTask):
    """Fails in a step, and notes in the loss how many steps a rank has trained."""

    steps = 0

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            type(self).steps += 1
            if self.steps == self.params.get("fails_at"):
                raise ValueError(f"failed at step {self.steps}")
        return super().loss(outputs, batch)


@pytest.fixture(scope="module")
def server() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", timeout_s=60.0)
    yield server
    server.close()


@pytest.fixture
def spec(tmp_path: Path, server: RendezvousServer) -> RankSpec:
    settings = TrainingSettings(batch_size=32, strategy=StrategyKind.FSDP, checkpoint_epochs=1)
    return RankSpec(
        study_id=tmp_path.name,
        storage=Storage(tmp_path / "study"),
        trainable=Failing,
        table=open_table(str(write_clusters(tmp_path / "table"))),
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=settings,
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
        rendezvous=server.address,
    )


def assignment(start: int, stop: int, path: str | None = None, attempt: int = 1, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=attempt,
        params={"learning_rate": 0.01, "hidden_units": 8, "dropout": 0.0, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def losses(report: Report) -> list[float]:
    assert report.failure is None, report.failure.traceback
    return [m.metrics["loss"] for m in report.curve]


@needs_newer_fsdp
def test_rungs_continue_with_other_numbers_of_ranks(spec: RankSpec) -> None:
    # Each step reads all rows, because the order of rows depends on the number of ranks.
    spec = replace(spec, settings=replace(spec.settings, batch_size=120))
    other = replace(spec, storage=Storage(spec.storage.url + "-other"), rendezvous=None)
    whole = run_rank(other, assignment(0, 3), rank=0, world_size=1)
    first = run_ranks(spec, assignment(0, 1))
    assert first.checkpoint == layout.checkpoint(4, 1, 1, suffix=layout.MANIFEST)
    assert len(manifest.parts(spec.storage, first.checkpoint)) == 2
    second = run_ranks(spec, assignment(1, 2, first.checkpoint), 3)
    third = run_rank(spec, assignment(2, 3, second.checkpoint), rank=0, world_size=1)
    found = [*losses(first), *losses(second), *losses(third)]
    assert found == pytest.approx(losses(whole), rel=1e-4)
    loaded = checkpoint.load(spec.storage, second.checkpoint or "")  # as export and registration do
    assert all(type(tensor) is Tensor for tensor in loaded["model"].values())


def test_attempt_resumes_the_parts_that_a_failed_one_saved(spec: RankSpec) -> None:
    undisturbed = losses(run_ranks(spec, assignment(0, 3)))
    failed = run_ranks(spec, replace(assignment(0, 3, fails_at=2 * STEPS + 2), trial_id=5))
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.TRIAL
    path = layout.partial(5, 1, suffix=layout.MANIFEST)
    assert len(manifest.parts(spec.storage, path)) == 2, "written in the background"
    # Fails if it does not resume: the first two passes would be trained again.
    report = run_ranks(spec, replace(assignment(0, 3, attempt=2, fails_at=STEPS + 1), trial_id=5))
    assert losses(report) == pytest.approx(undisturbed, rel=1e-6)
    assert report.checkpoint is not None


def test_attempt_skips_parts_that_are_damaged(spec: RankSpec) -> None:
    run_ranks(spec, assignment(0, 3, fails_at=2 * STEPS + 2))
    path = layout.partial(4, 1, suffix=layout.MANIFEST)
    part = manifest.part_path(path, sorted(manifest.parts(spec.storage, path))[1])
    spec.storage.delete(part)
    report = run_ranks(spec, assignment(0, 2, attempt=2))
    assert [m.resource for m in report.curve] == [1, 2]
    assert report.failure is None


def test_attempt_that_was_given_up_saves_no_parts(spec: RankSpec) -> None:
    spec.storage.write(layout.fence(4, 0), b"2")
    report = run_ranks(spec, assignment(0, 1))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.STORAGE
    assert spec.storage.names(layout.checkpoints(4)) == []
