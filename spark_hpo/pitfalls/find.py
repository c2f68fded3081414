"""Runs all checks on a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from spark_hpo.data.table import Table
from spark_hpo.pitfalls import label_leaks, split_checks
from spark_hpo.pitfalls.pitfall import Pitfall
from spark_hpo.pitfalls.sample import class_counts, sample_of, sample_of_rows
from spark_hpo.trial import Split


def find_pitfalls(table: Table) -> list[Pitfall]:
    """Find the pitfalls of a table with splits, from a sample of at most 20,000 rows of each split.

    Raises:
        DataError: the table cannot be read.
    """
    rows = {split: table.manifest(split).rows for split in Split}
    counts = {split: class_counts(table, split) for split in Split}
    train, validation = (sample_of(table, split) for split in (Split.TRAIN, Split.VALIDATION))
    label = table.schema.label
    if label.shape:
        return []  # the checks compare columns with one value per row
    found = [*split_checks.label_per_row(label.name, len(label.classes), rows[Split.TRAIN])]
    if not found:
        found += split_checks.absent_classes(label, counts)
        found += split_checks.small_test(rows[Split.TEST], counts[Split.TEST])
    found += label_leaks.all_leaks(train)
    for extra in table.schema.extra_labels:
        found += label_leaks.all_leaks(sample_of(table, Split.TRAIN, extra.label))
    in_row_groups = table.schema.sources.get(Split.TRAIN)
    by_share = in_row_groups is not None and in_row_groups.share != (0.0, 1.0)
    found += split_checks.time_order(train, validation, by_row_groups=by_share)
    found += split_checks.shared_groups(train, validation)
    return found


def find_pitfalls_of_rows(rows: pa.Table, label: str, *, at_random: bool = True) -> list[Pitfall]:
    """Find the pitfalls of a table without splits, and those that it would have with a random split.

    Args:
        rows: a sample of its rows.
        label: the column to predict: text, or numbers.
        at_random: False: times, groups or a column of the table will decide the split.
    """
    sample = sample_of_rows(rows, label)
    present = rows.num_rows - rows.column(label).null_count
    classes = len(np.unique(sample.label)) if sample.classes else 0
    found = [*split_checks.label_per_row(label, classes, present), *label_leaks.all_leaks(sample)]
    if not at_random:
        return found
    mixed = np.random.default_rng(0).permutation(sample.rows)
    train, validation = sample.take(mixed[: sample.rows // 2]), sample.take(mixed[sample.rows // 2 :])
    return [
        *found,
        *split_checks.time_order(train, validation, by_row_groups=False),
        *split_checks.shared_groups(train, validation),
    ]
