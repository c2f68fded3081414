"""Tables of any size with a known best score, for tests of scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import SparkSession

from spark_hpo.data import files
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.data.writer import RowGroupWriter, record_batch, summary_batch
from spark_hpo.errors import ConfigError
from spark_hpo.prepare import splits
from spark_hpo.prepare.output import Prepared, Request
from spark_hpo.prepare.phases import announce
from spark_hpo.trial import Split

LABEL = "label"
_ROW_GROUPS_PER_FILE = 16


def request(
    output: str,
    *,
    rows: int,
    columns: int,
    teacher: str = "linear",
    label_type: str = "class",
    noise: float = 0.1,
    fractions: Sequence[float] = splits.DEFAULT_FRACTIONS,
    seed: int = 0,
    row_group_rows: int = 16_384,
    overwrite: bool = False,
) -> Request:
    """Check the arguments of `synthetic`.

    Raises:
        ConfigError: an argument is invalid.
    """
    splits.check_fractions(fractions)
    splits.check_row_group_rows(row_group_rows)
    if rows < 3:
        raise ConfigError("must be an integer >= 3", key="rows", value=rows)
    if columns < 2:
        raise ConfigError("must be an integer >= 2", key="columns", value=columns)
    if teacher not in ("linear", "product"):
        raise ConfigError("must be linear or product", key="teacher", value=teacher)
    if label_type not in ("class", "number"):
        raise ConfigError("must be class or number", key="label_type", value=label_type)
    if noise < 0 or (label_type == "class" and noise >= 0.5):
        raise ConfigError("must be >= 0, and < 0.5 for classes", key="noise", value=noise)
    arguments = {
        "table": "synthetic",
        "rows": rows,
        "columns": columns,
        "teacher": teacher,
        "label_type": label_type,
        "noise": noise,
        "fractions": list(fractions),
        "seed": seed,
        "row_group_rows": row_group_rows,
    }
    return Request(output=output, arguments=arguments, overwrite=overwrite)


def synthetic(spark: SparkSession, output: str, **options: Any) -> Prepared:
    """Write `rows` x `columns` standard normal numbers x0, x1, ... and the label that a teacher gives.

    With unit vectors u and v, u orthogonal to v, the teacher's value is u.x (`linear`) or
    (u.x)(v.x) (`product`, which no linear model can learn). The label is whether it is above 0, flipped
    with probability `noise` (`class`: the best accuracy is 1 - noise), or the value plus normal noise of
    deviation `noise` (`number`: the best mean squared error is noise squared). `prepared.json` holds the best
    score.

    The rows depend only on the arguments: each row group has its own seed.

    Args:
        output: the folder to write, a local path or fsspec URL.
        options: rows, columns, teacher, label_type, noise, fractions, seed, row_group_rows, overwrite.

    Raises:
        ConfigError: an argument is invalid, or `output` is another table.
    """
    return request(output, **options).fulfil(write, lambda: spark)


def write(spark: SparkSession, request: Request) -> Prepared:
    """Write the requested table, replacing one that is there."""
    arguments = request.arguments
    noise, is_class = arguments["noise"], arguments["label_type"] == "class"
    deviation = float(np.sqrt(1 + noise**2))  # the value of either teacher has mean 0 and variance 1
    label = Label(name=LABEL, classes=("0", "1")) if is_class else Label(name=LABEL, deviation=deviation)
    names = [f"x{i}" for i in range(arguments["columns"])]
    schema = TableSchema(
        features=tuple(Feature(name=n, kind=ColumnKind.NUMERIC, source=n) for n in names), label=label
    )
    best = {"accuracy": 1 - noise} if is_class else {"mean_squared_error": noise**2}
    num_files = sum(len(starts) for starts in _file_starts(arguments).values())
    announce(f"writing {arguments['rows']:,} rows")
    with request.writing() as folder:
        frame = spark.range(0, num_files, 1, num_files)
        rows = splits.run(frame, partial(_write_files, folder=folder, arguments=dict(arguments)))
        return request.finish(folder, schema, rows, {"best": best})


def teacher(columns: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the teacher's two orthogonal unit vectors, float32 [columns] each."""
    first, second = np.random.default_rng((seed, 0)).normal(size=(2, columns))
    first /= np.linalg.norm(first)
    second -= first * (first @ second)
    second /= np.linalg.norm(second)
    return first.astype(np.float32), second.astype(np.float32)


def _split_rows(arguments: dict[str, Any]) -> dict[Split, int]:
    rows, (_, validation, test) = arguments["rows"], arguments["fractions"]
    held_out = {Split.VALIDATION: max(1, round(rows * validation)), Split.TEST: max(1, round(rows * test))}
    return {Split.TRAIN: rows - sum(held_out.values()), **held_out}


def _file_starts(arguments: Any) -> dict[Split, range]:
    """The first row of each file, by split."""
    per_file = arguments["row_group_rows"] * _ROW_GROUPS_PER_FILE
    return {split: range(0, rows, per_file) for split, rows in _split_rows(arguments).items()}


def _write_files(batches: Iterator[Any], *, folder: str, arguments: dict[str, Any]) -> Iterator[Any]:
    """Write the files whose numbers are in the batches, in one task."""
    starts = [(split, start) for split, starts in _file_starts(arguments).items() for start in starts]
    per_group = arguments["row_group_rows"]
    for batch in batches:
        for number in batch.column(0).to_pylist():
            split, start = starts[number]
            stop = min(_split_rows(arguments)[split], start + per_group * _ROW_GROUPS_PER_FILE)
            place = files.join(files.join(folder, split), f"part-{start // per_group:07d}.parquet")
            with RowGroupWriter(place, per_group) as writer:
                for first in range(start, stop, per_group):
                    columns = _row_group(arguments, split, first, min(per_group, stop - first))
                    writer.write(record_batch(columns))
            yield summary_batch({str(split): writer.rows})


def _row_group(arguments: dict[str, Any], split: Split, first: int, rows: int) -> dict[str, Any]:
    seed = arguments["seed"]
    rng = np.random.default_rng((seed, 1 + list(Split).index(split), first))
    x = rng.standard_normal((rows, arguments["columns"]), dtype=np.float32)
    u, v = teacher(arguments["columns"], seed)
    value = x @ u if arguments["teacher"] == "linear" else (x @ u) * (x @ v)
    if arguments["label_type"] == "class":
        label: Any = ((value > 0) ^ (rng.random(rows) < arguments["noise"])).astype(np.int64)
    else:
        label = value + arguments["noise"] * rng.standard_normal(rows, dtype=np.float32)
    columns: dict[str, Any] = {f"x{i}": np.ascontiguousarray(column) for i, column in enumerate(x.T)}
    return {**columns, LABEL: label}
