import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_hpo.data.writer import RowGroupWriter, record_batch, write_splits


def batch(start: int, stop: int) -> pa.RecordBatch:
    return record_batch({"x": np.arange(start, stop)})


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8), row_group_rows=st.integers(1, 9))
def test_writer_fills_every_row_group_except_for_the_last(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], row_group_rows: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "a.parquet"
    with RowGroupWriter(str(path), row_group_rows) as writer:
        for i in range(len(sizes)):
            writer.write(batch(sum(sizes[:i]), sum(sizes[: i + 1])))
    total = sum(sizes)
    assert writer.rows == total
    assert path.exists() == (total > 0)
    if total:
        footer = pq.read_metadata(path)
        groups = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        whole, rest = divmod(total, row_group_rows)
        assert groups == [row_group_rows] * whole + [rest] * (rest > 0)
        assert pq.read_table(path).column("x").to_pylist() == list(range(total))


def test_writer_publishes_finished_files_only(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RowGroupWriter(str(tmp_path / "a.parquet"), 2) as writer:
            writer.write(batch(0, 5))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []


def test_writer_puts_rows_into_the_folder_of_their_split(tmp_path: Path) -> None:
    def of(splits: list[str], first: int) -> pa.RecordBatch:
        return record_batch({"split": splits, "c0": np.arange(first, first + len(splits))})

    batches = [of(["test", "test", "train"], 0), of(["train"], 3), of(["train", "test"], 4)]
    rows = write_splits(batches, str(tmp_path), "part.parquet", 10, ["a.b"])
    assert rows == {"test": 3, "train": 3}
    assert pq.read_table(tmp_path / "test" / "part.parquet").to_pydict() == {"a.b": [0, 1, 5]}
    assert pq.read_table(tmp_path / "train" / "part.parquet").to_pydict() == {"a.b": [2, 3, 4]}
