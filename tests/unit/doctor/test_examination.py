"""The doctor on studies that need no Spark: each check with the real thing broken."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.readers.arrow_reader import ArrowReader
from spark_hpo.doctor import Status, examine
from spark_hpo.doctor.checks import Check
from spark_hpo.doctor.finding import ok
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from tests.support.doctor_study import failed, look, write_study
from tests.support.mlflow_server import free_port

ROOT = Path(__file__).parents[3]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path, backend="inline", budget={"trials": 4})


def content(folder: Path) -> Sequence[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts
    )


def test_doctor_passes_a_valid_study_and_leaves_no_files(study: Path) -> None:
    before = content(study)
    found = look()
    assert failed(found) == []
    assert found["one step"].status is Status.OK
    assert "one batch, accuracy 0." in found["one step"].message
    assert (
        "train 240, validation 120, test 120 rows, 2 features, label 'side' (2 classes)"
        in found["table"].message
    )
    assert "a file was written, read and deleted" in found["storage"].message
    assert {found[name].status for name in ("java", "spark", "slots", "executors")} == {Status.SKIP}
    assert content(study) == before


@pytest.mark.parametrize("pause_s", [0.0, 0.5])
def test_doctor_predicts_waits_for_data_and_memory(
    study: Path, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    read = ArrowReader.read

    def read_slowly(*arguments: Any) -> Iterator[Any]:
        time.sleep(pause_s)
        yield from read(*arguments)

    monkeypatch.setattr(ArrowReader, "read", read_slowly)
    step = look("training.batch_size=16", "data.cache.enabled=false")["one step"]
    wait = re.search(r"a trial waits about ([\d.e-]+) s for data, (\d+)% of its steps' time", step.message)
    assert wait is not None
    assert re.search(r"a rank uses [\d.]+ [MG]iB of memory", step.message)
    if pause_s:
        assert float(wait[1]) > 2
        assert int(wait[2]) > 50
        assert step.status is Status.WARN
        assert "data.cache.enabled" in step.cure
    else:
        assert float(wait[1]) < 1
        assert step.status is Status.OK


def test_doctor_leaves_an_existing_study_unchanged(study: Path) -> None:
    (study / "studies" / "clusters").mkdir(parents=True)
    (study / "studies" / "clusters" / "notes.txt").write_text("mine")
    before = content(study)
    look()
    assert content(study) == before


def test_doctor_runs_other_checks_after_an_invalid_study_file(study: Path) -> None:
    found = look("search.max_resource=0")
    assert failed(found) == ["study file"]
    assert "search.max_resource must be at least 1" in found["study file"].message
    assert found["packages"].status in (Status.OK, Status.WARN)
    assert found["table"].status is Status.SKIP
    assert found["table"].message == "'study file' failed"


def test_doctor_fails_on_a_study_dir_that_is_not_writable(study: Path) -> None:
    (study / "file").touch()
    found = look("study_dir=file/study")
    assert failed(found) == ["storage"]
    assert str(study / "file" / "study") in found["storage"].message
    assert "a study_dir that this user may write to" in found["storage"].cure
    assert found["one step"].status is Status.SKIP
    assert found["shipment"].status is Status.OK


def test_doctor_fails_on_a_silent_mlflow_without_showing_passwords(study: Path) -> None:
    uri = f"http://ann:my-password@127.0.0.1:{free_port()}"
    found = look(f"mlflow.tracking_uri={uri}")
    assert failed(found) == ["mlflow"]
    assert "it does not answer" in found["mlflow"].message
    assert "my-password" not in "".join(map(str, found.values()))
    assert found["one step"].status is Status.OK


def test_doctor_fails_on_a_read_only_mlflow_database(study: Path) -> None:
    (study / "file").touch()
    found = look("mlflow.tracking_uri=sqlite:///file/mlflow.db")
    assert failed(found) == ["mlflow"]


def test_doctor_names_a_column_that_a_file_does_not_have(study: Path) -> None:
    [path] = (study / "table" / "validation").glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["y"]), path)
    found = look()
    assert failed(found) == ["table"]
    assert "column 'y' is missing" in found["table"].message
    assert {found[name].status for name in ("shipment", "one step")} == {Status.SKIP}


def test_doctor_fails_on_a_missing_table_unless_the_study_prepares_it(study: Path) -> None:
    assert "nothing does not exist" in look("data.path=nothing")["table"].message
    (study / "my.csv").write_text("a,y\n1,0\n")
    prepare = "data.prepare={source: csv, input: my.csv, label: y}"
    found = look("data.path=made", prepare)["table"]
    assert (found.status, found.message[:25]) == (Status.SKIP, "made does not exist yet; ")
    found = look("data.path=made", prepare.replace("my.csv", "his.csv"))["table"]
    assert found.status is Status.FAIL
    assert "his.csv: no such file" in found.message


def test_doctor_fails_on_a_parameter_that_the_task_does_not_read(study: Path) -> None:
    found = look("space.lr=0.1")
    assert failed(found) == ["code"]
    assert "space.lr" in found["code"].message


def test_doctor_warns_of_a_parameter_that_is_not_read_in_a_study_that_has_begun(study: Path) -> None:
    Definition.create({}).write(Storage(study / "studies" / "clusters"))
    found = look("space.lr=0.1")
    assert found["code"].status is Status.WARN
    assert "space.lr" in found["code"].message


def test_doctor_fails_on_a_task_that_cannot_be_imported(study: Path) -> None:
    found = look("task=my_task.py:Net")
    assert failed(found) == ["code"]
    assert "does not exist" in found["code"].message


def test_doctor_finds_an_unknown_metric_with_one_step(study: Path) -> None:
    found = look("objective.metric=auc")
    assert failed(found) == ["one step"]
    assert "objective.metric is 'auc', but the task reports accuracy" in found["one step"].message


def test_doctor_finds_a_failing_task_with_one_step(study: Path) -> None:
    (study / "broken_net.py").write_text(
        "from spark_hpo.train.tasks.tabular import TabularTask\n"
        "class Net(TabularTask):\n"
        "    def forward(self, model, batch):\n"
        "        raise RuntimeError('shapes do not fit')\n"
    )
    found = look("task=broken_net.py:Net")
    assert failed(found) == ["one step"]
    assert "shapes do not fit" in found["one step"].message
    assert "broken_net.py (" in found["shipment"].message


def test_doctor_finds_an_option_that_fails_with_one_step(study: Path) -> None:
    (study / "branches.py").write_text(
        "from spark_hpo.train.tasks.tabular import TabularTask\n"
        "class Net(TabularTask):\n"
        "    def build_model(self):\n"
        "        if self.params.get('branch', {}).get('kind') == 'conv':\n"
        "            raise RuntimeError('no images here')\n"
        "        return super().build_model()\n"
    )
    kinds = "[{kind: conv}, {kind: mlp, depth: {type: choice, options: [1, 2, 3]}}]"
    found = look("task=branches.py:Net", f"space.branch={{type: choice, options: {kinds}}}")
    assert failed(found) == ["one step"]
    assert "branch option 1 fails" in found["one step"].message
    assert "no images here" in found["one step"].message
    found = look("task=branches.py:Net", "space.width={type: choice, options: [1, 2, 3]}")
    assert found["one step"].status is Status.OK
    assert "2 more" in found["one step"].message


def test_doctor_finds_a_wrong_java_home_before_it_starts_spark(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(study / "jdk"))
    found = look("backend=spark")
    assert failed(found) == ["java"]
    assert f"JAVA_HOME is {study}/jdk" in found["java"].message
    assert found["spark"].message == "'java' failed"
    assert found["one step"].message == "'spark' failed"


def test_doctor_command_prints_each_check_and_exits_with_2(study: Path) -> None:
    def doctor(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "spark_hpo", "doctor", "study.yaml", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "OK    study file: study.yaml: clusters, trials 4"
    assert lines[-1] == "no check failed"
    done = doctor("data.path=nothing", "--json")
    assert done.returncode == 2
    record = json.loads(done.stdout.splitlines()[-1])
    assert not record["ok"]
    [table] = [check for check in record["checks"] if check["check"] == "table"]
    assert table["status"] == "FAIL"
    assert "spark-hpo prepare" in table["message"]


def test_doctor_gives_up_a_check_that_hangs(study: Path) -> None:
    end = threading.Event()

    def hang(case: object) -> object:
        end.wait(60)
        return ok("at last")

    checks = [
        Check(name="slow", run=hang, limit_s=0.05),  # type: ignore[arg-type]
        Check(name="next", run=lambda case: ok("well")),
        Check(name="after", run=lambda case: ok("never"), needs=("slow",)),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(end.set)
        found = list(examine("study.yaml", checks=checks))
    assert [finding.status for finding in found] == [Status.FAIL, Status.OK, Status.SKIP]
    assert found[0].message == "no answer within 0 s"


def test_doctor_reports_a_check_that_raises_without_secrets(study: Path) -> None:
    def leak(case: object) -> object:
        raise KeyError("password=hunter2hunter2 was refused")

    [found] = examine("study.yaml", checks=[Check(name="leaky", run=leak)])  # type: ignore[arg-type]
    assert found.status is Status.FAIL
    assert "hunter2" not in str(found)


def test_pitfalls_are_warnings_of_prepared_tables_and_others(study: Path, tmp_path: Path) -> None:
    assert "test has 120 rows" in look()["pitfalls"].message
    side = [i % 2 for i in range(600)]
    rows = pa.table({"side": side, "after": [value * 3.5 for value in side], "x": list(range(600))})
    pq.write_table(rows, tmp_path / "raw.parquet")
    found = look("data.path=raw.parquet", "data.label=side")["pitfalls"]
    assert found.status is Status.WARN
    assert "column 'after' alone predicts the label 'side'" in found.message
    dropped = look("data.path=raw.parquet", "data.label=side", "data.drop=[after]")["pitfalls"]
    assert "'after'" not in dropped.message
