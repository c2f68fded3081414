"""FSDP on two real ranks: what DDP trains, in about half the memory of a rank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from spark_hpo.config import build_config
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.training_settings import StrategyKind, TrainingSettings
from spark_hpo.trial import Assignment, FailureKind, Report
from tests.support.gloo_ranks import run_ranks
from tests.support.tables import write_clusters
from tests.support.torch_versions import needs_newer_fsdp

ROWS = 121
EPOCHS = 5  # of 11 steps


class Residual(nn.Module):
    """Residual blocks in a list, of which the last is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 33)
        self.norm = nn.BatchNorm1d(2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(33, 33), nn.ReLU()) for _ in range(4)])
        self.last = nn.Linear(33, 2)

    def forward(self, batch: Batch) -> Tensor:
        hidden: Tensor = self.first(self.norm(torch.stack([batch["x"], batch["y"]], dim=1)))
        for block in self.blocks[:3]:
            hidden = hidden + block(hidden)
        outputs: Tensor = self.last(hidden)
        return outputs


def local_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the tensors on this rank."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if isinstance(t, Tensor)]
    return sum(tensor.numel() * tensor.itemsize for tensor in local)


class ResidualTask(LabelledTask):
    """Writes the bytes of parameters and optimizer of each rank to the folder `measured`."""

    def build_model(self) -> nn.Module:
        self.model = Residual()
        return self.model

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        self.optimizer = super().build_optimizer(model)
        return self.optimizer

    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        rank = torch.distributed.get_rank()
        used = local_bytes([*self.model.parameters(), *state])
        Path(self.params["measured"], f"rank-{rank}").write_text(json.dumps(used))
        return super().metrics(outputs, batch)


class Scaled(nn.Module):
    """A parameter without dimensions, which FSDP cannot shard."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.layer = nn.Linear(2, 2)

    def forward(self, batch: Batch) -> Tensor:
        outputs: Tensor = self.layer(torch.stack([batch["x"], batch["y"]], dim=1)) * self.scale
        return outputs


class ScaledTask(LabelledTask):
    def build_model(self) -> nn.Module:
        return Scaled()


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
        trainable=ResidualTask,
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=11, clip_norm=0.5),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=1000,
        rendezvous=server.address,
    )


def with_strategy(spec: RankSpec, strategy: StrategyKind, **settings: Any) -> RankSpec:
    return replace(
        spec,
        settings=replace(spec.settings, strategy=strategy, **settings),
        storage=Storage(f"{spec.storage.url}-{strategy}"),
        study_id=f"{spec.study_id}-{strategy}",
    )


def assignment(start: int, stop: int, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=1,
        params={"learning_rate": 0.003, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def curve(*reports: Report) -> list[float]:
    for report in reports:
        assert report.failure is None, report.failure.traceback
    return [m.metrics[name] for r in reports for m in r.curve for name in ("train_loss", "loss")]


@needs_newer_fsdp
@pytest.mark.medium
def test_fsdp_trains_as_ddp_in_half_the_memory(spec: RankSpec, tmp_path: Path) -> None:
    found = {}
    for strategy in StrategyKind:
        folder = tmp_path / strategy
        folder.mkdir()
        own = with_strategy(spec, strategy)
        report = run_ranks(own, assignment(0, EPOCHS, measured=str(folder)))
        used = [int((folder / f"rank-{rank}").read_text()) for rank in (0, 1)]
        found[strategy] = curve(report), used, checkpoint.load(own.storage, report.checkpoint or "")
    ddp, fsdp = found[StrategyKind.DDP], found[StrategyKind.FSDP]
    assert fsdp[0] == pytest.approx(ddp[0], abs=1e-4)
    assert len(set(ddp[1])) == 1
    assert max(fsdp[1]) < 0.6 * ddp[1][0]
    for name, expected in ddp[2]["model"].items():
        torch.testing.assert_close(fsdp[2]["model"][name], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("first", list(StrategyKind))
def test_trial_resumes_with_the_other_strategy(spec: RankSpec, tmp_path: Path, first: StrategyKind) -> None:
    spec = replace(spec, settings=replace(spec.settings, batch_size=40))
    whole = run_ranks(spec, assignment(0, 2, measured=str(tmp_path)))
    begun = replace(with_strategy(spec, first), study_id=f"{spec.study_id}-begun")
    lower = run_ranks(begun, assignment(0, 1, measured=str(tmp_path)))
    other = StrategyKind.DDP if first is StrategyKind.FSDP else StrategyKind.FSDP
    resumed = replace(begun, settings=replace(begun.settings, strategy=other))
    upper = run_ranks(resumed, assignment(1, 2, lower.checkpoint, measured=str(tmp_path)))
    assert curve(lower, upper) == pytest.approx(curve(whole), abs=1e-4)


@pytest.mark.medium
def test_micro_batches_of_fsdp_train_as_whole_batches(spec: RankSpec, tmp_path: Path) -> None:
    class Without(ResidualTask):
        def build_model(self) -> nn.Module:
            model = super().build_model()
            self.model.norm = nn.Identity()  # type: ignore[assignment] # it would see other rows
            return model

    spec = replace(with_strategy(spec, StrategyKind.FSDP, batch_size=60), trainable=Without)
    whole = run_ranks(spec, assignment(0, 2, measured=str(tmp_path)))
    cut = replace(spec, settings=replace(spec.settings, micro_batch=7), study_id=f"{spec.study_id}-cut")
    parts = run_ranks(cut, assignment(0, 2, measured=str(tmp_path)))
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-4)


@pytest.mark.medium
def test_failure_names_the_model_that_fsdp_cannot_shard(spec: RankSpec) -> None:
    spec = replace(with_strategy(spec, StrategyKind.FSDP), trainable=ScaledTask)
    failure = run_ranks(spec, assignment(0, 1)).failure
    assert failure is not None
    assert failure.kind is FailureKind.TRIAL
    assert "training.strategy: fsdp" in failure.message
    assert "ScaledTask" in failure.message
    assert "scale" in failure.message


def test_modules_to_shard_are_the_items_of_lists_inner_ones_first() -> None:
    inner = nn.ModuleList([nn.Linear(1, 1)])
    block = nn.Module()
    block.layers = inner
    model = nn.Module()
    model.blocks = nn.ModuleList([block, nn.ReLU()])
    task = ScaledTask({}, None)  # type: ignore[arg-type] # it asks only for modules
    assert task.modules_to_shard(model) == [inner[0], block]


@pytest.mark.parametrize(("key", "value"), [("micro_batch", "auto"), ("precision", "fp16")])
def test_fsdp_refuses_settings_that_need_all_parameters(key: str, value: str) -> None:
    record = {
        "name": "s",
        "study_dir": "s",
        "task": "tabular",
        "data": {"path": "t"},
        "objective": {"metric": "loss", "mode": "min"},
        "space": {},
        "search": {"max_resource": 3},
        "budget": {"trials": 1},
        "training": {"strategy": "fsdp", key: value},
    }
    with pytest.raises(ConfigError) as raised:
        build_config(record, place="test")
    assert f"training.{key}" in str(raised.value)
