"""The ranges of standardised columns, from the footers of a prepared table."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from spark_hpo.data import files
from spark_hpo.data.plan.footers import Footer, read_footer
from spark_hpo.data.prepared_rows import Range, is_standardised
from spark_hpo.data.schema import Encoding
from spark_hpo.data.table import Table

_THREADS = 16


def stored_ranges(table: Table) -> dict[str, Range]:
    """The lowest and highest stored value of each standardised column, over all splits, from the footers.

    Columns whose statistics are incomplete are left out, as is every column of a table whose model takes
    original values.

    Raises:
        DataError: a file cannot be read.
    """
    names = [feature.name for feature in table.schema.features if is_standardised(feature)]
    if table.schema.encoding is Encoding.RAW or table.schema.takes_raw_rows or not names:
        return {}
    footers: list[Footer] = []
    for manifest in table.manifests.values():
        fs, _ = files.filesystem(manifest.url)
        with ThreadPoolExecutor(_THREADS) as pool:
            footers += pool.map(partial(read_footer, fs), [file.path for file in manifest.files])
    found = {name: _range(name, footers) for name in names}
    return {name: span for name, span in found.items() if span is not None}


def _range(name: str, footers: list[Footer]) -> Range | None:
    bounds: list[float] = []
    for footer in footers:
        for group in range(footer.metadata.num_row_groups):
            statistics = footer.statistics(group, name)
            if statistics is None or not statistics.has_min_max:
                return None
            bounds += [float(statistics.min), float(statistics.max)]
    return (min(bounds), max(bounds)) if bounds and all(map(math.isfinite, bounds)) else None
