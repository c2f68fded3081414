"""Studies of a table that is prepared in place at a version of a lake table, without Spark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableFormat, TableSchema
from spark_hpo.driver.run import run_study
from spark_hpo.errors import DataError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Split
from tests.support.lakes import MovingDelta, MovingIceberg
from tests.support.tables import clusters_study

pytestmark = pytest.mark.medium

SCHEMA = TableSchema(
    features=(Feature(name="x", kind=ColumnKind.NUMERIC, mean=5.0, deviation=3.0),),
    label=Label(name="label", classes=("no", "yes")),
    encoding=Encoding.RAW,
)
WHERE = {
    Split.TRAIN: "id < 400",
    Split.VALIDATION: "id between 400 and 499",
    Split.TEST: "id >= 500",
}


@pytest.mark.parametrize(("make", "reader"), [(MovingDelta, "petastorm"), (MovingIceberg, "arrow")])
def test_study_resumes_at_its_version_and_names_one_that_is_gone(
    tmp_path: Path, make: Any, reader: str
) -> None:
    for package in ("deltalake", "pyiceberg", *(["petastorm"] if reader == "petastorm" else [])):
        pytest.importorskip(package)
    table = make(tmp_path)
    format = TableFormat.DELTA if make is MovingDelta else TableFormat.ICEBERG
    sources = {
        str(split): Source(url=str(table.folder), format=format, version=table.version, where=where)
        for split, where in WHERE.items()
    }
    (tmp_path / "table").mkdir()
    record = replace(SCHEMA, sources=sources).to_json()
    (tmp_path / "table/schema.json").write_text(json.dumps(record))
    config = clusters_study(
        tmp_path, data={"path": str(tmp_path / "table"), "reader": reader}, budget={"trials": 2}
    )
    assert run_study(config).best.metrics["accuracy"] > 0.8
    table.move_on()
    more = config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 3})})
    assert run_study(more).study.progress.replayed > 0
    source = Definition.require(Storage(config.study_dir)).source
    assert source is not None
    assert (source["url"], source["version"]) == (str(table.folder), table.version)
    assert sum(source["rows"].values()) == table.num_rows

    table.forget()
    with pytest.raises(DataError, match=rf"{table.version}\) is gone"):
        run_study(config.model_copy(update={"budget": config.budget.model_copy(update={"trials": 4})}))
