"""A registered model takes raw rows: loaded with MLflow in a process, and served over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo import tune
from spark_hpo.data.encode import encode_rows
from spark_hpo.data.schema import ColumnKind, Feature, Label, OriginalColumn, TableSchema
from spark_hpo.data.text_forms import TextForm
from spark_hpo.trial import Split
from tests.support.model_server import ModelServer

N, C = ColumnKind.NUMERIC, ColumnKind.CATEGORICAL
SCHEMA = TableSchema(
    features=(
        Feature(name="age", kind=N, source="age", mean=40.0, deviation=10.0),
        Feature(name="age_missing", kind=N, source="age"),
        Feature(name="rooms", kind=N, source="rooms", mean=3.0, deviation=1.0),
        Feature(name="paid", kind=N, source="paid", mean=100.0, deviation=50.0),
        Feature(name="born", kind=N, source="born", mean=0.0, deviation=1e9),
        Feature(name="seen", kind=N, source="seen", mean=1.7e9, deviation=1e7),
        Feature(name="city", kind=C, source="city", vocabulary=("Rome", "", "Oslo")),
        Feature(name="image", kind=ColumnKind.ARRAY, source="image", shape=(3,)),
        Feature(name="words", kind=ColumnKind.SEQUENCE, source="words", shape=(4,), vocabulary=("a", "b")),
    ),
    label=Label(name="bought", classes=("no", "yes")),
    original=(
        OriginalColumn(name="age", type="double", is_optional=True),
        OriginalColumn(name="rooms", type="bigint"),
        OriginalColumn(name="paid", type="string", form=TextForm.SIGNS),
        OriginalColumn(name="born", type="string", form=TextForm.ISO),
        OriginalColumn(name="seen", type="timestamp"),
        OriginalColumn(name="city", type="string", is_optional=True),
        OriginalColumn(name="image", type="array<double>"),
        OriginalColumn(name="words", type="array<string>", is_optional=True),
        OriginalColumn(name="row", type="bigint", dropped="numbers the rows"),
        OriginalColumn(name="bought", type="string"),
    ),
    null_values=("NA",),
)
ROW: dict[str, Any] = {
    "age": 39,
    "rooms": 2,
    "paid": "$1,200.50",
    "born": "1985-01-31",
    "seen": "2024-01-31T12:00:00",
    "city": "Oslo",
    "image": [1, 0, 2],
    "words": ["a", "c"],
}


def rows(seed: int, count: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": np.where(rng.random(count) < 0.1, np.nan, rng.integers(18, 80, count)),
            "rooms": rng.integers(1, 6, count),
            "paid": [f"${value:,}" for value in rng.integers(0, 5000, count)],
            "born": [f"{year}-01-31" for year in rng.integers(1940, 2005, count)],
            "seen": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 10**6, count), "s"),
            "city": rng.choice(["Rome", "Oslo", "NA", "Lima"], count),
            "image": list(rng.normal(size=(count, 3))),
            "words": [["a", "b"][:n] for n in rng.integers(0, 3, count)],
        }
    )


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with a registered model, people/1, and the tracking URI."""
    folder = tmp_path_factory.mktemp("people")
    before = Path.cwd()
    os.chdir(folder)  # MLflow stores artifacts in the working directory
    table = folder / "table"
    for seed, split in enumerate(Split):
        given = rows(seed, 120)
        columns = encode_rows(given, SCHEMA, {})
        stored = {name: pa.array(list(columns[name])) for name in columns if not name.endswith(".length")}
        lengths = columns["words.length"]
        stored["words"] = pa.array([list(v[:n]) for v, n in zip(columns["words"], lengths, strict=True)])
        stored["bought"] = pa.array((given["rooms"] > 2).astype("int64"))
        (table / split).mkdir(parents=True)
        pq.write_table(pa.table(stored), table / split / "a.parquet", row_group_size=40)
    (table / "schema.json").write_text(json.dumps(SCHEMA.to_json()))
    (table / "example.json").write_text(json.dumps([ROW, {**ROW, "age": None, "city": None}]))
    uri = f"sqlite:///{folder}/mlflow.db"
    result = tune(
        "tabular",
        {"learning_rate": {"type": "loguniform", "low": 0.005, "high": 0.1}},
        metric="accuracy",
        mode="max",
        data=table,
        trials=2,
        max_resource=4,
        name="people",
        storage=folder / "study",
        training={"batch_size": 16},
        mlflow={"tracking_uri": uri},
        backend="inline",
    )
    assert result.model is not None
    assert result.model.name == "people"
    yield folder, uri
    os.chdir(before)


@pytest.mark.medium
def test_registered_model_has_the_signature_and_an_example_of_raw_rows(registered: tuple[Path, str]) -> None:
    folder, uri = registered
    program = (
        "import json, sys, mlflow; model = mlflow.pyfunc.load_model('models:/people/1');"
        "schema = model.metadata.get_input_schema().to_dict();"
        "outputs = model.metadata.get_output_schema().to_dict();"
        "rows = __import__('pandas').DataFrame(json.loads(sys.argv[1]));"
        "rows['seen'] = rows['seen'].astype('datetime64[ns]');"
        "answers = model.predict(rows);"
        "example = model.predict(model.input_example);"
        "print(json.dumps([schema, outputs, answers.to_dict('list'), example.to_dict('list')]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, json.dumps([ROW])],
        cwd=folder,
        env={"MLFLOW_TRACKING_URI": uri, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    inputs, outputs, answers, example = json.loads(done.stdout.splitlines()[-1])
    assert {column["name"]: column["required"] for column in inputs} == {
        name: name not in ("age", "city", "words") for name in ROW
    }
    types = {column["name"]: column["type"] for column in inputs}
    assert (types["rooms"], types["paid"], types["seen"]) == ("long", "string", "datetime")
    assert [column["name"] for column in outputs] == ["prediction", "probability_no", "probability_yes"]
    assert answers["prediction"] in (["no"], ["yes"])
    # Of one row alone, and as the first of two: sums may be rounded differently.
    assert answers["prediction"][0] == example["prediction"][0]
    assert answers["probability_yes"][0] == pytest.approx(example["probability_yes"][0])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_served_model_answers_a_raw_row_and_names_a_bad_one(registered: tuple[Path, str]) -> None:
    folder, uri = registered
    with ModelServer("models:/people/1", tracking_uri=uri, folder=folder) as server:
        status, answer = server.ask(ROW, {**ROW, "rooms": 5, "age": None})
        assert status == 200
        assert [set(row) for row in answer["predictions"]] == [
            {"prediction", "probability_no", "probability_yes"}
        ] * 2
        assert {row["prediction"] for row in answer["predictions"]} <= {"no", "yes"}
        status, answer = server.ask({name: value for name, value in ROW.items() if name != "city"})
        assert status == 200, answer
        status, answer = server.ask(ROW, {**ROW, "paid": "a lot"})
        assert status == 400
        assert "row 1, column 'paid': 'a lot' is not a number" in answer
