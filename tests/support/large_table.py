"""A table of many rows that is small on disk, and a rank that trains on it: `large_table.py FOLDER ...`.

Every row group repeats a few values, so the Parquet files are small and the decoded rows are large.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.table import open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Split

GROUP_ROWS = 100_000
SCHEMA = TableSchema(
    features=tuple(Feature(name=f"x{i}", kind=ColumnKind.NUMERIC) for i in range(32)), label=Label(name="y")
)
BYTES_PER_ROW = 33 * 4


def write_large(folder: Path, decoded_bytes: int) -> int:
    """Write the table and return its rows for training."""
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(-3, 4, GROUP_ROWS).astype("float32") for name in SCHEMA.stored}
    group = pa.table(columns)
    count = -(-decoded_bytes // (GROUP_ROWS * BYTES_PER_ROW))
    for split, groups in {Split.TRAIN: count, Split.VALIDATION: 1, Split.TEST: 1}.items():
        (folder / split).mkdir(parents=True)
        with pq.ParquetWriter(folder / split / "part-0.parquet", group.schema) as writer:
            for _ in range(groups):
                writer.write_table(group)
    (folder / "schema.json").write_text(json.dumps(SCHEMA.to_json()))
    return count * GROUP_ROWS


def main() -> None:
    """Train one epoch, and print the number of rows and the peak memory as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--reader", default="arrow")
    options = parser.parse_args()
    cache = None if options.cache is None else CacheSettings(folder=str(options.cache), max_bytes=10**12)
    spec = RankSpec(
        study_id="large",
        storage=Storage(options.folder / "study"),
        trainable=TabularTask,
        table=open_table(str(options.folder / "table")),
        objective=Objective(metric="loss", mode=Mode.MIN),
        settings=TrainingSettings(batch_size=16_384),
        max_resource=1,
        seed=0,
        reader=options.reader,
        shuffle_window=100_000,
        node_cache=cache,
    )
    assignment = Assignment(
        trial_id=0,
        attempt=1,
        params={"hidden_units": 4, "hidden_layers": 1},
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=1,
        checkpoint=None,
        seed=0,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    report = run_rank(spec, assignment, rank=0, world_size=1)
    assert report.failure is None, report.failure
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = {
        "rows": report.curve[0].rows,
        "peak_mb": peak / 1024,
        "before_mb": before / 1024,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
