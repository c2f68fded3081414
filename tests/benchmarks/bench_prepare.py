"""The cost of `prepare` beyond its session: `python -m tests.benchmarks.bench_prepare [--beside CHECKOUT]`.

Prepares made-up CSVs of 15 columns, each in a process and a session of its own. With `--beside`, another
checkout of this repository prepares the same files in turn, and the outputs are compared.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0
PREPARE = """
import json, sys, time
began = time.monotonic()
from spark_hpo.prepare import csv
from spark_hpo.prepare.sources import own_session
with own_session() as spark:
    started = time.monotonic()
    csv(spark, sys.argv[2], input=sys.argv[1], label="y", clean=True)
    print(json.dumps([started - began, time.monotonic() - started]))
"""


def write_table(path: Path, rows: int) -> None:
    """Numbers, texts, dates and missing values, as users export them."""
    rng = np.random.default_rng(rows)
    columns: dict[str, object] = {f"x{i}": rng.normal(size=rows).round(4) for i in range(6)}
    columns |= {f"c{i}": rng.choice([f"value {j}" for j in range(5 * 4**i)], rows) for i in range(4)}
    columns["day"] = pd.date_range("2020-01-01", periods=rows, freq="min").strftime("%d.%m.%Y")
    columns["price"] = [f"${value:,.2f}" for value in rng.lognormal(7, 1, rows)]
    columns["gaps"] = np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows))
    columns["id"] = np.arange(rows)
    columns["y"] = rng.choice(["no", "yes"], rows)
    pd.DataFrame(columns).to_csv(path, index=False)


def seconds(checkout: Path, table: Path, output: Path) -> tuple[float, float]:
    """Prepare a table with the package of a checkout: seconds of its session, and beyond."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREPARE, str(table), str(output)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    session, beyond = json.loads(done.stdout.splitlines()[-1])
    return session, beyond


def parquet_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 60_000])
    parser.add_argument("--beside", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    checkouts = {"this": ROOT} | ({"other": options.beside.resolve()} if options.beside else {})
    with tempfile.TemporaryDirectory() as scratch:
        for rows in options.rows:
            table = Path(scratch, f"{rows}.csv")
            write_table(table, rows)
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
            outputs: dict[str, Path] = {}
            for run in range(options.runs):
                for name, checkout in checkouts.items():
                    outputs[name] = Path(scratch, f"{rows}-{name}-{run}")
                    measured[name].append(seconds(checkout, table, outputs[name]))
            beyond = {name: median(b for _, b in values) for name, values in measured.items()}
            for name, values in measured.items():
                session = median(s for s, _ in values)
                print(
                    f"{rows:,} rows, {name}: session {session:.1f} s, beyond {beyond[name]:.1f} s", flush=True
                )
            if "other" in beyond:
                names = parquet_of(outputs["this"])
                same = names == parquet_of(outputs["other"]) and not any(
                    filecmp.cmpfiles(outputs["this"], outputs["other"], names, shallow=False)[1:]
                )
                ratio = beyond["other"] / beyond["this"]
                print(
                    f"{rows:,} rows: other / this {ratio:.2f}; files are {'equal' if same else 'NOT equal'}"
                )


if __name__ == "__main__":
    main()
