"""Trials learn hyperparameters while they train: `run_rank`, in this process, and two ranks over gloo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind, ExtraLabel, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.rendezvous.world import RendezvousServer
from spark_hpo.train.task import Batch, LabelledTask
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import LearnedParameter, Learning, TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, FailureKind, Report, Split
from tests.support.documents import blocks
from tests.support.gloo_ranks import reports_of_ranks
from tests.support.tables import write_clusters

DECAY = LearnedParameter(name="weight_decay", low=1e-5, high=1.0, by_layer=True)
SMOOTHING = LearnedParameter(name="label_smoothing", low=0.0, high=0.5, initial=0.1)
RATE = LearnedParameter(name="learning_rate", low=1e-4, high=0.3)
PARAMS = {"learning_rate": 0.01, "hidden_units": 8, "hidden_layers": 1, "dropout": 0.2}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters")))


@pytest.fixture
def spec(table: Table, tmp_path: Path) -> RankSpec:
    return RankSpec(
        study_id=tmp_path.name,
        storage=Storage(tmp_path / "study"),
        trainable=TabularTask,
        table=table,
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=16),
        max_resource=9,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )


def learning(spec: RankSpec, *parameters: LearnedParameter, **settings: Any) -> RankSpec:
    defaults = {"every": 3, "terms": 3, "rate": 0.1, "warmup": 0}
    changed = Learning(parameters=parameters, **{**defaults, **settings})
    return replace(spec, settings=replace(spec.settings, learning=changed))


def assignment(start: int, stop: int, path: str | None = None, **params: Any) -> Assignment:
    return Assignment(
        trial_id=4,
        attempt=1,
        params={**PARAMS, **params},
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=path,
        seed=11,
    )


def run(spec: RankSpec, assignment: Assignment) -> Report:
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    return report


def learned(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("learned.")}


def state(spec: RankSpec, report: Report) -> Any:
    assert report.checkpoint is not None
    return checkpoint.load(spec.storage, report.checkpoint)


def test_curve_has_the_value_of_each_layer(spec: RankSpec) -> None:
    report = run(learning(spec, DECAY, SMOOTHING), assignment(0, 2))
    before, now = (learned(measurement.metrics) for measurement in report.curve)
    layers = ("learned.weight_decay.layers.0", "learned.weight_decay.layers.3")
    assert list(now) == [*layers, "learned.label_smoothing"]
    assert all(1e-5 <= now[layer] <= 1 for layer in layers)
    assert all(before[name] != now[name] for name in now)
    assert now[layers[0]] != now[layers[1]]


def test_parameter_of_the_trial_is_where_learning_starts(spec: RankSpec) -> None:
    spec = learning(spec, DECAY, SMOOTHING, every=1000)  # no outer step in these epochs
    report = run(spec, assignment(0, 1, weight_decay=1e-3))
    assert [f"{value:.6g}" for value in learned(report.metrics).values()] == ["0.001", "0.001", "0.1"]
    report = run(replace(spec, trainable=Momentum), assignment(0, 1, weight_decay=[1e-3, 1e-2]))
    assert [f"{value:.6g}" for value in learned(report.metrics).values()] == ["0.001", "0.01", "0.1"]


def test_warmup_lasts_for_at_most_a_third_of_the_training(spec: RankSpec) -> None:
    steps = -(-120 // 16)  # of an epoch
    spec = learning(spec, DECAY, every=1, warmup=1000)  # so 3 of 9 epochs
    curve = [
        learned(measurement.metrics) for measurement in run(spec, assignment(0, 4, weight_decay=1e-3)).curve
    ]
    assert spec.settings.learning is not None
    assert spec.settings.learning.first_step(9 * steps) == 3 * steps
    assert all(value == pytest.approx(1e-3) for values in curve[:3] for value in values.values())
    assert all(value != pytest.approx(1e-3) for value in curve[3].values())


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({"warmup": 100}, 1 / 20),  # 20 outer steps cross the range once
        ({"warmup": 0}, 1 / 25),
        ({"warmup": 400, "every": 40}, 0.1),  # a third of the steps, and then few outer steps
        ({"rate": 0.3}, 0.3),
    ],
)
def test_outer_steps_can_cross_the_range_once(settings: dict[str, Any], rate: float) -> None:
    assert Learning(parameters=(DECAY,), **settings).outer_rate(500) == pytest.approx(rate)


def test_learned_decay_replaces_that_of_the_optimizer(spec: RankSpec) -> None:
    spec = learning(spec, replace(DECAY, by_layer=False), every=1000)
    sizes = []
    for decay in (1.0, 1e-5):
        spec = replace(spec, storage=Storage(f"{spec.storage.url}-{decay}"))
        found = state(spec, run(spec, assignment(0, 9, weight_decay=decay)))
        assert found["optimizer"]["param_groups"][0]["weight_decay"] == 0
        sizes.append(sum(float(w.square().sum()) for w in found["model"].values() if w.ndim > 1))
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("parameters", [(DECAY, SMOOTHING, RATE), (RATE,)], ids=["all", "rate"])
def test_three_assignments_equal_one_bit_for_bit(
    spec: RankSpec, parameters: tuple[LearnedParameter, ...]
) -> None:
    spec = learning(spec, *parameters)
    first = run(spec, assignment(0, 1))
    second = run(spec, assignment(1, 3, first.checkpoint))
    third = run(spec, assignment(3, 6, second.checkpoint))
    other = replace(spec, storage=Storage(spec.storage.url + "-other"))
    at_once = run(other, assignment(0, 6))
    assert third.metrics == at_once.metrics
    assert [m.metrics for r in (first, second, third) for m in r.curve] == [m.metrics for m in at_once.curve]
    weights = state(spec, third)["model"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in state(other, at_once)["model"].items())


class Interrupted(TabularTask):
    """Fails once, in the middle of an epoch."""

    failures = 1
    steps = 0

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        Interrupted.steps += outputs.requires_grad
        if Interrupted.steps == 40 and Interrupted.failures:
            Interrupted.failures -= 1
            raise ConnectionError("lost")
        return super().training_loss(outputs, batch)


def test_attempt_resumes_within_an_epoch_bit_for_bit(spec: RankSpec, tmp_path: Path) -> None:
    spec = learning(spec, DECAY, SMOOTHING, RATE)
    spec = replace(spec, settings=replace(spec.settings, checkpoint_seconds=1e-9))
    whole = run(replace(spec, storage=Storage(spec.storage.url + "-whole")), assignment(0, 4))
    spec = replace(spec, trainable=Interrupted)
    assert run_rank(spec, assignment(0, 4), rank=0, world_size=1).failure is not None
    assert list(tmp_path.glob("study/checkpoints/trial-000004/partial-1.pt"))
    resumed = run(spec, replace(assignment(0, 4), attempt=2))
    assert [m.metrics for m in resumed.curve] == [m.metrics for m in whole.curve]


def test_rows_that_drive_outer_steps_do_not_measure(spec: RankSpec, table: Table) -> None:
    measuring, outer = table.halved(0)
    rows = [rows_of(part) for part in (measuring, outer, table)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == rows[2]
    report = run(learning(spec, DECAY), assignment(0, 1))
    measured = run(replace(spec, table=measuring), assignment(1, 1, report.checkpoint))
    assert report.metrics["loss"] == measured.metrics["loss"]


def rows_of(table: Table) -> set[tuple[float, float]]:
    loader = Loader(
        table,
        Split.VALIDATION,
        rank=0,
        world_size=1,
        batch_size=7,
        seed=0,
        reader="arrow",
        shuffle_window=None,
    )
    batches = list(next(loader.passes(0, 1)))
    return {pair for b in batches for pair in zip(b["x"].tolist(), b["y"].tolist(), strict=True)}


def test_rate_alone_keeps_all_rows_for_measuring(spec: RankSpec) -> None:
    report = run(learning(spec, RATE), assignment(0, 1))
    measured = run(spec, assignment(1, 1, report.checkpoint))
    assert report.metrics["loss"] == measured.metrics["loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rate_that_is_too_low_rises(spec: RankSpec, optimizer: str) -> None:
    spec = replace(spec, trainable=Momentum if optimizer == "sgd" else TabularTask)
    parameter = replace(RATE, initial=1e-3)
    report = run(learning(spec, parameter, rate=0.1), assignment(0, 4, learning_rate=1e-3))
    rates = [learned(m.metrics)["learned.learning_rate"] for m in report.curve]
    assert 1e-3 < rates[0] < rates[-1] < 0.3
    constant = run(
        replace(spec, storage=Storage(spec.storage.url + "-2")), assignment(0, 4, learning_rate=1e-3)
    )
    assert report.metrics["train_loss"] < constant.metrics["train_loss"]


class Momentum(TabularTask):
    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.params["learning_rate"], momentum=0.9)

    def build_schedule(self, optimizer: Optimizer, *, total_steps: int) -> None:
        return None


def test_rate_that_is_too_high_falls(spec: RankSpec) -> None:
    spec = replace(spec, trainable=Momentum)
    report = run(learning(spec, replace(RATE, high=3.0), rate=0.1), assignment(0, 4, learning_rate=2.0))
    rates = [learned(m.metrics)["learned.learning_rate"] for m in report.curve]
    assert 2.0 > rates[0] > rates[-1]


class Noisy(LabelledTask):
    """A linear model in float64. Training adds noise of a learned strength to a column."""

    learnable: ClassVar[tuple[str, ...]] = (*LabelledTask.learnable, "noise", "unused")

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        columns = torch.stack([batch["x"], batch["y"]], dim=1).double()
        if "noise" in self.learned:
            columns = columns + self.learned["noise"] * torch.sin(100 * columns)
        outputs: Tensor = model(columns)
        return outputs


def test_task_of_the_user_learns_its_own_parameter(spec: RankSpec) -> None:
    noise = LearnedParameter(name="noise", low=0.0, high=3.0, initial=2.0)
    spec = replace(spec, trainable=Noisy)
    values = [
        learned(measurement.metrics)["learned.noise"]
        for measurement in run(learning(spec, noise), assignment(0, 9)).curve
    ]
    assert values[-1] < values[0] < 2.0  # noise only harms a linear model with this many rows


def test_loss_weights_of_several_labels_are_learned() -> None:
    label = Label(name="a", classes=("0", "1"))
    other = Feature(name="b", kind=ColumnKind.CATEGORICAL, vocabulary=("0", "1"))
    schema = TableSchema(features=(), label=label, extra_labels=(ExtraLabel.of(other),))
    task = TabularTask({}, schema)
    weight = torch.tensor(0.5, requires_grad=True)
    task.learned = {"loss_weight_b": weight}
    batch = {"a": torch.tensor([0, 1]), "b": torch.tensor([1, 1])}
    outputs = torch.tensor([[1.0, 2.0, 0.0, 3.0], [0.5, 0.0, 1.0, 0.0]])
    task.training_loss(outputs, batch).mean().backward()  # type: ignore[no-untyped-call] # missing in torch
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(float(nn.functional.cross_entropy(outputs[:, 2:], batch["b"])))


def test_example_of_the_documentation_learns_its_noise(spec: RankSpec) -> None:
    [block] = blocks("docs/hypergradient.md", "python")
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, str(block), "exec"), names)
    noise = LearnedParameter(name="noise", low=0.0, high=1.0)
    report = run(learning(replace(spec, trainable=names["NoisyTask"]), noise), assignment(0, 1))
    assert report.metrics["learned.noise"] != 0.5


def test_parameter_that_the_loss_does_not_use_is_refused(spec: RankSpec) -> None:
    unused = LearnedParameter(name="unused", low=0.0, high=1.0)
    report = run_rank(
        learning(replace(spec, trainable=Noisy), unused), assignment(0, 1), rank=0, world_size=1
    )
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert "unused" in report.failure.message
    assert "does not depend on it" in report.failure.message


def test_exported_model_names_what_it_has_learned(spec: RankSpec, table: Table, tmp_path: Path) -> None:
    spec = learning(spec, DECAY, SMOOTHING)
    report = run(spec, assignment(0, 2))
    model_folder.export(
        tmp_path / "model",
        code=Code.named("tabular"),
        params=PARAMS,
        table=table,
        load_checkpoint=lambda: state(spec, report),
    )
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    assert record["learned"] == learned(report.metrics)


@pytest.mark.medium
def test_two_ranks_learn_what_one_rank_learns(spec: RankSpec) -> None:
    # Whole splits are batches: then one rank and two train on the same rows.
    parameters = (DECAY, SMOOTHING, RATE, LearnedParameter(name="noise", low=0.0, high=3.0))
    spec = learning(replace(spec, trainable=Noisy), *parameters, every=2, terms=5)
    spec = replace(spec, settings=replace(spec.settings, batch_size=120, evaluation_batch_size=60))
    alone = run(spec, assignment(0, 9, learning_rate=0.1))
    server = RendezvousServer("127.0.0.1", timeout_s=60.0)
    try:
        shared = replace(
            spec, storage=Storage(spec.storage.url + "-shared"), rendezvous=server.address, study_id="shared"
        )
        reports = reports_of_ranks(shared, assignment(0, 9, learning_rate=0.1))
    finally:
        server.close()
    assert all(report.failure is None for report in reports), reports[0].failure
    assert reports[0].metrics == reports[1].metrics
    assert learned(reports[0].metrics) == pytest.approx(learned(alone.metrics), rel=1e-6)
    assert learned(alone.metrics) != learned(alone.curve[0].metrics)
