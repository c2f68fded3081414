"""Checks of the splits: classes, sizes, and rows that are too similar to be on two sides."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_hpo.data.schema import Label
from spark_hpo.pitfalls.pitfall import Pitfall, PitfallKind
from spark_hpo.pitfalls.sample import Codes, Floats, Sample
from spark_hpo.trial import Split

_ROWS_PER_CLASS = 5
_MAX_NAMED = 5
_TEST_NOISE = 0.05  # half width of the 95 % interval of an accuracy, above which it says little
_MIN_TEST_ROWS = 200  # for a number
_SIMILAR = 0.3  # correlation of labels
_MIN_PAIRS = 50
_MIN_TIMES = 50  # distinct
_INTERLEAVED = 0.5  # share of validation rows that are older than the newest training row
_MIN_IDS = 50  # distinct
_MAX_ROWS_PER_ID = 200
_ID_NAME = re.compile(r"(^|[^a-z0-9])(id|uuid|guid|key|code|no|number|customer|user|patient)$", re.IGNORECASE)


def label_per_row(label: str, classes: int, rows: int) -> Iterator[Pitfall]:
    """Yield a pitfall if the label has nearly as many classes as there are rows."""
    if classes > 2 and rows < _ROWS_PER_CLASS * classes:
        yield Pitfall(
            kind=PitfallKind.LABEL_PER_ROW,
            columns=(label,),
            message=f"the label {label!r} has {classes:,} classes in {rows:,} rows",
            cure="Use --label-type number if it is a quantity; otherwise choose another label",
        )


def absent_classes(label: Label, counts: Mapping[Split, Codes | None]) -> Iterator[Pitfall]:
    """Yield a pitfall for each split without a row of some class.

    Args:
        counts: rows by class; None: not counted.
    """
    for split, found in counts.items():
        if found is None or found.all():
            continue
        absent = [label.classes[i] for i in np.flatnonzero(found == 0)]
        named = ", ".join(map(repr, absent[:_MAX_NAMED])) + (", ..." if len(absent) > _MAX_NAMED else "")
        yield Pitfall(
            kind=PitfallKind.ABSENT_CLASS,
            columns=(label.name,),
            message=f"{split} has no row with {label.name!r} = {named} "
            f"({len(absent)} of {len(found)} classes)",
            cure=f"Split each class alike (--split-stratify {label.name}), or use larger fractions",
        )


def small_test(rows: int, counts: Codes | None) -> Iterator[Pitfall]:
    """Yield a pitfall if the metric of the test split is known only roughly."""
    if counts is None:
        if rows >= _MIN_TEST_ROWS:
            return
        figure = f"its squared error is known to about ±{2 * math.sqrt(2 / rows):.0%}"
    else:
        share = counts.max() / max(rows, 1)
        half_width = 2 * math.sqrt(max(share * (1 - share), 0.05) / max(rows, 1))
        if half_width <= _TEST_NOISE:
            return
        figure = f"its accuracy is known to ±{100 * half_width:.0f} percentage points"
    yield Pitfall(
        kind=PitfallKind.SMALL_TEST,
        columns=(),
        message=f"test has {rows:,} rows, so {figure}, and better trials differ by less",
        cure="Do not choose between models by it; use cross-validation (data.folds), or more rows for test",
    )


def time_order(train: Sample, validation: Sample, *, by_row_groups: bool) -> Iterator[Pitfall]:
    """Yield a pitfall for each time by which rows of both sides alternate, if neighbours are alike."""
    for name in sorted(train.times):
        if name not in validation.numbers:
            continue
        here, there = train.numbers[name], validation.numbers[name]
        known = ~np.isnan(here)
        if len(np.unique(here[known])) < _MIN_TIMES or np.isnan(there).all():
            continue
        mixed = float(np.nanmean(there <= np.nanmax(here)))
        if mixed < _INTERLEAVED:
            continue
        if by_row_groups and train.group is not None:
            ordered = _explained(here[known], train.group[known])
            if ordered > 0.9:
                yield Pitfall(
                    kind=PitfallKind.TIME_ORDER,
                    columns=(name,),
                    message=f"the table is in the order of {name!r}, and its row groups are split at random, "
                    "so each side has a few periods, between those of the other sides",
                    **_split_by("time", name),
                )
                continue
        order = np.flatnonzero(known)[np.argsort(here[known], kind="stable")]
        similar = _correlation(train, order[:-1], order[1:])
        if similar >= _SIMILAR:
            yield Pitfall(
                kind=PitfallKind.TIME_ORDER,
                columns=(name,),
                message=f"{mixed:.0%} of the validation rows are older than the newest training row by "
                f"{name!r}, and neighbours in time have similar labels (correlation {similar:.2f}), so the "
                "metric is better than it will be on new rows",
                **_split_by("time", name),
            )


def shared_groups(train: Sample, validation: Sample) -> Iterator[Pitfall]:
    """Yield a pitfall for each id that is on both sides, if rows of one id have similar labels."""
    for name, here, there in _ids(train, validation):
        distinct, counts = np.unique(here, return_counts=True)
        repeated = counts > 1
        if len(distinct) < _MIN_IDS or len(here) / len(distinct) > _MAX_ROWS_PER_ID or repeated.mean() < 0.1:
            continue
        shared = float(np.isin(there, distinct).mean())
        order = np.argsort(here, kind="stable")
        same = here[order][1:] == here[order][:-1]
        similar = _correlation(train, order[:-1][same], order[1:][same])
        if shared >= 0.1 and similar >= _SIMILAR:
            yield Pitfall(
                kind=PitfallKind.SHARED_GROUP,
                columns=(name,),
                message=f"{shared:.0%} of the validation rows have a {name!r} that is also in training, and "
                f"rows with the same one have similar labels (correlation {similar:.2f}), so the metric is "
                "better than it will be on new ones",
                **_split_by("group", name),
            )


def _split_by(kind: str, name: str) -> dict[str, Any]:
    """Return the fields of a pitfall that a split of this kind avoids."""
    return {
        "cure": f"Split by {kind} (--split-{kind} {name}; in a study file, split: {{{kind}: {name}}})",
        "split": {kind: name},
    }


def _ids(
    train: Sample, validation: Sample
) -> Iterator[tuple[str, npt.NDArray[np.generic], npt.NDArray[np.generic]]]:
    for name, here in train.codes.items():
        there = validation.codes.get(name)
        if there is not None and _ID_NAME.search(name) and (here > 0).mean() > 0.9:
            yield name, here, there
    for name, values in train.numbers.items():
        others = validation.numbers.get(name)
        if others is None or name in train.times or not _ID_NAME.search(name) or np.isnan(values).any():
            continue
        # Of float32, after standardising: whole to within its precision.
        if np.allclose(values, np.round(values), rtol=1e-6, atol=0.01):
            yield name, np.round(values), np.round(others)


def _correlation(sample: Sample, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> float:
    """The correlation of the labels of pairs of rows; of classes, the largest of a class against the rest."""
    if len(left) < _MIN_PAIRS:
        return 0.0
    if not sample.classes:
        return _pearson(sample.label[left], sample.label[right])
    frequent = np.argsort(-np.bincount(sample.label.astype(np.int64)))[:20]
    return max(_pearson(sample.label[left] == c, sample.label[right] == c) for c in frequent)


def _pearson(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not (x.std() and y.std()):
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _explained(values: Floats, group: Codes) -> float:
    """The share of the variance of values that is between groups; 0.0 with a single group."""
    sizes = np.bincount(group)
    if (sizes > 0).sum() < 3 or not values.std():
        return 0.0
    centred = values - values.mean()
    means = np.bincount(group, centred) / np.maximum(sizes, 1)
    return float((sizes * means**2).sum() / (centred**2).sum())
