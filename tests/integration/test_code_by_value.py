"""Tasks and functions that only this process has: from a notebook, or from inside a function."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from spark_hpo.backend.spark.session import cluster_of
from spark_hpo.config import StudyConfig
from spark_hpo.driver.run import run_study
from spark_hpo.errors import ConfigError
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.user_code.source_file import SourceFile
from tests.support.mlflow_database import write_database
from tests.support.tables import clusters_study, write_clusters

pytestmark = pytest.mark.spark


def config(folder: Path, **changes: Any) -> StudyConfig:
    write_database(folder)
    search = {"method": "asha", "max_resource": 2}
    changes = {"task": "by value", "backend": "spark", "search": search, "budget": {"trials": 2}, **changes}
    return clusters_study(folder, **changes)


def test_class_of_a_notebook_is_trained_on_executors_and_loaded_elsewhere(
    spark: object, tmp_path: Path
) -> None:
    write_clusters(tmp_path / "table")

    class Mine(TabularTask):
        def build_model(self) -> torch.nn.Module:
            model = super().build_model()
            model.register_buffer("mine", torch.ones(1))
            return model

    result = run_study(config(tmp_path), task=Mine, spark=spark)  # type: ignore[arg-type]
    assert result.model is not None
    program = (
        "import sys, mlflow, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model(sys.argv[2]);"
        "print(*model.predict(pd.DataFrame({'x': [0.1], 'y': [0.2]}, dtype='float32')).columns)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path}/mlflow.db", result.model.uri],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "prediction" in done.stdout.split(), done.stderr


def test_closure_is_trained_on_executors(spark: object, tmp_path: Path) -> None:
    bonus = 0.25

    def train(ctx: Any) -> None:
        ctx.report({"accuracy": bonus}, resource=ctx.resource.stop)

    result = run_study(config(tmp_path, data=None), task=train)
    assert result.best.metrics == {"accuracy": 0.25}


def test_task_files_of_one_name_are_two_tasks_on_executors(spark: object, tmp_path: Path) -> None:
    values = []
    for folder, value in (("a", 0.25), ("b", 0.5)):
        (tmp_path / folder).mkdir()
        code = f"def train(ctx):\n    ctx.report({{'accuracy': {value}}}, resource=ctx.resource.stop)\n"
        (tmp_path / folder / "my_task.py").write_text(code)
        study = config(tmp_path / folder, data=None, task="my_task.py:train", budget={"trials": 1})
        result = run_study(study.with_source(str(tmp_path / folder / "study.yaml")))
        values.append(result.best.metrics["accuracy"])
    assert values == [0.25, 0.5]


def test_shipped_file_leaves_no_temporary_folder(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "mine.py").write_text("VALUE = 7")
    cluster_of(spark).ship(tmp_path / "mine.py", name="mine_0123456789ab.py")

    def value(batches: Any) -> Any:
        module = importlib.import_module("mine_0123456789ab")
        yield from (batch.slice(0, module.VALUE) for batch in batches)

    assert spark.range(9, numPartitions=1).mapInArrow(value, "id long").count() == 7
    assert list((tmp_path / "tmp").iterdir()) == []


def test_code_of_an_object_that_is_not_a_task_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Code.of(lambda: None)
    assert caught.value.key == "task"


def test_module_in_a_file_is_sent_as_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "code_in_a_file.py"
    file.write_text("def train(ctx):\n    ctx.report({'accuracy': 1.0})\n")
    monkeypatch.syspath_prepend(tmp_path)
    code = Code.of(importlib.import_module(file.stem).train)
    assert not code.by_value
    assert code.source == SourceFile(file, file.stem)
    assert code.reference == "code_in_a_file:train"
    assert Code.of(TabularTask).source is None  # of a package


def test_fingerprint_depends_on_the_code_not_on_its_position() -> None:
    def of(method: str) -> Code:
        names: dict[str, Any] = {"TabularTask": TabularTask, "__name__": "__main__"}
        exec(f"class Mine(TabularTask):\n    {method}", names)
        return Code.of(names["Mine"])

    first = of("def loss(self, outputs, batch): return outputs.mean()")
    assert not first.has_changed(first.fingerprint)
    assert not of("# moved\n\n    def loss(self, outputs, batch): return outputs.mean()").has_changed(
        first.fingerprint
    )
    assert of("def loss(self, outputs, batch): return outputs.sum()").has_changed(first.fingerprint)
    assert of("def loss(self, outputs, batch): return 2 * outputs.mean()").has_changed(first.fingerprint)
    assert not first.has_changed(None)
    assert not first.has_changed("cpython-27:0123456789abcdef"), "of another Python it cannot be told"
    assert Code.named("tabular").fingerprint is None
