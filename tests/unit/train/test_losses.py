"""Weights of rows and classes, focal loss and label smoothing, on one rank and on several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from spark_hpo.config import StudyConfig, build_config
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.build import build_table, training_settings
from spark_hpo.driver.plan import check_table, plan_study
from spark_hpo.errors import ConfigError, DataError, TrialError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.label_statistics import label_statistics
from spark_hpo.train.loop import Trainer
from spark_hpo.train.reference import Code
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.task import Batch, LabelledTask, TrainTask
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Split
from tests.support.gloo import on_ranks

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
WEIGHT = Feature(name="w", kind=ColumnKind.NUMERIC, mean=2.0, deviation=0.5)  # stored standardised
SCHEMA = TableSchema(
    features=(Feature(name="x", kind=ColumnKind.NUMERIC), WEIGHT),
    label=Label(name="ill", classes=("no", "yes")),
)
ROWS = 97  # no number of ranks or batches divides it


def columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    """About one row in ten is of the class `yes`."""
    rng = np.random.default_rng(seed)
    ill = (rng.random(rows) < 0.12).astype("int64")
    x = (rng.normal(size=rows) + ill).astype("float32")
    return {"x": x, "w": rng.choice([1.0, 2.0], rows), "ill": ill}


def write(folder: Path, schema: TableSchema = SCHEMA, **splits: Mapping[str, np.ndarray]) -> str:
    for number, split in enumerate(("train", "validation", "test")):
        stored = dict(splits.get(split) or columns(ROWS, number))
        stored["w"] = ((stored["w"] - 2) / 0.5).astype("float32")
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table(stored), folder / split / "part-0.parquet", row_group_size=10)
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return str(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("tables") / "ill")


def config_of(url: str, *, weight: str | None = None, **training: Any) -> StudyConfig:
    return build_config(
        {
            "name": "weights",
            "study_dir": "study",
            "task": "tabular",
            "data": {"path": url, "weight": weight, "reader": "arrow", "cache": {"enabled": False}},
            "objective": {"metric": "loss", "mode": "min"},
            "space": {"learning_rate": {"type": "loguniform", "low": 0.001, "high": 0.1}},
            "search": {"max_resource": 3},
            "budget": {"trials": 2},
            "training": training,
            "backend": "inline",
        },
        place="here",
    )


def opened(url: str, **settings: Any) -> Table:
    table = build_table(config_of(url, **settings), {})
    assert table is not None
    return table


# Weights of classes --------------------------------------------------------------------------------------


def test_balanced_classes_have_the_weights_of_scikit_learn(url: str) -> None:
    ill = columns(ROWS, 0)["ill"]
    expected = ROWS / (2 * np.bincount(ill))  # compute_class_weight("balanced")
    label = opened(url, class_weights="balanced").schema.label
    assert label.class_weights == pytest.approx(expected)


def test_balanced_classes_of_a_fold_come_from_its_training_rows(url: str) -> None:
    search = {"resource": "folds", "max_resource": 3, "epochs": 1, "scheduler": "full"}
    config = config_of(url, class_weights="balanced")
    config = build_config({**config.model_dump(mode="json"), "search": search}, place="here")
    table = build_table(config, {})
    assert table is not None
    table = Table.from_json(json.loads(json.dumps(table.to_json())))
    found = []
    for fold in (*(table.fold(number, 3, config.seed) for number in (1, 2, 3)), table.for_final()):
        counts = np.array(label_statistics(fold, Split.TRAIN).weights[fold.schema.label.name])
        assert fold.schema.label.class_weights == pytest.approx(counts.sum() / (2 * counts))
        found.append(fold.schema.label.class_weights)
    assert len(set(found)) > 1, "the folds differ"


def test_balanced_classes_with_row_weights_have_the_same_total_weight(url: str) -> None:
    train = columns(ROWS, 0)
    label = opened(url, class_weights="balanced", weight="w").schema.label
    totals = np.bincount(train["ill"], weights=train["w"]) * label.class_weights
    assert totals[0] == pytest.approx(totals[1])


def test_class_weights_of_a_mapping_keep_their_ratio(url: str) -> None:
    label = opened(url, class_weights={"yes": 5}).schema.label
    ill = columns(ROWS, 0)["ill"]
    assert label.class_weights[1] / label.class_weights[0] == pytest.approx(5)
    assert np.take(label.class_weights, ill).mean() == pytest.approx(1)


def test_class_weights_take_names_that_yaml_reads_as_other_types() -> None:
    assert config_of("t", class_weights={1: 2.0}).training.class_weights == {"1": 2.0}
    assert config_of("t", class_weights={True: 2.0}).training.class_weights == {"true": 2.0}


def test_weights_travel_with_the_schema(url: str) -> None:
    schema = opened(url, class_weights="balanced", weight="w").schema
    assert TableSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert "class_weights" not in opened(url).schema.to_json()["label"]
    assert opened(url).fingerprint == open_table(url).fingerprint


# Weights of rows -----------------------------------------------------------------------------------------


def test_row_weight_is_not_a_feature(url: str, tmp_path: Path) -> None:
    table = opened(url, weight="w")
    assert [feature.name for feature in table.schema.features] == ["x"]
    params = {"hidden_units": 4}
    model = TabularTask(params, table.schema).build_model()
    model_folder.export(
        tmp_path,
        code=Code.named("tabular"),
        params=params,
        table=table,
        load_checkpoint=lambda: {"model": model.state_dict()},
    )
    loaded = predictor.Predictor.load(tmp_path)
    assert len(loaded.predict(pd.DataFrame({"x": [0.5, -0.5]}))) == 2
    assert (tmp_path / "network.pt2").exists()
    assert loaded.evaluate(table, Split.TEST, reader="arrow").keys() == {"loss", "accuracy"}


class Linear(LabelledTask):
    """In double precision, so that sums of different order agree."""

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 2).double()

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs: Tensor = model(batch["x"].double().unsqueeze(1))
        return outputs


def trained(
    table: Table,
    world: World = ALONE,
    task: type[TrainTask] = Linear,
    settings: TrainingSettings | None = None,
    epochs: int = 2,
    batch_size: int = 16,
    **params: Any,
) -> dict[str, float]:
    settings = settings or TrainingSettings()

    def loader(split: Split, window: int | None) -> Loader:  # of global batches
        return Loader(
            table,
            split,
            rank=world.rank,
            world_size=world.size,
            batch_size=batch_size,
            seed=0,
            reader="arrow",
            shuffle_window=window,
        )

    params = {"learning_rate": 0.05, **settings.loss_params, **params}
    train = loader(Split.TRAIN, 1000)
    trainer = Trainer(task(params, table.schema), world, settings, seed=1, total_steps=1)
    trainer.fit(
        epochs,
        train=train,
        validation=loader(Split.VALIDATION, None),
        objective=Objective(metric="loss", mode=Mode.MIN),
        coordinator=StepCoordinator(world, Storage("unused"), epochs=None, seconds=None),
    )
    return dict(trainer.curve[-1].metrics)


def test_row_with_weight_two_counts_like_two_rows(tmp_path: Path) -> None:
    """One step with all rows: the gradients, the losses and the metrics are those of the repeated rows."""
    weighted = opened(write(tmp_path / "weighted"), weight="w")
    splits = {}
    for number, split in enumerate(("train", "validation", "test")):
        rows = columns(ROWS, number)
        times = rows["w"].astype(int)
        splits[split] = {**{n: v.repeat(times) for n, v in rows.items()}, "w": np.ones(times.sum())}
    repeated = opened(write(tmp_path / "repeated", **splits), weight="w")
    found, expected = (trained(table, batch_size=1000, epochs=5) for table in (weighted, repeated))
    assert found == pytest.approx(expected, rel=1e-6)
    without = trained(opened(str(tmp_path / "weighted")), batch_size=1000, epochs=5)
    assert all(without[name] != pytest.approx(value, rel=1e-3) for name, value in found.items())


@pytest.mark.parametrize("ranks", [2, 3])
def test_weighted_training_does_not_depend_on_the_ranks(url: str, ranks: int) -> None:
    config = config_of(url, weight="w", class_weights="balanced", loss="focal", label_smoothing=0.1)
    table = build_table(config, {})
    assert table is not None
    settings = replace(training_settings(config), clip_norm=0.5)

    def run(world: World) -> dict[str, float]:
        # One batch an epoch, because ranks compose smaller batches of different rows.
        return trained(table, world, settings=settings, batch_size=1000, epochs=5)

    alone = run(ALONE)
    for found in on_ranks(ranks, run):
        assert found == pytest.approx(alone, rel=1e-6)


class OwnScalarLoss(Linear):
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["ill"])


class OwnRowLoss(Linear):
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["ill"], reduction="none")


def test_task_with_its_own_loss_of_each_row_is_weighted(url: str) -> None:
    table = opened(url, weight="w")
    assert trained(table, task=OwnRowLoss) == pytest.approx(trained(table), rel=1e-9)
    assert trained(opened(url), task=OwnRowLoss) == pytest.approx(trained(opened(url)), rel=1e-9)
    with pytest.raises(TrialError, match=r"data\.weight"):
        trained(table, task=OwnScalarLoss)


# Losses --------------------------------------------------------------------------------------------------


def training_loss(label: Label = SCHEMA.label, **params: Any) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, len(label.classes), generator=generator)
    target = torch.randint(len(label.classes), (50,), generator=generator)
    task = Linear(params, replace(SCHEMA, label=label))
    loss = task.training_loss(outputs, {label.name: target})
    assert task.loss(outputs, {label.name: target}) == nn.functional.cross_entropy(outputs, target)
    return loss, outputs, target


def test_training_loss_is_the_cross_entropy_by_default() -> None:
    loss, outputs, target = training_loss()
    assert loss == nn.functional.cross_entropy(outputs, target)


def test_label_smoothing_is_that_of_torch() -> None:
    loss, outputs, target = training_loss(label_smoothing=0.2)
    expected = nn.functional.cross_entropy(outputs, target, label_smoothing=0.2)
    assert float(loss.mean()) == pytest.approx(float(expected), rel=1e-6)


def test_focal_loss_weights_rows_by_how_badly_they_are_classified() -> None:
    loss, outputs, target = training_loss(loss="focal", focal_gamma=3.0)
    right = outputs.softmax(dim=1).gather(1, target[:, None])[:, 0]
    assert torch.allclose(loss, -((1 - right) ** 3) * right.log(), atol=1e-6)
    plain, outputs, target = training_loss(loss="focal", focal_gamma=0.0)
    assert torch.allclose(plain, nn.functional.cross_entropy(outputs, target, reduction="none"))


def test_focal_loss_has_gradients_where_a_row_is_certain() -> None:
    outputs = torch.tensor([[100.0, 0.0]], requires_grad=True)
    task = Linear({"loss": "focal", "focal_gamma": 0.5}, SCHEMA)
    task.training_loss(outputs, {"ill": torch.tensor([0])}).sum().backward()
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_class_weights_multiply_the_loss_of_their_rows() -> None:
    label = replace(SCHEMA.label, class_weights=(0.5, 4.0))
    loss, outputs, target = training_loss(label)
    rows = nn.functional.cross_entropy(outputs, target, reduction="none")
    assert torch.allclose(loss, rows * torch.tensor([0.5, 4.0])[target])


def test_training_loss_refuses_an_unknown_name() -> None:
    with pytest.raises(TrialError, match="focall"):
        training_loss(loss="focall")


def test_balanced_classes_are_found_more_often(url: str) -> None:
    settings = TrainingSettings(metrics=("recall",))
    plain = trained(opened(url), settings=settings, epochs=5)
    balanced = trained(opened(url, class_weights="balanced"), settings=settings, epochs=5)
    assert balanced["recall"] > plain["recall"] + 0.3
    assert balanced["loss"] > plain["loss"]  # the reported loss is not weighted


# Mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key", "cure"),
    [
        ({"class_weights": {"yess": 2}}, "training.class_weights", "'yes'"),
        ({"weight": "v"}, "data.weight", "x, w"),
    ],
)
def test_build_table_refuses_weights_for_what_is_not_there(
    url: str, settings: Mapping[str, Any], key: str, cure: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(url, **settings)
    assert caught.value.key == key
    assert cure in caught.value.cure


@pytest.mark.parametrize(
    "settings", [{"class_weights": "balanced"}, {"loss": "focal"}, {"label_smoothing": 0.1}]
)
def test_build_table_refuses_class_settings_of_a_number(tmp_path: Path, settings: Mapping[str, Any]) -> None:
    url = write(tmp_path / "numbers", replace(SCHEMA, label=Label(name="ill")))
    with pytest.raises(ConfigError) as caught:
        opened(url, **settings)
    assert caught.value.key == f"training.{next(iter(settings))}"


def test_build_table_refuses_negative_weights(tmp_path: Path) -> None:
    rows = columns(ROWS, 0)
    url = write(tmp_path / "negative", train={**rows, "w": -rows["w"]})
    with pytest.raises(DataError, match=r"data\.weight"):
        opened(url, weight="w")


def test_build_table_refuses_missing_weights_of_a_prepared_table(tmp_path: Path) -> None:
    mark = Feature(name="w_missing", kind=ColumnKind.NUMERIC, source="w")
    url = write(tmp_path / "missing", replace(SCHEMA, features=(*SCHEMA.features[1:], mark)))
    for split in ("train", "validation", "test"):
        path = tmp_path / "missing" / split / "part-0.parquet"
        rows = pq.read_table(path)
        pq.write_table(rows.append_column("w_missing", rows["x"]), path)
    with pytest.raises(ConfigError) as caught:
        opened(url, weight="w")
    assert caught.value.key == "data.weight"


@pytest.mark.parametrize("data", [{"label": "w"}, {"drop": ["w"]}])
def test_config_refuses_a_weight_with_another_role(data: Mapping[str, Any]) -> None:
    config = config_of("t").model_dump(mode="json")
    with pytest.raises(ConfigError) as caught:
        build_config({**config, "data": {"path": "t", "weight": "w", **data}}, place="here")
    assert caught.value.key == "data.weight"


def check(url: str, task: type[TrainTask], config: StudyConfig) -> None:
    check_table(plan_study(config, task=task), build_table(config, {}))


def test_check_table_refuses_settings_of_the_loss_for_a_task_with_its_own(url: str) -> None:
    for settings in ({"class_weights": "balanced"}, {"loss": "focal"}, {"label_smoothing": 0.1}):
        with pytest.raises(ConfigError) as caught:
            check(url, OwnRowLoss, config_of(url, **settings))
        assert caught.value.key == f"training.{next(iter(settings))}"
        check(url, Linear, config_of(url, **settings))


def test_check_table_refuses_auroc_of_a_split_with_one_class(tmp_path: Path) -> None:
    rows = columns(ROWS, 1)
    url = write(tmp_path / "one", validation={**rows, "ill": np.zeros(ROWS, "int64")})
    config = config_of(url)
    check(url, Linear, config)
    objective = {"metric": "auroc", "mode": "max"}
    with pytest.raises(ConfigError) as caught:
        check(
            url, Linear, build_config({**config.model_dump(mode="json"), "objective": objective}, place="h")
        )
    assert (caught.value.key, caught.value.value) == ("objective", "auroc")
