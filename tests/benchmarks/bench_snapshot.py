"""The cost of a snapshot, beside Spark's own writer: `python -m tests.benchmarks.bench_snapshot`.

Both write the same DataFrame, one after the other in each round, so that a busy machine is busy for both.
Writes docs/benchmarks/snapshots.md and prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from statistics import median

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_hpo.backend.spark.session import start_session
from spark_hpo.snapshots.frame_identity import identify
from spark_hpo.snapshots.snapshot_folder import SnapshotFolder
from spark_hpo.snapshots.write import write_frame
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from tests.benchmarks.page import FOLDER, Page, machine

COLUMNS = 33  # as in bench_data
INTRODUCTION = "# The cost of a snapshot\n\n"


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def take(frame: DataFrame, folder: SnapshotFolder, study: Storage) -> None:
    """Take the snapshot of a study, as its driver does."""
    identity = identify(frame, "the DataFrame")
    assert not identity.changing, identity.changing
    folder.obtain(identity.key, identity.source, study, lambda url: write_frame(frame, url, "the DataFrame"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    spark = start_session("bench", {"spark.ui.enabled": "false", "spark.log.level": "ERROR"})
    plain_s, snapshot_s, shared_s = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-snapshot-") as scratch:
        columns = [F.randn(seed).cast("float").alias(f"x{seed}") for seed in range(COLUMNS)]
        spark.range(options.rows).select(*columns).write.parquet(f"{scratch}/source")
        frame = spark.read.parquet(f"{scratch}/source")
        for number in range(options.rounds + 1):
            studies = [Storage(f"{scratch}/{number}/{name}") for name in ("first", "second")]
            for study in studies:
                Definition.create({}).write(study)
            folder = SnapshotFolder(f"{scratch}/{number}/.snapshots")
            plain = seconds(lambda: frame.write.parquet(f"{scratch}/plain-{number}"))  # noqa: B023
            snapshot, shared = (seconds(lambda: take(frame, folder, study)) for study in studies)  # noqa: B023
            if number:  # in the first round, the JVM compiles
                plain_s.append(plain)
                snapshot_s.append(snapshot)
                shared_s.append(shared)
    spark.stop()
    ratio = median(snapshot_s) / median(plain_s)
    page = Page(INTRODUCTION)
    page.say(f"A DataFrame of {options.rows:,} rows and {COLUMNS} float32 columns, read from Parquet, is")
    page.say(
        f"written {options.rounds} times by each, in turn; the figures are medians. A snapshot includes its"
    )
    page.say(
        "key, and the footers that the driver reads to count the rows. `make bench-data` writes this page."
    )
    page.say(f"Machine: {machine(['pyspark', 'pyarrow'])}.")
    page.say()
    page.heading("", "seconds", "relative to `df.write.parquet`")
    page.row("`df.write.parquet`", f"{median(plain_s):.2f}", "1.00")
    page.row("a snapshot", f"{median(snapshot_s):.2f}", f"{ratio:.2f}")
    shared = median(shared_s)
    page.row("the same snapshot for a second study", f"{shared:.2f}", f"{shared / median(plain_s):.2f}")
    page.write(FOLDER / "snapshots.md")
    print(json.dumps({"plain_s": plain_s, "snapshot_s": snapshot_s, "shared_s": shared_s, "ratio": ratio}))


if __name__ == "__main__":
    main()
