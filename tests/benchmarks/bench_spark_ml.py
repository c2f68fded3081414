"""Times the two searches of docs/spark-ml.md: `python -m tests.benchmarks.bench_spark_ml [--repeats 5]`.

The same grid with the same folds, by pyspark.ml's CrossValidator and by a study with `backend: driver`, in
turn, on `local[2]` with FAIR scheduling. The first pair is not counted. The last line is JSON: medians in
seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.documents import blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from pyspark.sql import SparkSession

    settings = {
        "spark.master": "local[2]",
        "spark.scheduler.mode": "FAIR",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    SparkSession.builder.config(map=settings).getOrCreate()
    rows, theirs, ours = (block.text for block in blocks("docs/spark-ml.md", "python")[:3])
    names: dict[str, Any] = {}
    exec(rows, names)
    seconds: dict[str, list[float]] = {"cross_validator": [], "study": []}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for number in range(options.repeats + 1):
            for name, program in (("cross_validator", theirs), ("study", ours)):
                place = Path(folder, f"{name}-{number}")
                place.mkdir()
                os.chdir(place)  # of a study of its own
                began = time.perf_counter()
                exec(program, names)
                seconds[name].append(time.perf_counter() - began)
                print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    print(json.dumps({name: round(median(values[1:]), 2) for name, values in seconds.items()}))


if __name__ == "__main__":
    main()
