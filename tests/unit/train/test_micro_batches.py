"""Micro-batches: gradients of the parts of a batch add up to those of the batch."""

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
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.micro_batches import MicroBatches
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.gloo_ranks import run_ranks
from tests.support.tables import write_clusters

ROWS = 121


class DoubleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, batch: Batch) -> Tensor:
        outputs: Tensor = self.layers(torch.stack([batch["x"], batch["y"]], dim=1).double())
        return outputs


class SmallDevice(LabelledTask):
    """Trains in float64 on a device that takes at most `fits` rows, and `evaluation_fits` rows to measure."""

    def build_model(self) -> nn.Module:
        return DoubleNet()

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        is_small = rank == self.params.get("small_rank", rank)
        fits = self.params.get("fits" if model.training else "evaluation_fits", ROWS)
        if is_small and len(batch["x"]) > fits:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(batch['x'])} rows")
        return super().forward(model, batch)


class SmallState(torch.optim.AdamW):
    """An optimizer that runs out of memory after its first updates, as one may that allocates its state."""

    def __init__(self, model: nn.Module, lr: float, fails: int) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.fails = fails

    def step(self, closure: Any = None) -> Any:
        super().step()
        if self.fails:
            self.fails -= 1
            raise torch.OutOfMemoryError("CUDA out of memory: the state")


class SmallOptimizer(SmallDevice):
    """On one of the ranks, or on the only one, the first `fails` updates run out of memory."""

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 1
        return SmallState(model, self.params["learning_rate"], self.params["fails"] if rank == 1 else 0)


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
        trainable=SmallDevice,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=ROWS, clip_norm=0.5),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
        rendezvous=server.address,
    )


def with_micro_batch(spec: RankSpec, micro_batch: Any, name: str) -> RankSpec:
    """The same study in another directory, with this setting."""
    settings = replace(spec.settings, micro_batch=micro_batch)
    return replace(spec, settings=settings, storage=Storage(f"{spec.storage.url}-{name}"))


def assignment(start: int = 0, stop: int = 3, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=1,
        params={"learning_rate": 0.05, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def run(spec: RankSpec, assignment: Assignment, ranks: int = 1) -> Report:
    if ranks > 1:
        return run_ranks(spec, assignment, ranks)
    return run_rank(replace(spec, rendezvous=None), assignment, rank=0, world_size=1)


def weights(spec: RankSpec, report: Report) -> Tensor:
    assert report.failure is None, report.failure.traceback
    assert report.checkpoint is not None
    state = checkpoint.load(spec.storage, report.checkpoint)["model"]
    return torch.cat([value.flatten() for value in state.values()])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.medium)])
def test_micro_batches_train_the_same_weights(spec: RankSpec, ranks: int) -> None:
    whole = weights(spec, run(spec, assignment()))
    cut = with_micro_batch(spec, 4, "cut")
    report = run(cut, assignment(fits=4), ranks)
    torch.testing.assert_close(weights(cut, report), whole, rtol=1e-6, atol=1e-9)
    assert report.notes == {}, "nothing had to be halved"


@pytest.mark.parametrize(
    ("ranks", "limits"),
    [
        (1, {"fits": 13, "evaluation_fits": 7}),
        pytest.param(2, {"fits": 13, "small_rank": 1, "evaluation_fits": 7}, marks=pytest.mark.medium),
    ],
)
def test_auto_halves_a_batch_that_does_not_fit_on_any_rank(
    spec: RankSpec, ranks: int, limits: dict[str, int]
) -> None:
    whole = run(spec, assignment())
    auto = with_micro_batch(spec, "auto", "auto")
    report = run(auto, assignment(**limits), ranks)
    torch.testing.assert_close(weights(auto, report), weights(spec, whole), rtol=1e-6, atol=1e-9)
    assert report.metrics == pytest.approx(whole.metrics)
    # One rank tries 121, 41 and 18 rows; two ranks try 61 and 21.
    found = {"rows": 9, "halved": 3} if ranks == 1 else {"rows": 10, "halved": 2}
    assert report.notes == {"micro_batch": found}


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.medium)])
def test_auto_repeats_a_first_update_that_does_not_fit(spec: RankSpec, ranks: int) -> None:
    spec = replace(spec, trainable=SmallOptimizer)
    whole = run(spec, assignment(fails=0))
    auto = with_micro_batch(spec, "auto", "auto")
    report = run(auto, assignment(fails=2), ranks)
    torch.testing.assert_close(weights(auto, report), weights(spec, whole), rtol=1e-6, atol=1e-9)
    assert report.notes["micro_batch"]["halved"] == 2
    failure = run(with_micro_batch(spec, None, "fixed"), assignment(fails=1)).failure
    assert failure is not None
    assert failure.kind is FailureKind.MEMORY


def test_auto_remembers_the_limit_in_the_next_rung(spec: RankSpec) -> None:
    auto = with_micro_batch(spec, "auto", "auto")
    first = run(auto, assignment(0, 1, fits=13))
    second = run(auto, assignment(1, 3, first.checkpoint, fits=13))
    assert second.notes == first.notes, "no batch was tried again"


def test_batch_that_does_not_fit_fails_the_trial_without_auto(spec: RankSpec) -> None:
    for micro_batch in (None, 40):
        failure = run(with_micro_batch(spec, micro_batch, "fixed"), assignment(fits=13)).failure
        assert failure is not None
        assert failure.kind is FailureKind.MEMORY
        assert "training.micro_batch: auto" in failure.message


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.medium)])
def test_auto_gives_up_when_one_row_does_not_fit(spec: RankSpec, ranks: int) -> None:
    report = run(with_micro_batch(spec, "auto", "auto"), assignment(fits=0), ranks)
    assert report.failure is not None
    assert report.failure.kind is FailureKind.MEMORY


def test_other_errors_are_not_tried_again(spec: RankSpec) -> None:
    report = run(with_micro_batch(spec, "auto", "auto"), assignment(learning_rate="high"))
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_cut_makes_equally_many_parts_on_all_ranks(ranks: int, limit: int) -> None:
    for global_rows in range(ranks, 40):
        shares = [global_rows // ranks + (rank < global_rows % ranks) for rank in range(ranks)]
        parts = [
            MicroBatches(limit, world_size=ranks).cut({"x": torch.arange(rows)}, global_rows)
            for rows in shares
        ]
        assert len({len(of_rank) for of_rank in parts}) == 1
        for rows, of_rank in zip(shares, parts, strict=True):
            assert torch.cat([part["x"] for part in of_rank]).tolist() == list(range(rows))
            assert all(len(part["x"]) > 0 for part in of_rank)
            if global_rows % ranks == 0:
                assert max(len(part["x"]) for part in of_rank) <= limit
