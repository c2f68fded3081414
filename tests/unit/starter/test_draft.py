"""Study files for tables as they lie there: Parquet, Petastorm's, prepared ones."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import yaml

from spark_hpo.config import build_config
from spark_hpo.config.prepare import PrepareConfig
from spark_hpo.config.split import SplitConfig
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.starter import Start, start_study
from tests.support.tables import write_clusters


def people(rows: int = 3000) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "age": rng.integers(18, 90, rows),
            "pay": rng.normal(size=rows),
            "job": pa.array([f"job {i % 30}" for i in range(rows)]),
            "photo": pa.array([b"x"] * rows),
            "place": pa.array([{"x": 1}] * rows),
            "stars": rng.integers(1, 6, rows),
            "ok": pa.array([["no", "yes"][i % 3 == 0] for i in range(rows)]),
            "rare": pa.array([["no", "yes"][i % 50 == 0] for i in range(rows)]),
        }
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "my people"
    folder.mkdir()
    pq.write_table(people(), folder / "a.parquet", row_group_size=100)
    return folder


def prepared(folder: Path, label: Label, target: np.ndarray) -> Path:
    schema = TableSchema(
        features=(
            Feature(name="x", kind=ColumnKind.NUMERIC, source="x"),
            Feature(name="c", kind=ColumnKind.CATEGORICAL, vocabulary=tuple("abcdefghijklmnop"), source="c"),
        ),
        label=label,
    )
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True)
        rows = len(target)
        columns = {"x": np.zeros(rows, np.float32), "c": np.ones(rows, np.int64), label.name: target}
        pq.write_table(pa.table(columns), folder / split / "a.parquet")
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return folder


def record(start: Start) -> dict[str, object]:
    """The text as `run` reads it; it is what was checked."""
    found = yaml.safe_load(start.text)
    assert build_config(found, place="test") == start.config
    return found


class TestRawParquet:
    def test_draft_prepares_its_table(self, raw: Path) -> None:
        start = start_study(str(raw), label="ok")
        assert start.config.name == "my-people"
        assert start.config.data is not None
        assert start.config.data.path == "data/my-people-prepared"
        assert start.config.data.prepare == PrepareConfig(
            source="csv",
            input=str(raw),
            format="parquet",
            label="ok",
            label_type="class",
            drop=("photo", "place"),
        )
        assert start.config.objective.metric == "accuracy"
        assert "photo (binary), place (struct" in start.remarks[0]
        record(start)

    def test_classes_and_numbers_are_told_apart_for_good(self, raw: Path) -> None:
        labels = {"stars": "class", "pay": "number", "age": "number", "rare": "class"}
        for label, kind in labels.items():
            data = start_study(str(raw), label=label).config.data
            assert data is not None
            assert data.prepare is not None
            assert data.prepare.label_type == kind
        assert start_study(str(raw), label="rare").config.objective.metric == "average_precision"

    @pytest.mark.parametrize("label", [None, "jobs", "place"])
    def test_start_study_names_a_label_that_is_invalid(self, raw: Path, label: str | None) -> None:
        with pytest.raises(ConfigError) as refused:
            start_study(str(raw), label=label)
        assert refused.value.key == "--label"
        if label is not None:
            assert refused.value.value == label

    def test_draft_of_a_small_table_holds_out_a_larger_share(self, tmp_path: Path) -> None:
        pq.write_table(people(500), tmp_path / "few.parquet")
        data = start_study(str(tmp_path / "few.parquet"), label="ok").config.data
        assert data is not None
        assert data.prepare is not None
        assert data.prepare.fractions == (0.6, 0.2, 0.2)

    def test_draft_of_a_large_table_reads_it_in_place(
        self, raw: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("spark_hpo.starter.table_facts._COPIED_BYTES", 1000)
        start = start_study(str(raw), label="ok")
        assert start.config.data is not None
        assert start.config.data.prepare is None
        assert (start.config.data.path, start.config.data.label) == (str(raw), "ok")
        assert start.config.data.drop == ("photo", "place")
        assert any("run reads it in place" in remark for remark in start.remarks)

    def test_partitions_are_columns(self, tmp_path: Path) -> None:
        for country in ("DE", "FR"):
            (tmp_path / "t" / f"country={country}").mkdir(parents=True)
            pq.write_table(people(300), tmp_path / "t" / f"country={country}" / "a.parquet")
        assert start_study(str(tmp_path / "t"), label="country").config.objective.metric == "accuracy"

    def test_draft_of_a_csv_prepares_it(self, tmp_path: Path) -> None:
        rows = [f"{i};{i * 0.5};{'x' if i % 3 else '?'};{['no', 'yes'][i % 2]}" for i in range(5000)]
        (tmp_path / "a.csv").write_text("\n".join(["id;x;c;y", *rows]))
        start = start_study(str(tmp_path / "a.csv"), label="y")
        assert (start.config.name, start.config.objective.metric) == ("a", "accuracy")
        assert start.config.data is not None
        assert start.config.data.prepare == PrepareConfig(
            source="csv", input=str(tmp_path / "a.csv"), format="csv", label="y", label_type="class"
        )
        assert "about 4,000 rows for training" in start.text
        assert "2 numbers, 1 column of categories" in start.text

    def test_draft_of_messages_reads_their_texts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("transformers")
        words = ["call", "me", "now", "or", "never", "again", "tomorrow", "please"]
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(3000)]
        frame = pa.table({"message": texts, "kind": [["ham", "spam"][i % 2] for i in range(3000)]})
        pacsv.write_csv(frame, tmp_path / "a.csv")
        start = start_study(str(tmp_path / "a.csv"), label="kind")
        assert record(start)["task"] == "text"
        assert start.config.data is not None
        assert start.config.data.prepare is not None
        assert start.config.data.prepare.text == ("message",)
        assert start.config.data.prepare.split == SplitConfig(key=("message",))  # some texts are equal
        monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
        start = start_study(str(tmp_path / "a.csv"), label="kind")
        assert start.config.task == "tabular"
        assert any("spark_hpo[transformers]" in remark for remark in start.remarks)

    def test_draft_of_lists_is_a_study_of_sequences(self, tmp_path: Path) -> None:
        pages = pa.array([["home", "cart"][: 1 + i % 2] for i in range(3000)])
        pq.write_table(people().append_column("pages", pages), tmp_path / "visits.parquet")
        start = start_study(str(tmp_path / "visits.parquet"), label="ok")
        assert record(start)["task"] == "sequence"
        assert "lists in pages" in start.text

    def test_draft_of_a_delta_table_reads_it_in_place(self, tmp_path: Path) -> None:
        deltalake = pytest.importorskip("deltalake")
        deltalake.write_deltalake(str(tmp_path / "lake"), people().drop(["photo", "place"]))
        start = start_study(str(tmp_path / "lake"), label="ok")
        assert start.config.data is not None
        assert (start.config.data.path, start.config.data.label) == (str(tmp_path / "lake"), "ok")
        assert start.config.data.prepare is None

    def test_draft_warns_of_a_column_that_gives_the_label_away(self, tmp_path: Path) -> None:
        rows = people().append_column("since", pa.array([i % 3 * 1.5 for i in range(3000)]))
        pq.write_table(rows, tmp_path / "leaky.parquet")
        remarks = start_study(str(tmp_path / "leaky.parquet"), label="ok").remarks
        assert any("column 'since' alone predicts the label 'ok'" in remark for remark in remarks)

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_draft_splits_by_a_time_whose_neighbours_are_alike(self, tmp_path: Path, kind: str) -> None:
        rng = np.random.default_rng(1)
        days = np.datetime64("2020-01-01") + np.arange(4000)
        rows = pa.table({"day": days, "x": rng.normal(size=4000), "y": np.cumsum(rng.normal(size=4000))})
        path = str(tmp_path / f"sales.{kind}")
        pacsv.write_csv(rows, path) if kind == "csv" else pq.write_table(rows, path)
        start = start_study(path, label="y")
        assert start.config.data is not None
        assert start.config.data.prepare is not None
        assert start.config.data.prepare.split == SplitConfig(time="day")
        assert any("next" in remark or "neighbours" in remark for remark in start.remarks)

    def test_draft_refuses_two_columns_of_one_name_and_tables_of_few_rows(self, tmp_path: Path) -> None:
        column = pa.array(range(50))
        pq.write_table(pa.table([column, column, column], names=["a", "a", "y"]), tmp_path / "twice.parquet")
        with pytest.raises(DataError, match="2 columns are named 'a'"):
            start_study(str(tmp_path / "twice.parquet"), label="y")
        (tmp_path / "few.csv").write_text("a,y\n1,2\n3,4\n")
        with pytest.raises(DataError, match="2 rows"):
            start_study(str(tmp_path / "few.csv"), label="y")

    def test_draft_without_a_table_names_valid_ones(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            start_study(str(tmp_path / "nothing"), label="y")


class TestPreparedTable:
    def test_draft_reads_a_prepared_table_unchanged(self, tmp_path: Path) -> None:
        table = prepared(tmp_path / "flowers", Label(name="y", classes=("a", "b", "c")), np.arange(300) % 3)
        start = start_study(str(table), world_size=2, study_dir="/mnt/s", tracking_uri="http://mlflow:5000")
        found = record(start)
        assert found["data"] == {"path": str(table), "reader": "auto"}
        assert found["study_dir"] == "/mnt/s"
        assert found["resources"] == {"world_size": 2}
        assert found["mlflow"] == {"tracking_uri": "http://mlflow:5000"}
        assert "33% of the rows are of one class" in start.text
        assert start.config.space["embedding_units"] == {"type": "choice", "options": [4, 8, 16]}

    def test_draft_reports_an_unbalanced_label(self, tmp_path: Path) -> None:
        label = Label(name="y", classes=("no", "yes"))
        table = prepared(tmp_path / "t", label, (np.arange(1000) % 20 == 0).astype(np.int64))
        start = start_study(str(table))
        assert start.config.objective.metric == "average_precision"
        assert start.config.training.class_weights == "balanced"
        record(start)

    def test_draft_of_a_number_is_a_regression_with_the_score_to_beat(self, tmp_path: Path) -> None:
        label = Label(name="y", mean=5.0, deviation=4.0)
        table = prepared(tmp_path / "t", label, np.arange(300, dtype=np.float32))
        start = start_study(str(table))
        assert start.config.objective.metric == "squared_error"
        assert "always predicting the mean gives about 16" in start.text

    def test_another_label_than_its_own_is_refused(self, tmp_path: Path) -> None:
        table = prepared(tmp_path / "t", Label(name="y", classes=("a", "b")), np.arange(300) % 2)
        with pytest.raises(ConfigError, match="was prepared with the label 'y', not 'x'"):
            start_study(str(table), label="x")

    def test_few_rows_of_validation_are_remarked(self, tmp_path: Path) -> None:
        table = prepared(tmp_path / "t", Label(name="y", classes=("a", "b")), np.arange(50) % 2)
        assert any("validation has 50 rows" in remark for remark in start_study(str(table)).remarks)


def test_draft_contains_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = prepared(tmp_path / "t", Label(name="y", classes=("a", "b")), np.arange(300) % 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:secret-word@mlflow")
    with pytest.raises(ConfigError, match="contains a password") as caught:
        start_study(str(table))
    assert "secret-word" not in str(caught.value)


def test_petastorm_s_images_are_decoded_where_their_source_is_trusted(tmp_path: Path) -> None:
    pytest.importorskip("petastorm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Petastorm announces what it will one day lose
        from petastorm.codecs import NdarrayCodec
        from petastorm.unischema import Unischema, UnischemaField
    pixels = UnischemaField("pixels", np.uint8, (1, 8, 8), NdarrayCodec(), False)
    images = np.zeros((60, 1, 8, 8), np.uint8)
    table = pa.table(
        {"pixels": [bytes(pixels.codec.encode(pixels, i)) for i in images], "digit": np.arange(60) % 10}
    )
    folder = tmp_path / "pictures"
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    schema = {b"dataset-toolkit.unischema.v1": pickle.dumps(Unischema("pictures", [pixels]))}
    pq.write_metadata(table.schema.with_metadata(schema), folder / "_common_metadata")
    with pytest.raises(DataError, match=r"pixels \(binary\); --trust-petastorm-metadata decodes"):
        start_study(str(folder), label="digit")
    trusted = start_study(str(folder), label="digit", trust_petastorm_metadata=True)
    assert trusted.config.task == "image"
    assert trusted.config.data is not None
    assert trusted.config.data.transforms == {"pixels": "petastorm:NdarrayCodec"}


def test_the_budget_of_a_prepared_table_follows_the_measured_time_of_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clusters(tmp_path / "clusters", rows=600)
    start = start_study("clusters", measure=True)
    assert "as measured here" in start.text
    assert start.config.budget.seconds is not None
    assert start.config.budget.seconds < 3600  # a small table is fast
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clusters"]  # the rehearsal left nothing
