"""Metrics of torchmetrics over whole splits, on one rank and on several."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
import torchmetrics.classification
import torchmetrics.regression
from torch import Tensor, nn

from spark_hpo.data.schema import Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.errors import TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.metric_names import OF_CLASSES, OF_NUMBERS, SHORT_NAMES, names_for
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import Batch, LabelledTask, TrainTask
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.whole_split import WholeSplitMetrics
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report
from tests.support.documents import blocks
from tests.support.gloo import on_ranks
from tests.support.tables import write_clusters

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
BINARY = Label(name="label", classes=("no", "yes"))
MULTICLASS = Label(name="label", classes=("a", "b", "c", "d"))
NUMBER = Label(name="label", mean=50.0, deviation=10.0)
CASES = 5  # of random rows, for each kind of label

# The names that are not offered, because they need an argument, or do not return one number.
REFUSED = {
    *("binary_confusion_matrix", "binary_roc", "binary_precision_recall_curve", "binary_stat_scores"),
    *("binary_fairness", "binary_groups_stat_rates"),
    *("binary_precision_at_fixed_recall", "binary_recall_at_fixed_precision"),
    *("binary_sensitivity_at_specificity", "binary_specificity_at_sensitivity"),
    *("binary_fbeta_score", "minkowski_distance", "critical_success_index"),
    *("binary_hinge_loss",),  # of margins, not of probabilities
    *("cosine_similarity", "kl_divergence", "jensen_shannon_divergence"),  # of vectors
    *("continuous_ranked_probability_score",),  # of samples from a distribution
}


class Task(LabelledTask):
    def build_model(self) -> nn.Module:
        return nn.Identity()


def task_of(label: Label) -> CheckedTask:
    return CheckedTask(Task({}, TableSchema(features=(), label=label)))


def measured(
    task: CheckedTask, names: list[str], batches: list[tuple[Tensor, Tensor]], world: World = ALONE
) -> dict[str, float]:
    metrics = WholeSplitMetrics(task, names, reported=())
    for outputs, target in batches:
        metrics.update(outputs, {"label": target})
    return metrics.values(world)


def case(label: Label, seed: int) -> tuple[Tensor, Tensor]:
    """Random rows, with ties among the scores."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(30, 90))
    width = len(label.classes) or 1
    outputs = torch.from_numpy(rng.normal(size=(rows, width)).round(1)).float()
    if label.is_regression:
        return outputs, torch.from_numpy(50 + 10 * (outputs[:, 0].numpy() + rng.normal(size=rows))).float()
    return outputs, torch.from_numpy(rng.integers(0, width, rows))


def shares(rows: int, world: World, seed: int) -> list[slice]:
    """The batches of a rank: an uneven share of the rows, in order, in batches of different sizes."""
    rng = np.random.default_rng((seed, world.size))
    cuts = [0, *sorted(rng.choice(np.arange(1, rows), world.size - 1, replace=False).tolist()), rows]
    start, stop = cuts[world.rank], cuts[world.rank + 1]
    middle = (start + stop) // 2
    return [slice(start, middle), slice(middle, stop)]


def all_cases() -> Iterator[tuple[str, Label, list[str], int]]:
    for label in (BINARY, MULTICLASS, NUMBER):
        names = sorted(
            names_for(TableSchema(features=(), label=label)) - {"mean_squared_log_error"}
        )  # of values above -1 only
        for seed in range(CASES):
            yield f"{len(label.classes)} {seed}", label, names, seed


def measure_all(world: World) -> dict[str, dict[str, float]]:
    found = {}
    for key, label, names, seed in all_cases():
        outputs, target = case(label, seed)
        parts = [(outputs[part], target[part]) for part in shares(len(outputs), world, seed)]
        found[key] = measured(task_of(label), names, parts, world)
    return found


@cache
def by_ranks(size: int) -> list[dict[str, dict[str, float]]]:
    return on_ranks(size, measure_all)


# Names ---------------------------------------------------------------------------------------------------


def test_metric_names_are_those_of_torchmetrics() -> None:
    from torchmetrics.functional import classification, regression

    binary = {n for n in classification.__all__ if n.startswith("binary_")} - REFUSED
    assert {name.removeprefix("binary_") for name in binary} == set(OF_CLASSES)
    assert set(regression.__all__) - REFUSED == set(OF_NUMBERS)
    assert {f"multiclass_{name}" for name in OF_CLASSES} <= set(classification.__all__)
    assert set(SHORT_NAMES.values()) <= {*OF_CLASSES, *OF_NUMBERS}


def test_metric_names_are_known_without_torch() -> None:
    import subprocess
    import sys

    program = "import sys, spark_hpo.train.metric_names; print({'torch', 'torchmetrics'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3])
def test_whole_split_metrics_do_not_depend_on_the_ranks(ranks: int) -> None:
    alone = by_ranks(1)[0]
    for found in by_ranks(ranks):
        assert found.keys() == alone.keys()
        for key, values in alone.items():
            assert found[key] == values, key


def test_whole_split_metrics_are_those_of_all_rows() -> None:
    """A mean of each batch's AUROC would be another number."""
    outputs, target = case(BINARY, 0)
    scores, is_positive = outputs.softmax(dim=1)[:, 1], target == 1
    differences = scores[is_positive][:, None] - scores[~is_positive][None, :]
    expected = ((differences > 0).double() + (differences == 0).double() / 2).mean()
    assert by_ranks(1)[0]["2 0"]["auroc"] == pytest.approx(float(expected), abs=1e-6)


def test_whole_split_metrics_of_a_number_are_in_its_units() -> None:
    outputs, target = case(NUMBER, 1)
    predicted = (outputs[:, 0] * 10 + 50).double()
    r2 = 1 - (target - predicted).square().sum() / (target - target.mean(dtype=torch.double)).square().sum()
    found = by_ranks(1)[0]["0 1"]
    assert found["r2"] == pytest.approx(float(r2), abs=1e-6)
    assert found["mean_absolute_error"] == pytest.approx(float((target - predicted).abs().mean()), rel=1e-6)


def test_f1_is_of_the_second_class() -> None:
    target = torch.tensor([1, 1, 0, 0, 0, 0])
    outputs = torch.eye(2)[torch.tensor([1, 0, 0, 0, 0, 1])]
    found = measured(task_of(BINARY), ["f1", "recall"], [(outputs, target)])
    assert found == {"f1": 0.5, "recall": 0.5}


def test_metrics_of_several_classes_are_means_over_classes() -> None:
    target = torch.tensor([0, 0, 0, 1, 2, 3])
    outputs = torch.eye(4)[torch.tensor([0, 0, 0, 0, 2, 3])]
    found = measured(task_of(MULTICLASS), ["recall", "accuracy"], [(outputs, target)])
    assert found == pytest.approx({"recall": 3 / 4, "accuracy": 5 / 6})


def test_auroc_leaves_out_classes_without_rows() -> None:
    outputs, target = case(MULTICLASS, 0)
    kept = target < 2
    both = [(outputs[kept], target[kept])]
    found = measured(task_of(MULTICLASS), ["auroc", "average_precision"], both)
    scores = outputs[kept].softmax(dim=1)
    expected = [
        float(torchmetrics.functional.auroc(scores[:, c], (target[kept] == c).long(), task="binary"))
        for c in (0, 1)
    ]
    assert found["auroc"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert 0.2 < found["average_precision"] < 1


# What is not defined -------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [BINARY, MULTICLASS])
def test_auroc_of_one_class_is_not_defined(label: Label, caplog: pytest.LogCaptureFixture) -> None:
    outputs = torch.randn(8, len(label.classes), generator=torch.Generator().manual_seed(0))
    found = measured(task_of(label), ["auroc", "f1"], [(outputs, torch.zeros(8, dtype=torch.long))])
    assert math.isnan(found["auroc"])
    assert not math.isnan(found["f1"])
    assert "of one class" in caplog.text


def test_r2_of_one_row_is_not_defined() -> None:
    found = measured(task_of(NUMBER), ["r2_score"], [(torch.zeros(1, 1), torch.zeros(1))])
    assert math.isnan(found["r2_score"])


def test_whole_split_metrics_refuse_a_label_that_does_not_fit() -> None:
    with pytest.raises(TrialError, match="auroc"):
        measured(task_of(NUMBER), ["auroc"], [])


class Codes(Task):
    def predictions(self, outputs: Tensor) -> Mapping[str, Tensor]:
        return {"prediction": outputs.argmax(dim=1)}


def test_metric_that_needs_probabilities_refuses_codes() -> None:
    task = CheckedTask(Codes({}, TableSchema(features=(), label=BINARY)))
    rows = [(torch.eye(2), torch.tensor([0, 1]))]
    assert measured(task, ["f1"], rows) == {"f1": 1.0}
    with pytest.raises(TrialError, match="auroc needs probabilities"):
        measured(task, ["auroc"], rows)


# In training ---------------------------------------------------------------------------------------------


class OwnMetrics(TabularTask):
    def whole_split_metrics(self) -> Mapping[str, torchmetrics.Metric]:
        return {
            "best_recall": torchmetrics.classification.BinaryRecallAtFixedPrecision(min_precision=0.5),
            "top": torchmetrics.MaxMetric(),
        }

    def metric_inputs(self, name: str, outputs: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return (outputs[:, 0],) if name == "top" else super().metric_inputs(name, outputs, batch)


class OneNumber(OwnMetrics):
    def whole_split_metrics(self) -> Mapping[str, torchmetrics.Metric]:
        return {"top": torchmetrics.MaxMetric()}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters")))


def spec_of(table: Table, folder: Path, task: type[TrainTask], *metrics: str) -> RankSpec:
    return RankSpec(
        study_id="study",
        storage=Storage(folder / "study"),
        trainable=task,
        table=table,
        objective=Objective(metric="auroc", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=16, evaluation_batch_size=16, metrics=metrics),
        max_resource=2,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )


def trained(spec: RankSpec, **changes: Any) -> Report:
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"learning_rate": 0.01, "hidden_units": 8},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=2,
        checkpoint=None,
        seed=1,
    )
    return run_rank(spec, replace(assignment, **changes), rank=0, world_size=1)


def test_run_rank_optimizes_a_metric_of_the_whole_split(table: Table, tmp_path: Path) -> None:
    spec = spec_of(table, tmp_path, TabularTask, "auroc", "f1")
    report = trained(spec)
    assert report.failure is None
    assert {"loss", "accuracy", "train_loss", "auroc", "f1"} == report.metrics.keys()
    assert report.metrics["auroc"] > 0.6
    without = trained(spec_of(table, tmp_path / "other", TabularTask, "auroc"))
    assert {**report.metrics, "f1": 0} == {**without.metrics, "f1": 0}


def test_run_rank_measures_the_metrics_that_a_task_returns(table: Table, tmp_path: Path) -> None:
    spec = spec_of(table, tmp_path, OwnMetrics, "auroc")
    report = trained(spec)
    assert report.failure is not None
    assert "best_recall" in report.failure.message  # two numbers: the recall and its threshold
    report = trained(replace(spec, trainable=OneNumber))
    assert report.failure is None
    assert math.isfinite(report.metrics["top"])
    assert math.isfinite(report.metrics["auroc"])


def test_example_of_the_documentation_is_measured(table: Table, tmp_path: Path) -> None:
    (block,) = (b for b in blocks("docs/training.md", "python") if "whole_split_metrics" in b.text)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, str(block), "exec"), names)
    report = trained(spec_of(table, tmp_path, names["Screening"], "auroc"))
    assert report.failure is None
    assert 0 < report.metrics["hits"] < 1
    assert report.metrics["recall_at_30_percent"] > 0


class OwnRecall(TabularTask):
    def metrics(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        return {"recall": torch.full((len(outputs),), 7.0)}


def test_task_keeps_its_own_metric_of_the_same_name(table: Table, tmp_path: Path) -> None:
    report = trained(spec_of(table, tmp_path, OwnRecall, "recall", "auroc"))
    assert report.metrics["recall"] == 7.0


def test_run_rank_says_that_the_objective_is_not_defined(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = write_clusters(tmp_path / "clusters")
    path = folder / "validation" / "part-0.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.filter(rows["side"].to_numpy() == 0), path)
    report = trained(spec_of(open_table(str(folder)), tmp_path, TabularTask, "auroc"))
    assert report.failure is not None
    assert re.search("auroc is not defined on the validation split", report.failure.message)


def test_metrics_take_no_weights_of_rows_as_the_page_says() -> None:
    classes = [
        getattr(torchmetrics.classification, f"{kind}{metric.class_name}")
        for metric in OF_CLASSES.values()
        for kind in ("Binary", "Multiclass")
    ]
    numbers = [getattr(torchmetrics.regression, metric.class_name) for metric in OF_NUMBERS.values()]
    for metric in (*classes, *numbers):
        assert not any("weight" in name for name in inspect.signature(metric.update).parameters)
