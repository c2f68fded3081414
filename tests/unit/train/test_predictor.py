"""A trained model is exported, loaded and used for predictions, in this process and in a new one."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo.data.table import Table, first_rows, open_table
from spark_hpo.errors import CheckpointError, DataError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import model_folder, predictor
from spark_hpo.train.checkpoints import checkpoint
from spark_hpo.train.network import export_network
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Code
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Split
from tests.support.tables import write_clusters

PARAMS = {"learning_rate": 0.02, "hidden_units": 8}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return open_table(str(write_clusters(tmp_path_factory.mktemp("tables") / "clusters")))


@pytest.fixture(scope="module")
def exported(table: Table, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The folder of a trained model, and its metrics on the test split."""
    folder = tmp_path_factory.mktemp("model")
    spec = RankSpec(
        study_id="s",
        storage=Storage(folder / "study"),
        trainable="tabular",
        table=table,
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(batch_size=16),
        max_resource=5,
        seed=0,
        reader="arrow",
        shuffle_window=64,
    )
    common = {"trial_id": 0, "attempt": 1, "params": PARAMS, "bracket": 0, "rung": 0, "seed": 1}
    trained = run_rank(
        spec,
        Assignment(**common, resource_from=0, resource_to=5, checkpoint=None),
        rank=0,
        world_size=1,
    )
    test = Assignment(
        **common, resource_from=5, resource_to=5, checkpoint=trained.checkpoint, split=Split.TEST
    )
    tested = run_rank(spec, test, rank=0, world_size=1)
    assert trained.checkpoint is not None
    model_folder.export(
        folder / "model",
        code=Code.named("tabular"),
        params=PARAMS,
        table=table,
        load_checkpoint=partial(checkpoint.load, spec.storage, trained.checkpoint),
    )
    return folder / "model", dict(tested.metrics)


def rows_of_test_split(table: Table) -> pd.DataFrame:
    return pd.concat(pq.read_table(f"{table.url}/test").to_pandas() for _ in range(1))


def test_exported_model_repeats_its_test_metrics(
    table: Table, exported: tuple[Path, dict[str, float]]
) -> None:
    folder, metrics = exported
    model = predictor.Predictor.load(folder)
    rows = rows_of_test_split(table)
    answers = model.predict(rows)
    assert np.mean(answers["prediction"] == rows["side"]) == pytest.approx(metrics["accuracy"], abs=1e-9)
    assert model.evaluate(table, Split.TEST, reader="arrow") == pytest.approx(metrics)


def test_predict_keeps_the_index_and_returns_probabilities(
    table: Table, exported: tuple[Path, dict[str, float]]
) -> None:
    rows = rows_of_test_split(table).set_index(np.arange(60) * 3)
    answers = predictor.Predictor.load(exported[0]).predict(rows)
    assert list(answers.index) == list(rows.index)
    assert np.allclose(np.array(answers["probability"].tolist()).sum(axis=1), 1)


@pytest.mark.medium
def test_predict_in_a_new_process_returns_the_same(
    table: Table, exported: tuple[Path, dict[str, float]]
) -> None:
    rows = rows_of_test_split(table)[["x", "y"]].head(3)
    program = (
        "import io, sys, pandas as pd; from spark_hpo.train.predictor import _load_pyfunc;"
        "rows = pd.read_json(io.StringIO(sys.argv[2]));"
        "print(_load_pyfunc(sys.argv[1]).predict(rows)['prediction'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported[0]), rows.to_json()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    expected = predictor.Predictor.load(exported[0]).predict(rows)["prediction"].tolist()
    assert done.stdout.strip() == str(expected), done.stderr


def test_predict_names_a_missing_column_and_a_wrong_type(exported: tuple[Path, dict[str, float]]) -> None:
    model = predictor.Predictor.load(exported[0])
    with pytest.raises(DataError, match="no column y"):
        model.predict(pd.DataFrame({"x": [1.0]}))
    with pytest.raises(DataError, match="column 'y'"):
        model.predict(pd.DataFrame({"x": [1.0], "y": ["much"]}))


def test_load_accepts_a_model_that_names_its_task_as_earlier_versions_did(
    table: Table, exported: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder = shutil.copytree(exported[0], tmp_path / "model")
    record = json.loads((folder / "model.json").read_text())
    record["task"] = "spark_hpo.train.tabular:TabularTask"
    (folder / "model.json").write_text(json.dumps(record))
    rows = rows_of_test_split(table)
    answers = [predictor.Predictor.load(model).predict(rows) for model in (exported[0], folder)]
    pd.testing.assert_frame_equal(*answers)


def test_load_refuses_a_folder_that_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json"):
        predictor.Predictor.load(tmp_path)


def test_first_rows_have_the_features_without_the_label(table: Table) -> None:
    example = first_rows(table, Split.TEST, 4)
    assert list(example.columns) == ["x", "y"]
    assert len(example) == 4


@pytest.mark.medium
def test_exported_network_gives_the_same_without_this_package(
    table: Table, exported: tuple[Path, dict[str, float]]
) -> None:
    rows = rows_of_test_split(table)[["x", "y"]]
    program = (
        "import json, sys; sys.modules['spark_hpo'] = None; import torch;"
        "columns = json.loads(sys.argv[2]);"
        "network = torch.export.load(sys.argv[1] + '/network.pt2').module();"
        "note = json.load(open(sys.argv[1] + '/network.json'));"
        "batch = {i['name']: torch.tensor(columns[i['name']], dtype=getattr(torch, i['dtype'])) "
        "for i in note['inputs']};"
        "print(json.dumps({name: values.tolist() for name, values in network(batch).items()}))"
    )
    columns = {name: rows[name].astype("float32").tolist() for name in rows}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(exported[0]), json.dumps(columns)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    answers = json.loads(done.stdout or "{}")
    expected = predictor.Predictor.load(exported[0]).predict(rows)
    assert answers == {name: expected[name].tolist() for name in expected}, done.stderr


class ValueDependent(TabularTask):
    """A task whose code depends on the values of a tensor, which torch.export cannot express."""

    def forward(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        outputs = super().forward(model, batch)
        return outputs * 2 if outputs.sum() > 0 else outputs


def test_export_network_leaves_out_what_torch_cannot_export(table: Table, tmp_path: Path) -> None:
    task = ValueDependent(PARAMS, table.schema)
    assert not export_network(tmp_path, task, task.build_model())
    assert list(tmp_path.iterdir()) == []
