"""The part of `spark-hpo predict` that runs on executors, without Spark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from spark_hpo.data.schema import ColumnKind, Feature, Label, OriginalColumn, TableSchema
from spark_hpo.data.table import Table
from spark_hpo.data.text_forms import TextForm
from spark_hpo.errors import DataError
from spark_hpo.train import model_folder, scoring
from spark_hpo.train.reference import Code
from spark_hpo.train.tasks.tabular import TabularTask

SCHEMA = TableSchema(
    features=(
        Feature(name="age", kind=ColumnKind.NUMERIC, source="age", mean=40.0, deviation=10.0),
        Feature(name="city", kind=ColumnKind.CATEGORICAL, source="city", vocabulary=("Rome", "", "Oslo")),
        Feature(name="words", kind=ColumnKind.SEQUENCE, source="words", shape=(3,), vocabulary=("a", "b")),
    ),
    label=Label(name="bought", classes=("0", "1", "2")),
    original=(
        OriginalColumn(name="age", type="double", form=TextForm.NUMBER),
        OriginalColumn(name="city", type="string", is_optional=True),
        OriginalColumn(name="words", type="array<string>"),
        OriginalColumn(name="bought", type="bigint"),
    ),
)
ROWS = pd.DataFrame(
    {"age": ["39", "17.5", "81"], "city": [" Oslo", None, "Lima"], "words": [["a"], [], ["b", "c", "a"]]}
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    state = TabularTask({}, SCHEMA).build_model().state_dict()
    model_folder.export(
        folder,
        code=Code.named("tabular"),
        params={},
        table=Table(url="", schema=SCHEMA, manifests={}),
        load_checkpoint=lambda: {"model": state},
    )
    return folder


def test_score_appends_what_predict_returns(model: Path) -> None:
    archive = scoring.packed(model, None)
    given = pa.RecordBatch.from_pandas(ROWS, preserve_index=False)
    batch = pa.RecordBatch.from_arrays(given.columns, ["c0", "c1", "c2"])
    [scored] = scoring.score(iter([batch]), list(ROWS), archive=archive)
    loaded = scoring.unpacked(archive)
    expected = loaded.predict(ROWS)
    assert loaded.answer_names() == ("prediction", "probability_0", "probability_1", "probability_2")
    assert expected["prediction"].dtype == "int64"
    answers = scored.to_pandas().iloc[:, 3:].set_axis(list(expected), axis=1)
    pd.testing.assert_frame_equal(answers, expected)


def test_score_fills_an_optional_column_and_names_a_bad_value(model: Path) -> None:
    archive = scoring.packed(model, None)
    rows = ROWS.drop(columns="city")
    batch = pa.RecordBatch.from_pandas(rows, preserve_index=False)
    [scored] = scoring.score(iter([batch]), list(rows), archive=archive)
    assert scored.num_rows == 3
    bad = pa.RecordBatch.from_pandas(ROWS.assign(age=["1", "two", "3"]), preserve_index=False)
    with pytest.raises(DataError, match="column 'age': 'two' is not a number"):
        next(scoring.score(iter([bad]), list(ROWS), archive=archive))


TASK = """
from spark_hpo.train.tasks.tabular import TabularTask

class Louder(TabularTask):
    def predictions(self, outputs):
        return {"loud": outputs[:, 0] * 0 + 7.0}
"""


@pytest.mark.medium
def test_unpacked_imports_the_code_that_comes_with_the_model(model: Path, tmp_path: Path) -> None:
    code, folder = tmp_path / "code", tmp_path / "model"
    code.mkdir()
    folder.mkdir()
    (code / "louder_task.py").write_text(TASK)
    for name in ("model.json", "weights.pt"):
        text = (model / name).read_bytes()
        (folder / name).write_bytes(text.replace(b'"tabular"', b'"louder_task:Louder"'))
    (tmp_path / "archive.zip").write_bytes(scoring.packed(folder, code))
    program = (
        "import sys; from spark_hpo.train import scoring;"
        "print(scoring.unpacked(open(sys.argv[1], 'rb').read()).answer_names())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "archive.zip")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "('loud',)", done.stderr
