"""Preparing columns of texts on a real Spark, and reading them with the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from spark_hpo import prepare
from spark_hpo.data.encode import encode_rows
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.table import Table, open_table
from spark_hpo.train.texts import texts_of
from spark_hpo.trial import Split

pytestmark = pytest.mark.spark

TEXTS = (" Grüße aus Köln ", "a, b", "", "nan", "πολύ " * 1000)


def write_parquet(folder: Path, texts: list[str], **columns: Any) -> str:
    folder.mkdir()
    table = pa.table({"text": texts, **columns, "y": [i % 2 for i in range(len(texts))]})
    pq.write_table(table, folder / "a.parquet", row_group_size=5)
    return str(folder)


def texts_in(table: Table, split: Split) -> list[str]:
    loader = Loader(table, split, rank=0, world_size=1, batch_size=16, seed=0, shuffle_window=None)
    return [text for batch in next(loader.passes(0, 1)) for text in texts_of(batch, "text")]


@pytest.mark.parametrize("in_place", [False, True])
def test_texts_are_delivered_as_their_bytes(spark: Any, tmp_path: Path, in_place: bool) -> None:
    texts = [TEXTS[i % 5].replace("a", "ä" * (i % 3)) for i in range(300)]
    source = write_parquet(tmp_path / "in", texts, x=[i / 7 for i in range(300)])
    out = str(tmp_path / "out")
    prepare.csv(spark, out, input=source, label="y", text=["text"], clean=True, in_place=in_place)
    table = open_table(out)
    text = next(feature for feature in table.schema.features if feature.name == "text")
    assert (text.kind, text.shape, text.vocabulary) == (ColumnKind.TEXT, (4096,), ())
    read = {text for split in Split for text in texts_in(table, split)}
    spelled = {text.strip() for text in texts}
    expected = {"" if text == "nan" else text.encode()[:4096].decode(errors="ignore") for text in spelled}
    assert read == expected
    # A model encodes rows of the original table alike.
    rows = pd.DataFrame({"text": texts[:20], "x": [0.5] * 20})
    encoded = encode_rows(rows, table.schema, {})
    given = texts_of({name: torch.tensor(values) for name, values in encoded.items()}, "text")
    assert set(given) <= expected
    assert given[0] == "Grüße us Köln"


@pytest.mark.parametrize("in_place", [False, True])
def test_split_by_the_text_keeps_equal_texts_together(spark: Any, tmp_path: Path, in_place: bool) -> None:
    source = write_parquet(tmp_path / "in", [f"message {i % 100}" for i in range(300)])
    options = {"text": ["text"], "split": {"key": "text"}, "in_place": in_place}
    prepare.csv(spark, str(tmp_path / "out"), input=source, label="y", **options)
    table = open_table(str(tmp_path / "out"))
    assert [feature.name for feature in table.schema.features] == ["text"]
    sides = [set(texts_in(table, split)) for split in Split]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 100
