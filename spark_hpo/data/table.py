"""A prepared table: its schema and the manifests of its splits, read once by the driver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_hpo.data import encoders, files, petastorm_codecs
from spark_hpo.data.lake.formats import table_format
from spark_hpo.data.plan import partitions
from spark_hpo.data.plan.folds import FoldRows
from spark_hpo.data.plan.footers import Footers, read_footers
from spark_hpo.data.plan.manifest import Manifest, RowGroup
from spark_hpo.data.plan.read_manifest import manifests_of
from spark_hpo.data.plan.rules import with_rules
from spark_hpo.data.raw_rows import example_rows
from spark_hpo.data.schema import ColumnKind, Encoding, Feature, Source, TableFormat, TableSchema
from spark_hpo.errors import ConfigError, DataError
from spark_hpo.trial import Split
from spark_hpo.user_code.source_file import without_digest

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_FILE = "schema.json"
EXAMPLE_FILE = "example.json"  # a few original rows of a prepared copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A prepared table as the driver found it. It is sent to every rank, so ranks list no files."""

    url: str
    schema: TableSchema
    manifests: Mapping[Split, Manifest]
    folds: tuple[tuple[Manifest, Manifest], ...] = ()
    """The training and the held-out rows of each fold, where columns decide (`TableSchema.fold_by`)."""
    fold_weights: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """The class weights of each fold, and of the final model, by label; empty: those of the schema."""

    def manifest(self, split: Split) -> Manifest:
        return self.manifests[split]

    @property
    def fingerprint(self) -> str:
        """A hash that changes when the schema or a file of a split changes, not with a transform's code."""
        features = tuple(replace(f, transform=without_digest(f.transform)) for f in self.schema.features)
        schema = replace(self.schema, features=features)
        facts = [schema.to_json(), *(self.manifests[split].fingerprint for split in Split)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]

    @property
    def source(self) -> dict[str, Any]:
        """What the table was read from, of JSON types: url, format, version, and rows by split."""
        source = self.schema.copied_from or self.schema.sources.get(Split.TRAIN, Source(url=self.url))
        rows = {str(split): manifest.rows for split, manifest in self.manifests.items()}
        return {"url": source.url, "format": str(source.format), "version": source.version, "rows": rows}

    @property
    def rows(self) -> int:
        """Rows of all splits together."""
        return sum(manifest.rows for manifest in self.manifests.values())

    def without(self, paths: Collection[str]) -> Table:
        """Return the table without these files.

        Raises:
            DataError: a split has no rows left.
        """
        manifests = {split: manifest.without(paths) for split, manifest in self.manifests.items()}
        folds = tuple((training.without(paths), out.without(paths)) for training, out in self.folds)
        return replace(self, manifests=manifests, folds=folds)

    def divided(self, count: int) -> Table:
        """Return the table with its folds, where columns decide on them; else the same table.

        Raises:
            ConfigError: there are fewer groups or times than the folds need.
            DataError: the deciding columns cannot be read, or do not decide.
        """
        if self.schema.windows is not None:
            raise ConfigError(
                "cannot be folds for windows of series, whose values would be in several folds",
                key="search.resource",
                value="folds",
                cure="Use epochs or rows",
            )
        if self.schema.fold_by is None:
            return self
        # It parses conditions in SQL, which most tables do not need.
        from spark_hpo.data.plan.fold_conditions import divide

        return replace(self, folds=divide(self._training_rows, self.schema, count))

    def fold(self, number: int, count: int, seed: int) -> Table:
        """Return one fold of a cross-validation over the training and the validation split together.

        The fold is the validation split, and all other rows are the training split; the test split stays.

        Args:
            number: 1 to `count`.
            seed: the seed of the division into folds.

        Raises:
            DataError: the splits cannot be divided.
        """
        if self.folds:
            training, held_out = self.folds[number - 1]
            return self._with({Split.TRAIN: training, Split.VALIDATION: held_out}, weights=number - 1)
        whole = self._training_rows
        side = partial(FoldRows, number=number, count=count, seed=seed)
        return self._with(
            {
                Split.TRAIN: whole.of_fold(side(is_held_out=False)),
                Split.VALIDATION: whole.of_fold(side(is_held_out=True)),
            },
            weights=number - 1,
        )

    def halved(self, seed: int) -> tuple[Table, Table]:
        """Return the table with one half of its validation rows, and with the other.

        Both halves come evenly from all over the split, and depend on the seed and the files alone.
        """
        whole = self.manifest(Split.VALIDATION)
        side = partial(FoldRows, number=1, count=2, seed=seed)
        first, second = (whole.of_fold(side(is_held_out=is_first)) for is_first in (True, False))
        return self._with({Split.VALIDATION: first}), self._with({Split.VALIDATION: second})

    def for_final(self) -> Table:
        """Return the table whose training split has the validation rows too, for a final model."""
        return self._with({Split.TRAIN: self._training_rows}, weights=-1)

    @property
    def _training_rows(self) -> Manifest:
        return self.manifests[Split.TRAIN].joined(self.manifests[Split.VALIDATION], self.url)

    def _with(self, manifests: Mapping[Split, Manifest], weights: int | None = None) -> Table:
        """Return the table with other manifests and, of one that has them, class weights by their index."""
        schema = self.schema
        if weights is not None and self.fold_weights:
            schema = schema.with_class_weights(self.fold_weights[weights])
        manifests = {**self.manifests, **manifests}
        return replace(self, schema=schema, manifests=manifests, folds=(), fold_weights=())

    def for_one_batch(self, world_size: int) -> Table:
        """Return the table with only as many validation row groups as one batch on all ranks needs."""
        whole = self.manifest(Split.VALIDATION)
        groups: list[RowGroup] = []
        while sum(group.rows for group in groups) < min(world_size, whole.rows):
            groups.append(whole.row_groups[len(groups)])
        rows = sum(group.rows for group in groups)
        few = replace(whole, row_groups=tuple(groups), rows=rows)
        return self._with({Split.VALIDATION: few})

    def to_json(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "schema": self.schema.to_json(),
            "manifests": {str(split): manifest.to_json() for split, manifest in self.manifests.items()},
            "folds": [[manifest.to_json() for manifest in fold] for fold in self.folds],
            "fold_weights": self.fold_weights,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Table:
        return cls(
            url=record["url"],
            schema=TableSchema.from_json(record["schema"]),
            manifests={Split(name): Manifest.from_json(m) for name, m in record["manifests"].items()},
            folds=tuple(
                (Manifest.from_json(training), Manifest.from_json(out)) for training, out in record["folds"]
            ),
            fold_weights=tuple(
                tuple(tuple(weights) for weights in fold) for fold in record.get("fold_weights", ())
            ),
        )


def open_table(
    url: str,
    *,
    where: str = "",
    nulls: Mapping[str, str] | None = None,
    truncate: Mapping[str, int] | None = None,
    transforms: Mapping[str, str] | None = None,
    trust_petastorm_metadata: bool = False,
) -> Table:
    """Read `schema.json` and the footers of train, validation and test.

    Args:
        url: a folder written by `spark-hpo prepare`; a local path or any fsspec URL.
        where: a condition on the rows of all splits, on the original values of the columns.
        nulls: `refuse` or `fill`, by column; `*` applies to all columns that are not named.
        truncate: maximum list length, by column; longer lists are cut.
        transforms: `module:function` from bytes to an array of floats, by column.
        trust_petastorm_metadata: allow unpickling Petastorm's metadata of the table.

    Raises:
        DataError: there is no table or no `schema.json`, a split does not match the schema, or a rule names
            an unknown column.
    """
    url = files.absolute(url)
    schema = with_rules(read_schema(url), nulls or {}, truncate or {})
    sources = {split: schema.sources.get(split) or Source(url=files.join(url, split)) for split in Split}
    sources = {
        split: replace(s, where=" and ".join(f"({text})" for text in (s.where, where) if text))
        for split, s in sources.items()
    }
    # Splits in place share one table, whose footers are read once.
    places: dict[tuple[str, TableFormat, int | None], list[Split]] = {}
    for split, source in sources.items():
        places.setdefault((source.url, source.format, source.version), []).append(split)
    found = {
        place: read_footers(*place, wheres=[sources[split].where for split in splits])
        for place, splits in places.items()
    }
    training = next(found[place] for place, splits in places.items() if Split.TRAIN in splits)
    codecs = dict(transforms or {})
    if trust_petastorm_metadata:
        codecs = {**petastorm_codecs.trusted_codecs(training.url), **codecs}
    schema = _with_units(_with_transforms(schema, training, codecs), training)
    manifests: dict[Split, Manifest] = {}
    for place, splits in places.items():
        read = manifests_of(found[place], schema, [sources[split] for split in splits])
        manifests |= dict(zip(splits, read, strict=True))
    return Table(url=url, schema=schema, manifests={split: manifests[split] for split in Split})


def first_rows(table: Table, split: Split, rows: int) -> pd.DataFrame | None:
    """Return rows that a model of the table takes, without the label: an input example for the model.

    These are the first rows of a split as stored or, for a copy whose schema describes the original table,
    original rows. Decimals become floats and dates become timestamps, because model signatures support
    neither.

    Returns:
        None: the original rows of a copy are not known.
    """
    if table.schema.takes_raw_rows and table.schema.encoding is Encoding.PREPARED:
        fs, path = files.filesystem(files.join(table.url, EXAMPLE_FILE))
        with files.accessing(table.url):
            records = json.loads(fs.cat_file(path)) if fs.exists(path) else []
        return example_rows(records[:rows], table.schema) if records else None
    manifest = table.manifest(split)
    group = manifest.row_groups[0]
    file = manifest.files[group.file]
    fs, _ = files.filesystem(manifest.url)
    schema = table.schema.for_prediction()
    wanted = [name for name in schema.stored if name != schema.label.name]
    columns = [name for name in wanted if name not in manifest.partitions]
    with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
        content = pq.ParquetFile(source).read_row_group(group.index, columns=columns).slice(0, rows)
    constants = manifest.constants(group.file, content.column_names)
    content = partitions.add_columns(content, constants).select(wanted)
    for i, column in enumerate(content.schema):
        if pa.types.is_timestamp(column.type):  # MLflow takes no time zones
            content = content.set_column(
                i, column.name, content.column(i).cast(pa.timestamp(column.type.unit))
            )
        elif pa.types.is_decimal(column.type):
            content = content.set_column(i, column.name, content.column(i).cast(pa.float64()))
        elif pa.types.is_date(column.type):
            content = content.set_column(i, column.name, content.column(i).cast(pa.timestamp("ms")))
    frame: pd.DataFrame = content.to_pandas()
    for name in frame:
        if any(isinstance(value, np.ndarray) for value in frame[name]):
            frame[name] = [None if value is None else value.tolist() for value in frame[name]]
    return frame


def _with_transforms(schema: TableSchema, found: Footers, transforms: Mapping[str, str]) -> TableSchema:
    """Add transforms to the columns of bytes, with the shape that the first value transforms to."""
    binary = {schema.stored_name(f): f for f in schema.of_kind(ColumnKind.BINARY)}
    changed: dict[str, Feature] = {}
    for name, transform in transforms.items():
        if name not in binary:
            if transform.startswith("petastorm:"):
                continue  # the column is not used
            known = ", ".join(binary) or "none"
            raise DataError(
                f"data.transforms names {name!r}, which is not a column of bytes; those are: {known}"
            )
        try:
            shape = np.shape(encoders.find_transform(transform)(_first_value(found, name)))
        except Exception as exc:  # user code can raise anything
            raise DataError(
                f"{found.url}: column {name!r}: {transform} fails on the first value: {exc!r}. "
                "Fix the function"
            ) from exc
        changed[binary[name].name] = replace(binary[name], transform=transform, shape=shape)
    return replace(schema, features=tuple(changed.get(f.name, f) for f in schema.features))


def _with_units(schema: TableSchema, found: Footers) -> TableSchema:
    """Mark the timestamps that a table read in place stores in nanoseconds, which Spark does not tell."""
    if schema.encoding is not Encoding.RAW:
        return schema
    types = {column.name: column.type for column in found.schemas[0]}
    original = tuple(
        replace(column, type="timestamp_ns")
        if pa.types.is_timestamp(kind := types.get(column.name, pa.null())) and kind.unit == "ns"
        else column
        for column in schema.original
    )
    return replace(schema, original=original)


def _first_value(found: Footers, column: str) -> bytes:
    fs, _ = files.filesystem(found.url)
    for file in found.files:
        with files.reading(file.path), files.opened(fs, file.path, file.hidden) as source:
            parquet = pq.ParquetFile(source)
            for group in range(parquet.num_row_groups):
                values = parquet.read_row_group(group, columns=[column]).column(0).drop_null()
                if len(values):
                    value: bytes = values[0].as_py()
                    return value
    raise DataError(f"{found.url}: column {column!r} has no values. Remove it from the features")


def read_schema(url: str) -> TableSchema:
    """Read `schema.json` of a prepared table.

    Raises:
        DataError: there is no table or no schema, or it is malformed.
    """
    place = files.join(url, SCHEMA_FILE)
    fs, path = files.filesystem(place)
    with files.accessing(place):
        try:
            schema = TableSchema.from_json(json.loads(fs.cat_file(path)))
        except FileNotFoundError:
            raise _not_prepared(fs, fs._parent(path), url) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise DataError(f"{place} is not a valid schema ({exc!r}). Prepare the table again") from exc
    for feature in schema.features:
        if feature.transform:  # data must not choose the code that runs
            raise DataError(
                f"{place}: column {feature.name!r} names the function {feature.transform!r}, but only a "
                "study file may name code. Remove it, and add it to data.transforms if you trust it"
            )
    return schema


def _not_prepared(fs: Any, folder: str, url: str) -> DataError:
    if not fs.exists(folder):
        return DataError(
            f"{url}: the table does not exist. Create it with "
            f"`spark-hpo prepare csv --input <your table> --label <column> --output {url}`"
        )
    if (format := table_format(url)) is not TableFormat.PARQUET:
        return DataError(
            f"{url} is a table of format {format}, which is read in place. Name the column to predict "
            f"(data.label), or run `spark-hpo prepare csv --in-place --input {url} --label <column> "
            "--output <another folder>`"
        )
    return DataError(
        f"{url} has no {SCHEMA_FILE}, so it is not a prepared table. Create one with "
        f"`spark-hpo prepare csv --input {url} --label <column> --output <another folder>`"
    )
