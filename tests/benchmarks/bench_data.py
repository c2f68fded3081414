"""Compares the cost of reading with other loaders: `python -m tests.benchmarks.bench_data`.

Every contestant reads the same Parquet in a process of its own, round after round, so that a busy machine
is busy for all of them; the figures are medians. Prints one table and one JSON line, and writes
docs/benchmarks/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Label, Source, TableFormat, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.trial import Split
from tests.support.lakes import write_many_files

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "data.md"
COLUMNS = 33  # 32 features and a label, float32
ROW_GROUP_ROWS = 50_000
BATCH = 4096
WINDOW = 100_000
LIMIT_S = 600
READERS = ("petastorm", "arrow")
IN_PLACE = {"parquet-in-place": TableFormat.PARQUET, "delta-in-place": TableFormat.DELTA}
TURNS = 3  # of the tables in place, in each round
PLANNED = "planned.json"
MANY_ROWS = 1_000  # in each of very many files
SCHEMA = TableSchema(
    features=tuple(Feature(name=f"x{i}", kind=ColumnKind.NUMERIC) for i in range(COLUMNS - 1)),
    label=Label(name="y"),
)


def write_table(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in {Split.TRAIN: rows, Split.VALIDATION: 100, Split.TEST: 100}.items():
        (folder / split).mkdir(parents=True)
        for number, part in enumerate(np.array_split(np.arange(count), 4)):
            columns = {name: rng.normal(size=len(part)).astype("float32") for name in SCHEMA.stored}
            path = folder / split / f"part-{number}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP_ROWS)
    (folder / "schema.json").write_text(json.dumps(SCHEMA.to_json()))


def write_in_place(folder: Path, table: Path) -> None:
    """Make the same files a Parquet table and a Delta table that are read in place."""
    from deltalake import convert_to_deltalake

    for name, format in IN_PLACE.items():
        sources = {}
        for split in Split:
            place = folder / name / f"{split}.files"
            shutil.copytree(table / split, place, copy_function=os.link)
            version = None
            if format is TableFormat.DELTA:
                convert_to_deltalake(str(place))
                version = 0
            sources[str(split)] = Source(url=str(place), format=format, version=version)
        schema = replace(SCHEMA, encoding=Encoding.RAW, sources=sources)
        (folder / name / "schema.json").write_text(json.dumps(schema.to_json()))
        planned = open_table(str(folder / name)).to_json()  # by the driver; ranks need no deltalake
        (folder / name / PLANNED).write_text(json.dumps(planned))


def write_many(folder: Path, count: int) -> None:
    """Make a Delta table of very many files, with splits in place."""
    write_many_files(folder, count, MANY_ROWS)
    features = tuple(Feature(name=name, kind=ColumnKind.NUMERIC) for name in (f"x{i}" for i in range(9)))
    shares = {Split.TRAIN: (0.0, 0.8), Split.VALIDATION: (0.8, 0.9), Split.TEST: (0.9, 1.0)}
    schema = TableSchema(
        features=features,
        label=Label(name="y"),
        encoding=Encoding.RAW,
        sources={
            str(split): Source(url=str(folder), format=TableFormat.DELTA, version=0, share=share)
            for split, share in shares.items()
        },
    )
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))


@cache
def _table(folder: str) -> Table:
    """Footers are read once a study, by the driver."""
    planned = Path(folder) / PLANNED
    return Table.from_json(json.loads(planned.read_text())) if planned.exists() else open_table(folder)


# The contestants, each in a process of its own ------------------------------------------------------------


def bare_scan(folder: Path, split: str, **_: Any) -> Iterator[int]:
    """Arrow tables, as they are: neither shuffled nor batched, no tensors."""
    for file in sorted((folder / split).iterdir()):
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group).num_rows


def ours(
    folder: Path, split: str, *, reader: str, cache_dir: str, rank: int = 0, world_size: int = 1
) -> Iterator[int]:
    loader = Loader(
        _table(str(folder)),
        Split(split),
        rank=rank,
        world_size=world_size,
        batch_size=BATCH * world_size,
        seed=1,
        reader=reader,
        shuffle_window=WINDOW,
        node_cache=CacheSettings(folder=cache_dir, max_bytes=10**11),
    )
    for batch in next(loader.passes(0, 1)):
        yield len(batch["y"])


def petastorm_loader(folder: Path, split: str, **_: Any) -> Iterator[int]:
    """Petastorm's own batched loader with a shuffling queue of the same size."""
    from petastorm import make_batch_reader
    from petastorm.pytorch import BatchedDataLoader

    with make_batch_reader(f"file://{folder}/{split}", num_epochs=1) as reader:
        for batch in BatchedDataLoader(reader, batch_size=BATCH, shuffling_queue_capacity=WINDOW):
            yield len(batch["y"])


def torch_loader(folder: Path, split: str, *, workers: int) -> Iterator[int]:
    """torch's DataLoader over an Arrow dataset: batches as tensors, not shuffled."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Batches(IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            files = sorted((folder / split).iterdir())
            if (worker := get_worker_info()) is not None:
                files = files[worker.id :: worker.num_workers]
            for batch in ds.dataset(files).to_batches(batch_size=BATCH):
                columns = zip(batch.schema.names, batch.columns, strict=True)
                yield {name: torch.from_numpy(column.to_numpy().copy()) for name, column in columns}

    for batch in DataLoader(Batches(), batch_size=None, num_workers=workers):
        yield len(batch["y"])


def plan(folder: Path) -> dict[str, float]:
    """Plan a table: read its log and footers, and assign its row groups to splits."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    table = open_table(str(folder))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    began = time.perf_counter()
    few = open_table(str(folder), where=f"id < {table.rows // 100}")
    return {
        "rows": table.rows,
        "seconds": seconds,
        "memory_mb": peak / 1024,
        "rows_of_condition": few.rows,
        "seconds_with_condition": time.perf_counter() - began,
    }


CONTESTANTS: dict[str, Callable[..., Iterable[int]]] = {
    "bare_scan": bare_scan,
    "ours": ours,
    "petastorm_loader": petastorm_loader,
    "torch_loader": torch_loader,
}


def child(name: str, folder: Path, options: dict[str, Any]) -> None:
    """Read one epoch; say how long it took, what memory it needed, and whose the mapped memory is."""
    import torch

    torch.set_num_threads(1)
    read = CONTESTANTS[name]
    sum(read(folder, "validation", **options))  # imports and thread pools: executors have them ready
    began, cpu_began = time.perf_counter(), time.process_time()
    rows = sum(read(folder, "train", **options))
    answer = {
        "rows": rows,
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_began,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(answer), flush=True)


def hold(folder: Path, options: dict[str, Any]) -> None:
    """Read an epoch from the cache, then wait: while two of these do, the parent counts their memory."""
    rows = sum(ours(folder, "train", **options))
    print(json.dumps({"rows": rows}), flush=True)
    sys.stdin.read()


# The parent -----------------------------------------------------------------------------------------------


def start(kind: str, name: str, folder: Path, options: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", __spec__.name, kind, name, str(folder), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def run(name: str, folder: Path, *options: dict[str, Any]) -> dict[str, float]:
    """One process for each of the options, all at once: rows a second of them together."""
    processes = [start("--child", name, folder, o) for o in options or ({},)]
    answers = [json.loads(process.communicate(timeout=LIMIT_S)[0]) for process in processes]
    return {
        "rows_s": sum(answer["rows"] for answer in answers) / max(answer["seconds"] for answer in answers),
        "peak_memory_mb": max(answer["peak_memory_mb"] for answer in answers),
        "rows": sum(answer["rows"] for answer in answers),
        "cpu_s": sum(answer["cpu_s"] for answer in answers),
    }


def copies_in_memory(folder: Path, options: dict[str, Any], table_bytes: int) -> float:
    """Two trials at once: their proportional shares of the mapped cache, over the size of the table."""
    processes = [start("--hold", "ours", folder, options) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        shares = [mapped_share_kb(process.pid, options["cache_dir"]) for process in processes]
    finally:
        for process in processes:
            process.communicate(timeout=LIMIT_S)
    return sum(shares) * 1024 / table_bytes


def mapped_share_kb(pid: int, folder: str) -> int:
    """Pss of what a process maps from a folder: a page that two map counts half for each."""
    total, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = folder in line
        elif ours and line.startswith("Pss:"):
            total += int(line.split()[1])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=100_000, help="of the table that is only planned")
    parser.add_argument("--output", type=Path, default=PAGE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as scratch:
        folder = Path(scratch) / "table"
        write_table(folder, options.rows)
        write_in_place(Path(scratch), folder)
        results: dict[str, list[dict[str, float]]] = {}
        for number in range(options.rounds):
            for name, result in one_round(folder, Path(scratch) / f"round-{number}"):
                assert result["rows"] == options.rows or name == "Petastorm's BatchedDataLoader", (
                    name,
                    result,
                )
                results.setdefault(name, []).append(result)
            if number:  # what is still to be written to the disk must not slow the next round
                shutil.rmtree(Path(scratch) / f"round-{number}")
        cached = {"reader": "arrow", "cache_dir": str(Path(scratch) / "round-0" / "arrow")}
        copies = copies_in_memory(folder, cached, options.rows * COLUMNS * 4)
        write_many(Path(scratch) / "many", options.files)
        planned = json.loads(start("--plan", "", Path(scratch) / "many", {}).communicate(timeout=LIMIT_S)[0])
        assert planned["rows"] == options.files * MANY_ROWS, planned
        assert planned["rows_of_condition"] == planned["rows"] // 100, planned
    rows_s = {name: median(r["rows_s"] for r in runs) for name, runs in results.items()}
    memory = {name: median(r["peak_memory_mb"] for r in runs) for name, runs in results.items()}
    cpu_s = {name: min(r["cpu_s"] for r in runs) for name, runs in results.items()}
    cost = {
        epoch: cpu_s[f"Delta in place, {epoch}"] / cpu_s[f"Parquet in place, {epoch}"] - 1
        for epoch in ("first epoch", "cached epoch")
    }
    page = render(rows_s, memory, copies, options.rows) + "\n" + render_lakes(cost, planned, options.files)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page)
    print(page)
    print(
        json.dumps(
            {
                "bare_scan_rows_s": round(rows_s["pyarrow, bare scan"]),
                "first_epoch_rows_s": {r: round(rows_s[f"{r}, first epoch"]) for r in READERS},
                "cached_epoch_rows_s": {r: round(rows_s[f"{r}, cached epoch"]) for r in READERS},
                "petastorm_loader_rows_s": round(rows_s["Petastorm's BatchedDataLoader"]),
                "torch_loader_rows_s": round(rows_s["torch's DataLoader"]),
                "peak_memory_mb": {name: round(value) for name, value in memory.items()},
                "copies_on_node": round(copies, 2),
                "delta_cost": {epoch: round(value, 3) for epoch, value in cost.items()},
                "plan": {name: round(value, 1) for name, value in planned.items()},
            }
        )
    )


def one_round(folder: Path, caches: Path) -> Iterator[tuple[str, dict[str, float]]]:
    yield "pyarrow, bare scan", run("bare_scan", folder)
    for turn in range(TURNS):
        for name, format in IN_PLACE.items():
            options = {"reader": "arrow", "cache_dir": str(caches / f"{name}-{turn}")}
            for epoch in ("first epoch", "cached epoch"):
                yield f"{format.capitalize()} in place, {epoch}", run("ours", folder.parent / name, options)
    for reader in READERS:
        alone = {"reader": reader, "cache_dir": str(caches / reader)}
        yield f"{reader}, first epoch", run("ours", folder, alone)
        yield f"{reader}, cached epoch", run("ours", folder, alone)
        pair = [
            {"reader": reader, "cache_dir": str(caches / f"{reader}-2"), "rank": r, "world_size": 2}
            for r in (0, 1)
        ]
        yield f"{reader}, first epoch, 2 ranks", run("ours", folder, *pair)
        yield f"{reader}, cached epoch, 2 ranks", run("ours", folder, *pair)
    yield "Petastorm's BatchedDataLoader", run("petastorm_loader", folder)
    # Workers pass every column of every batch through shared memory: the faster of both counts.
    both = [run("torch_loader", folder, {"workers": workers}) for workers in (0, 2)]
    yield "torch's DataLoader", max(both, key=lambda result: result["rows_s"])


def render(rows_s: dict[str, float], memory: dict[str, float], copies: float, rows: int) -> str:
    scan, peer = rows_s["pyarrow, bare scan"], rows_s["Petastorm's BatchedDataLoader"]
    lines = [
        "# The cost of reading a table",
        "",
        f"The table has {rows:,} rows of {COLUMNS} float32 columns in row groups of {ROW_GROUP_ROWS:,}. Each",
        f"rank reads batches of {BATCH:,} rows, shuffled in windows of {WINDOW:,} rows, on {os.cpu_count()}",
        "cores. The *first epoch* decodes the Parquet files and builds the node cache; a *cached epoch*, in",
        "another process, maps the cache into memory. With two ranks, the rows of both count.",
        "`make bench-data` writes this page.",
        "",
        "| | million rows/s | MB/s | relative to a bare scan | relative to Petastorm's loader "
        "| peak memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, value in rows_s.items():
        lines.append(
            f"| {name} | {value / 1e6:.2f} | {value * COLUMNS * 4 / 1e6:,.0f} | {value / scan:.2f} "
            f"| {value / peer:.1f} | {memory[name]:.0f} |"
        )
    lines += [
        "",
        f"Two trials that run at once on one machine hold {copies:.2f} copies of the table in memory.",
        "",
    ]
    return "\n".join(lines)


def render_lakes(cost: dict[str, float], planned: dict[str, float], files: int) -> str:
    lines = [
        "## Delta tables",
        "",
        "The rows *in place* read the same files, with the reader arrow: once as a folder of Parquet files,",
        "once by the log of a Delta table. Each is read several times a round, in turn. Between the best",
        "runs of both, the processor time of the Delta table differs by",
        f"{cost['first epoch']:+.1%} in the first epoch and by {cost['cached epoch']:+.1%} in a cached one.",
        "",
        f"Planning a Delta table of {files:,} files with {planned['rows']:,.0f} rows of 11 columns took",
        f"{planned['seconds']:.0f} s and {planned['memory_mb']:,.0f} MB. With a condition for which the log",
        f"rules out 99 % of the files, it took {planned['seconds_with_condition']:.1f} s.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    elif sys.argv[1:2] == ["--plan"]:
        print(json.dumps(plan(Path(sys.argv[3]))))
    elif sys.argv[1:2] == ["--hold"]:
        hold(Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
