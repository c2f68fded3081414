"""Statistics of a table that is read part by part, equal to those that Spark computes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import TextForm
from spark_hpo.prepare.arrow_columns import Columns, Numbers, class_name, is_whole, matches, number
from spark_hpo.prepare.distinct_count import DistinctCount
from spark_hpo.prepare.splits import SPLIT
from spark_hpo.trial import Split


class _Range:
    """The smallest and the largest value, in the order of Spark: text by its bytes, NaN last."""

    def __init__(self) -> None:
        self.low: Any = None
        self.high: Any = None

    def add(self, values: pa.Array) -> None:
        values = values.drop_null()
        has_nan = False
        if t.is_floating(values.type):
            without = values.filter(pc.invert(pc.is_nan(values)))
            has_nan, values = len(without) < len(values), without
        if len(values):
            found = pc.min_max(values).as_py()
            if self.low is None or self.low != self.low or found["min"] < self.low:
                self.low = found["min"]
            if self.high is None or found["max"] > self.high:
                self.high = found["max"]
        if has_nan:
            self.low = math.nan if self.low is None else self.low
            self.high = math.nan


_COUNTS = ("present", "numbers", "whole")


class _Scalar:
    """The facts of `Rows.scalar_facts` about one column."""

    def __init__(self, forms: Sequence[TextForm] | None, *, is_small: bool) -> None:
        self._forms = forms
        self._counts = Counter(dict.fromkeys(_COUNTS + tuple(map(str, forms or ())), 0))
        self._distinct = DistinctCount(is_exact=is_small)
        self._values, self._numbers, self._strays = _Range(), _Range(), _Range()

    def add(self, values: pa.Array, numbers: Numbers, labels: Sequence[Numbers]) -> None:
        is_number = ~np.isnan(numbers)
        self._counts["present"] += len(values) - values.null_count
        self._counts["numbers"] += int(is_number.sum())
        self._counts["whole"] += int(is_whole(numbers).sum())
        for j, label in enumerate(labels):
            self._counts[f"same{j}"] += int((numbers == label).sum())
        self._distinct.add(values)
        self._values.add(values)
        self._numbers.add(pa.array(numbers[is_number]))
        if self._forms is not None:
            self._strays.add(values.filter(pa.array(~is_number)))
            for form in self._forms:
                self._counts[str(form)] += pc.sum(matches(values, form)).as_py() or 0

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = dict(self._counts)
        found |= {"distinct": self._distinct.count, "first": self._values.low, "last": self._values.high}
        found |= {"low": self._numbers.low, "high": self._numbers.high}
        return found if self._forms is None else found | {"stray": self._strays.low}


def scalar_facts(
    parts: Iterable[Columns],
    names: Sequence[str],
    wanted: Collection[str],
    labels: Sequence[str],
    forms: Mapping[str, Sequence[TextForm]],
    *,
    is_small: bool,
) -> dict[str, Any]:
    """See `Rows.scalar_facts`."""
    known = [(i, name) for i, name in enumerate(names) if name in wanted]
    columns = {name: _Scalar(forms.get(name), is_small=is_small) for _, name in known}
    rows = labelled = 0
    for part in parts:
        targets = {name: number(part[name]) for name in labels}
        is_labelled = np.logical_and.reduce(
            [part[n].is_valid().to_numpy(zero_copy_only=False) for n in labels]
        )
        rows += len(is_labelled)
        labelled += int(is_labelled.sum())
        for _, name in known:
            numbers = targets[name] if name in targets else number(part[name])
            columns[name].add(part[name], numbers, list(targets.values()))
    counts = {"rows": rows, "labelled": labelled}
    return counts | {f"{key}_{i}": v for i, name in known for key, v in columns[name].facts().items()}


class _Moments:
    """Mean and deviation, merged part by part: Chan et al., Updating Formulae (1979)."""

    def __init__(self) -> None:
        self.count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, numbers: Numbers) -> None:
        if not len(numbers):
            return
        with np.errstate(invalid="ignore", over="ignore"):
            count, mean = len(numbers), float(np.mean(numbers))
            squares = float(np.sum((numbers - mean) ** 2))
            total, delta = self.count + count, mean - self._mean
            self._mean += delta * count / total
            self._squares += squares + delta * delta * self.count * count / total
            self.count = total

    @property
    def mean(self) -> float | None:
        return self._mean if self.count else None

    @property
    def deviation(self) -> float | None:
        return math.sqrt(self._squares / self.count) if self.count else None


class _Column:
    """The facts of `Rows.summary` about one column."""

    def __init__(self, kind: ColumnKind) -> None:
        self._kind = kind
        self._counts: Counter[str] = Counter()
        self._extremes: dict[str, int] = {}
        self._sums = {"sum": 0.0, "squares": 0.0}
        self._moments = _Moments()

    def add(self, values: pa.Array, in_train: pa.Array) -> None:
        if self._kind in (ColumnKind.NUMERIC, ColumnKind.CATEGORICAL):
            self._add_scalars(values, in_train.to_numpy(zero_copy_only=False))
            return
        self._counts["present"] += len(values) - values.null_count
        if self._kind is ColumnKind.TEXT:
            self._reach("longest", pc.max(pc.binary_length(values)).as_py(), max)
        elif self._kind is ColumnKind.SEQUENCE:
            self._add_lists(values, in_train)

    def _add_scalars(self, values: pa.Array, in_train: Any) -> None:
        numbers = number(values)
        is_number = ~np.isnan(numbers)
        is_numeric = self._kind is ColumnKind.NUMERIC
        present = is_number if is_numeric else values.is_valid().to_numpy(zero_copy_only=False)
        self._counts["present"] += int(present.sum())
        self._counts["train"] += int((present & in_train).sum())
        self._counts["numbers"] += int(is_number.sum())
        self._counts["whole"] += int(is_whole(numbers).sum())
        self._moments.add(numbers[is_number & in_train])

    def _add_lists(self, values: pa.Array, in_train: pa.Array) -> None:
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        self._reach("longest", lengths["max"], max)
        self._reach("shortest", lengths["min"], min)
        flat, parents = values.flatten(), pc.list_parent_indices(values)
        is_bad = flat.is_null()
        if not t.is_string(flat.type):
            numbers = number(flat)
            is_bad = pa.array(~np.isfinite(numbers))
            trained = values.filter(in_train)
            own = number(trained.flatten())
            self._counts["elements"] += len(own)
            # Spark sums each list by itself, which differs by rounding only.
            with np.errstate(over="ignore", invalid="ignore"):
                self._sums["sum"] += float(np.sum(own))
                self._sums["squares"] += float(np.sum(own * own))
        self._counts["bad"] += pc.count_distinct(parents.filter(is_bad)).as_py()

    def _reach(self, key: str, value: int | None, of: Any) -> None:
        if value is not None:
            self._extremes[key] = of(self._extremes.get(key, value), value)

    def facts(self) -> dict[str, Any]:
        present = {"present": self._counts["present"]}
        match self._kind:
            case ColumnKind.BINARY:
                return present
            case ColumnKind.TEXT:
                return present | {"longest": self._extremes.get("longest")}
            case ColumnKind.SEQUENCE:
                lengths = {key: self._extremes.get(key) for key in ("longest", "shortest")}
                counts = {key: self._counts[key] for key in ("bad", "elements")}
                return {**present, **lengths, **counts, **self._sums}
        counts = {key: self._counts[key] for key in ("train", "numbers", "whole")}
        return {**present, **counts, "mean": self._moments.mean, "deviation": self._moments.deviation}


def summary(parts: Iterable[Columns], kinds: Mapping[str, ColumnKind]) -> dict[str, Any]:
    """See `Rows.summary`."""
    columns = {name: _Column(kind) for name, kind in kinds.items()}
    rows = train = 0
    for part in parts:
        in_train = pc.equal(part[SPLIT], str(Split.TRAIN))
        rows += len(in_train)
        train += pc.sum(in_train).as_py() or 0
        for name, column in columns.items():
            column.add(part[name], in_train)
    found = {f"{key}_{i}": v for i, c in enumerate(columns.values()) for key, v in c.facts().items()}
    return {"rows": rows, "train": train, **found}


def frequent_values(
    parts: Iterable[Columns], texts: Sequence[str], labels: Sequence[str], limit: int, *, in_place: bool
) -> dict[str, list[str]]:
    """See `Rows.values`. The memory grows with the number of different values."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*texts, *labels)}
    for part in parts if counts else ():
        in_train = pc.equal(part[SPLIT], str(Split.TRAIN))
        for name in texts:
            values = part[name].filter(in_train)
            values = values.flatten() if t.is_list(values.type) else pc.fill_null(values, "")
            _count(counts[name], values)
        for name in labels:
            _count(counts[name], class_name(part[name], in_place=in_place))
    return {
        # Spark orders text by its bytes in UTF-8, which is the order of code points.
        name: [value for value, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]]
        for name, found in counts.items()
    }


def _count(counts: Counter[str], values: pa.Array) -> None:
    for pair in pc.value_counts(values).to_pylist():
        counts[pair["values"]] += pair["counts"]
