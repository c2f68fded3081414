"""Samples a CSV without Spark, as `prepare` will read it."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.csv

from spark_hpo.data import files
from spark_hpo.data.profile import TableProfile, profile_sample
from spark_hpo.errors import DataError
from spark_hpo.prepare.csv_request import DEFAULT_NULL_VALUES, WRITTEN_NULL_VALUES
from spark_hpo.prepare.dialect import find_dialect
from spark_hpo.prepare.output import fingerprint

_HEAD_BYTES = 16 * 2**20


def profile_csv(url: str) -> TableProfile:
    """Profile a CSV file or a folder of them from the first 16 MiB of the first file.

    Raises:
        DataError: it is not a CSV with a header, or cannot be read.
    """
    listed = fingerprint(url)
    dialect = find_dialect(url, listed, None, header=True)
    fs, root = files.filesystem(files.absolute(url))
    first = root if fs.isfile(root) else next(name for name in sorted(fs.find(root)) if "/_" not in name)
    with files.reading(first), fs.open(first, "rb", compression="infer") as file:
        head = file.read(_HEAD_BYTES)
    is_whole = len(head) < _HEAD_BYTES
    if not is_whole:
        head = head[: head.rindex(b"\n") + 1]
    names = [name or f"_c{i}" for i, name in enumerate(dialect.columns)]
    try:
        sample = pyarrow.csv.read_csv(
            io.BytesIO(head),
            read_options=pyarrow.csv.ReadOptions(
                column_names=names, skip_rows=1, encoding=dialect.encoding, block_size=2 * _HEAD_BYTES
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=dialect.separator, newlines_in_values=dialect.many_lines
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                null_values=["", *DEFAULT_NULL_VALUES, *WRITTEN_NULL_VALUES],
            ),
        )
    except pa.ArrowInvalid as exc:
        raise DataError(f"{url} is not a valid CSV: {exc}") from exc
    size = sum(int(entry[1]) for entry in listed)
    # A compressed file counts by its own bytes.
    share = len(head) / max(size, 1) if not is_whole or len(listed) > 1 else 1.0
    rows = sample.num_rows if share >= 1 else round(sample.num_rows / share)
    return profile_sample(url, sample, rows=rows, size=size)
