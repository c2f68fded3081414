"""Rows of a Spark DataFrame, counted and converted by jobs."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from operator import and_
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark_hpo.data.schema import ColumnKind
from spark_hpo.data.text_forms import DATES, PATTERNS, TextForm
from spark_hpo.prepare import spark_columns, splits
from spark_hpo.prepare.column_facts import Analysis
from spark_hpo.prepare.column_kinds import ISO_IN_PLACE
from spark_hpo.prepare.rows import AssignedGroup, Reading
from spark_hpo.prepare.spark_columns import class_name, converted, instant, number, summarised
from spark_hpo.prepare.spark_table_facts import SparkFacts
from spark_hpo.prepare.splits import FOLD, SPLIT, column
from spark_hpo.prepare.table_files import file_column, file_key
from spark_hpo.trial import Split


@dataclass(frozen=True, slots=True)
class SparkRows:
    """See `Rows`. The session's time zone must be UTC."""

    frame: DataFrame
    is_slow: bool = False  # to open: each job would read many small files

    @property
    def schema(self) -> T.StructType:
        return self.frame.schema

    @property
    def columns(self) -> list[str]:
        return self.frame.columns

    def original(self, null_values: Sequence[str]) -> SparkRows:
        return SparkRows(spark_columns.original(self.frame, null_values))

    def converted(self, readings: Mapping[str, TextForm | Reading]) -> SparkRows:
        if not readings:
            return self
        changed = {name: converted(self.frame, name, reading) for name, reading in readings.items()}
        return SparkRows(
            self.frame.select(*(changed.get(name, column(name)).alias(name) for name in self.columns))
        )

    def with_copy(self, name: str, of: str, form: TextForm = TextForm.NONE) -> SparkRows:
        return SparkRows(self.frame.withColumn(name, converted(self.frame, of, form)))

    def without(self, names: Collection[str]) -> SparkRows:
        return SparkRows(self.frame.drop(*map(column, names)))

    def where_present(self, name: str) -> SparkRows:
        return SparkRows(self.frame.where(column(name).isNotNull()))

    @contextlib.contextmanager
    def kept(self) -> Iterator[SparkRows]:
        if not self.is_slow:
            yield self
            return
        frame = self.frame.persist()
        try:
            yield SparkRows(frame)
        finally:
            frame.unpersist()

    def is_fewer_than(self, rows: int) -> bool:
        return self.frame.limit(rows).count() < rows

    def head(self, names: Sequence[str], rows: int) -> Sequence[Sequence[Any]]:
        # Names may occur twice, or differ only in case.
        return (
            self.frame.select(*(column(n).alias(f"v{i}") for i, n in enumerate(names))).limit(rows).collect()
        )

    def examples(self, names: Sequence[str], rows: int) -> list[Any]:
        row = F.to_json(F.struct(*map(column, names)), {"ignoreNullFields": "false"})
        return [json.loads(found[0]) for found in self.frame.select(row).limit(rows).collect()]

    # Statistics

    def text_facts(self, name: str) -> Mapping[str, int]:
        value, parsed = column(name), number(self.frame, name)
        counted = {form: F.count(instant(value, form)) for form in (TextForm.ISO, *DATES)}
        counted[TextForm.NUMBER] = F.count(parsed)
        row = self.frame.agg(
            F.count(value).alias("present"),
            F.count_if(~(value.rlike(ISO_IN_PLACE) | parsed.isNotNull())).alias("unreadable"),
            *(count.alias(form) for form, count in counted.items()),
        ).collect()[0]
        return row.asDict()

    def count_fractions(self, name: str) -> int:
        value = number(self.frame, name)
        return int(self.frame.agg(F.count_if(value != F.floor(value))).collect()[0][0])

    def scalar_facts(
        self,
        names: Sequence[str],
        wanted: Collection[str],
        labels: Sequence[str],
        forms: Mapping[str, Sequence[TextForm]],
        *,
        is_small: bool,
    ) -> dict[str, Any]:
        # Numbers are parsed once per row instead of once per fact.
        known = [(i, name) for i, name in enumerate(names) if name in wanted]
        values = [column(name).alias(f"v{i}") for i, name in known]
        numbers = [number(self.frame, name).alias(f"n{i}") for i, name in known]
        targets = [number(self.frame, name).alias(f"label{j}") for j, name in enumerate(labels)]
        is_labelled = reduce(and_, (column(name).isNotNull() for name in labels)).alias("is_labelled")
        projected = self.frame.select(*values, *numbers, *targets, is_labelled)
        counted = [F.count(F.lit(1)).alias("rows"), F.count_if("is_labelled").alias("labelled")]
        for i, name in known:
            counted += _scalar_facts(i, is_small=is_small)
            for j in range(len(labels)):
                counted.append(F.count_if(F.col(f"n{i}") == F.col(f"label{j}")).alias(f"same{j}_{i}"))
            if name in forms:
                counted += _text_facts(i, forms[name])
        return projected.agg(*counted).collect()[0].asDict()

    def pairs(self, names: Sequence[str], label: str) -> list[Collection[Sequence[Any]]]:
        # They have few values each, so the sets of pairs are small, and one pass collects them all.
        pairs = [F.collect_set(F.struct(column(name), column(label))) for name in names]
        return list(self.frame.agg(*(pair.alias(f"pairs_{i}") for i, pair in enumerate(pairs))).collect()[0])

    def summary(self, kinds: Mapping[str, ColumnKind]) -> Mapping[str, Any]:
        # Numbers are parsed once per row instead of once per fact.
        values = [column(name).alias(f"v{i}") for i, name in enumerate(kinds)]
        numbers = [
            number(self.frame, name).alias(f"n{i}")
            for i, (name, kind) in enumerate(kinds.items())
            if kind in (ColumnKind.NUMERIC, ColumnKind.CATEGORICAL)
        ]
        in_train = (column(SPLIT) == str(Split.TRAIN)).alias("train")
        projected = self.frame.select(in_train, *values, *numbers)
        in_train = F.col("train")
        wanted = [F.count(F.lit(1)).alias("rows"), F.count(F.when(in_train, 1)).alias("train")]
        for i, (name, kind) in enumerate(kinds.items()):
            facts = summarised(i, kind, self.schema[name].dataType, in_train)
            wanted += [fact.alias(f"{key}_{i}") for key, fact in facts.items()]
        return projected.agg(*wanted).collect()[0].asDict()

    def values(
        self, texts: Sequence[str], labels: Sequence[str], limit: int, *, in_place: bool
    ) -> dict[str, list[str]]:
        def counted_as(i: int, value: Column) -> Column:
            return F.struct(F.lit(i).alias("i"), value.alias("value"))

        def counted_in(i: int, name: str) -> Column:
            if isinstance(self.schema[name].dataType, T.ArrayType):
                elements = F.coalesce(column(name), F.array().cast("array<string>"))
                return F.transform(elements, lambda element: counted_as(i, element))
            return F.array(counted_as(i, F.coalesce(column(name), F.lit(""))))

        parts = []
        if texts:
            of_row = F.concat(*(counted_in(i, name) for i, name in enumerate(texts)))
            parts.append(F.coalesce(F.when(column(SPLIT) == str(Split.TRAIN), of_row), F.array()))
        for i, name in enumerate(labels, len(texts)):
            parts.append(F.array(counted_as(i, class_name(self.frame, name, in_place=in_place))))
        if not parts:
            return {}
        counted = (
            self.frame.select(F.explode(F.concat(*parts)).alias("pair"))
            .groupBy("pair.i", "pair.value")
            .agg(F.count(F.lit(1)).alias("rows"))
        )
        rank = F.row_number().over(Window.partitionBy("i").orderBy(F.desc("rows"), "value"))
        found: dict[str, list[tuple[int, str]]] = defaultdict(list)
        names = [*texts, *labels]
        for row in counted.withColumn("rank", rank).where(F.col("rank") <= limit).collect():
            found[names[row["i"]]].append((row["rank"], row["value"]))
        return {name: [value for _, value in sorted(ranked)] for name, ranked in found.items()}

    # Splits

    def with_order(self, seed: int) -> SparkRows:
        return SparkRows(splits.with_order(self.frame, seed))

    def with_split(self, fractions: Sequence[float], seed: int) -> SparkRows:
        return SparkRows(splits.with_split(self.frame, fractions, seed))

    def table_facts(self, names: Sequence[str]) -> SparkFacts:
        return SparkFacts(self.frame.select(*map(column, names)))

    def count_matches(self, where: Mapping[Split, str]) -> Mapping[str, int]:
        meets = _conditions(where)
        return (
            self.frame.agg(
                F.count(F.lit(1)).alias("rows"),
                *(F.count_if(meets[split]).alias(split) for split in Split),
                *(F.count_if(meets[a] & meets[b]).alias(f"{a}, {b}") for a, b in combinations(Split, 2)),
            )
            .collect()[0]
            .asDict()
        )

    def split_where(self, where: Mapping[Split, str]) -> SparkRows:
        meets = _conditions(where)
        cases = F.when(meets[Split.TRAIN], F.lit(str(Split.TRAIN)))
        for split in (Split.VALIDATION, Split.TEST):
            cases = cases.when(meets[split], F.lit(str(split)))
        return SparkRows(self.frame.withColumn(SPLIT, cases).where(column(SPLIT).isNotNull()), self.is_slow)

    def split_by_row_groups(self, groups: Sequence[AssignedGroup], folder: str) -> SparkRows:
        # Spark knows the file and the position of each row.
        names = self.columns
        placed = self.frame.select(
            *map(column, names),
            file_column().alias("__file"),
            F.col("_metadata.row_index").alias("__row"),
        )
        listed = self.frame.sparkSession.createDataFrame(
            [(file_key(folder, g.file), g.start, g.stop, str(g.split)) for g in groups],
            f"__of string, __start long, __stop long, {SPLIT} string",
        )
        row = F.col("__row")
        within = (F.col("__file") == F.col("__of")) & (F.col("__start") <= row) & (row < F.col("__stop"))
        joined = placed.join(F.broadcast(listed), within)
        return SparkRows(joined.select(*map(column, names), column(SPLIT)), self.is_slow)

    def with_fold(self, term: str) -> SparkRows:
        return SparkRows(self.frame.withColumn(FOLD, F.expr(term)), self.is_slow)

    def write(self, analysis: Analysis, folder: str, row_group_rows: int) -> Mapping[str, int]:
        encoded = spark_columns.encode(self.frame, analysis)
        return splits.write(encoded, folder, total_rows=analysis.total_rows, row_group_rows=row_group_rows)


def _conditions(where: Mapping[Split, str]) -> dict[Split, Column]:
    return {split: F.coalesce(F.expr(where[split]), F.lit(False)) for split in Split}


def _scalar_facts(i: int, *, is_small: bool) -> Iterator[Column]:
    value, numbers = F.col(f"v{i}"), F.col(f"n{i}")
    # The sketch has hundreds of fields, with which Spark compiles for seconds.
    distinct = F.size(F.collect_set(value)) if is_small else F.approx_count_distinct(value, 0.02)
    yield F.count(value).alias(f"present_{i}")
    yield F.count(numbers).alias(f"numbers_{i}")
    yield distinct.alias(f"distinct_{i}")
    yield F.min(value).alias(f"first_{i}")
    yield F.max(value).alias(f"last_{i}")
    yield F.count(F.when(numbers == F.floor(numbers), 1)).alias(f"whole_{i}")
    yield F.min(numbers).alias(f"low_{i}")
    yield F.max(numbers).alias(f"high_{i}")


def _text_facts(i: int, forms: Sequence[TextForm]) -> Iterator[Column]:
    value = F.col(f"v{i}")
    yield F.min(F.when(F.col(f"n{i}").isNull(), value)).alias(f"stray_{i}")
    for form in forms:
        matches = instant(value, form).isNotNull() if form.is_date else value.rlike(PATTERNS[form])
        yield F.count(F.when(matches, 1)).alias(f"{form}_{i}")
