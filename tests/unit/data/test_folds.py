"""The folds of a cross-validation divide the training and validation rows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.plan.folds import FoldRows
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.readers import Reader, open_reader
from spark_hpo.data.schema import ColumnKind, Feature, Label, Source, TableSchema
from spark_hpo.data.table import Table, open_table
from spark_hpo.trial import Split
from tests.support.manifests import manifest_of, rows_of

SIZES = {Split.TRAIN: 80, Split.VALIDATION: 25, Split.TEST: 15}
SCHEMA = TableSchema(
    features=(Feature(name="id", kind=ColumnKind.NUMERIC),), label=Label(name="class", classes=("a", "b"))
)


def side(manifest: Manifest, number: int, count: int, *, is_held_out: bool, seed: int = 0) -> Manifest:
    return manifest.of_fold(FoldRows(number=number, count=count, seed=seed, is_held_out=is_held_out))


def planned(manifest: Manifest, *, world_size: int = 1, parts: int = 1) -> list[tuple[int, int, int]]:
    shards = [
        shard
        for part in range(parts)
        for shard in plan_shards(manifest, world_size, seed=1, part=part, parts=parts)
    ]
    return [row for shard in shards for row in rows_of(shard.segments)]


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    count=st.integers(2, 10),
    seed=st.integers(0, 2**40),
)
def test_folds_partition_the_rows_equal_to_within_one(sizes: list[int], count: int, seed: int) -> None:
    whole = manifest_of(*sizes)
    everything = set(planned(whole))
    held_out: Counter[tuple[int, int, int]] = Counter()
    for number in range(1, count + 1):
        out = side(whole, number, count, is_held_out=True, seed=seed)
        kept = side(whole, number, count, is_held_out=False, seed=seed)
        fold = planned(out) if out.rows else []
        rest = planned(kept) if kept.rows else []
        assert len(set(fold)) == len(fold) == out.rows
        assert len(set(rest)) == len(rest) == kept.rows
        assert set(fold).isdisjoint(rest)
        assert set(fold) | set(rest) == everything
        assert whole.rows // count <= out.rows <= -(-whole.rows // count)
        held_out.update(fold)
    assert held_out == Counter(dict.fromkeys(everything, 1)), "each row is held out once"


@given(world_size=st.integers(1, 4), parts=st.integers(1, 3), sizes=st.lists(st.integers(60, 90), min_size=2))
def test_ranks_divide_the_rows_of_a_fold(world_size: int, parts: int, sizes: list[int]) -> None:
    whole = manifest_of(*sizes)
    for is_held_out in (True, False):
        part = side(whole, 2, 4, is_held_out=is_held_out)
        rows = planned(part, world_size=world_size, parts=parts)
        assert sorted(rows) == sorted(planned(part))


def test_fold_of_a_table_in_the_order_of_a_column_has_rows_from_all_over() -> None:
    whole = manifest_of(100_000)
    for number in (1, 2, 3):
        rows = np.array([row for _, _, row in planned(side(whole, number, 3, is_held_out=True))])
        tenths = np.bincount(rows // 10_000, minlength=10) / len(rows)
        assert tenths.min() > 0.07, tenths


def test_division_depends_on_seed_and_count_only() -> None:
    whole = manifest_of(300, 100)
    first = planned(side(whole, 1, 5, is_held_out=True))
    assert planned(side(whole, 1, 5, is_held_out=True)) == first
    assert planned(side(whole, 1, 5, is_held_out=True, seed=1)) != first


def write(folder: Path, *, in_place: bool) -> Table:
    """Ids from 0 on, in the order of the splits; in one folder or in three."""
    sources: dict[str, Any] = {}
    first = 0
    for split, rows in SIZES.items():
        part = folder / ("rows" if in_place else split)
        part.mkdir(parents=True, exist_ok=True)
        ids = np.arange(first, first + rows)
        # In place, rows of the three splits alternate in every row group.
        table = pa.table({"id": ids.astype("float32"), "class": ids % 2, "split": [str(split)] * rows})
        if not in_place:
            pq.write_table(table, part / "part-0.parquet", row_group_size=16)
        sources[split] = table
        first += rows
    if in_place:
        mixed = pa.concat_tables(sources.values()).take(np.random.default_rng(0).permutation(first))
        pq.write_table(mixed, folder / "rows/part-0.parquet", row_group_size=32)
    schema = SCHEMA
    if in_place:
        places = {split: Source(url=str(folder / "rows"), where=f"split = '{split}'") for split in Split}
        schema = replace(SCHEMA, sources=places)
    (folder / "schema.json").write_text(json.dumps(schema.to_json()))
    return open_table(str(folder))


def ids_of(table: Table, split: Split, cache: CacheSettings | None = None) -> list[int]:
    loader = Loader(
        table,
        split,
        rank=0,
        world_size=1,
        batch_size=16,
        seed=0,
        reader="arrow",
        shuffle_window=20 if split is Split.TRAIN else None,
        node_cache=cache,
    )
    return [int(value) for batches in loader.passes(0, 1) for batch in batches for value in batch["id"]]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_folds_of_a_table_read_each_training_row_and_no_test_row(
    tmp_path: Path, in_place: bool, cached: bool
) -> None:
    table = write(tmp_path / "table", in_place=in_place)
    cache = CacheSettings(folder=str(tmp_path / "cache")) if cached else None
    usable = SIZES[Split.TRAIN] + SIZES[Split.VALIDATION]
    held_out: list[int] = []
    for number in range(1, 5):
        fold = table.fold(number, 4, seed=0)
        out = ids_of(fold, Split.VALIDATION, cache)
        assert sorted(out + ids_of(fold, Split.TRAIN, cache)) == list(range(usable))
        assert ids_of(fold, Split.TEST, cache) == ids_of(table, Split.TEST)
        held_out += out
    assert sorted(held_out) == list(range(usable))


@pytest.mark.parametrize("in_place", [False, True])
def test_final_model_gets_training_and_validation_rows(tmp_path: Path, in_place: bool) -> None:
    table = write(tmp_path / "table", in_place=in_place)
    assert sorted(ids_of(table.for_final(), Split.TRAIN)) == list(range(105))


def test_folds_of_a_table_without_a_bad_file_still_partition_the_rest(tmp_path: Path) -> None:
    table = write(tmp_path / "table", in_place=False)
    bad = table.manifest(Split.VALIDATION).files[0].path
    pq.write_table(
        pa.table({"id": np.array([200.0], "float32"), "class": [0], "split": ["validation"]}),
        tmp_path / "table/validation/part-1.parquet",
    )
    left = open_table(table.url).without([bad])
    held_out = [i for n in (1, 2, 3) for i in ids_of(left.fold(n, 3, seed=0), Split.VALIDATION)]
    assert sorted(held_out) == [*range(80), 200]


def test_all_sides_of_all_folds_share_one_cache_entry(tmp_path: Path) -> None:
    table = write(tmp_path / "table", in_place=False)
    cache = CacheSettings(folder=str(tmp_path / "cache"))
    for number in (1, 2):
        for split in (Split.TRAIN, Split.VALIDATION):
            ids_of(table.fold(number, 2, seed=0), split, cache)
    entries = [path for path in (tmp_path / "cache").rglob("ready")]
    assert len(entries) == 1


@pytest.mark.parametrize("name", ["arrow", "petastorm"])
def test_readers_read_a_row_group_once_for_its_pieces(tmp_path: Path, name: str) -> None:
    pytest.importorskip("petastorm") if name == "petastorm" else None
    table = write(tmp_path / "table", in_place=False).fold(1, 4, seed=0)
    manifest = table.manifest(Split.TRAIN)
    reader: Reader = open_reader(name, manifest, table.schema)
    [shard] = plan_shards(manifest, 1, None)
    assert len(shard.segments) > len({(s.file, s.row_group) for s in shard.segments})
    decoder: Any = reader._decoder  # type: ignore[attr-defined]
    seen: list[int] = []
    decode = decoder.decode
    decoder.decode = lambda group, segment: (seen.append(id(group)), decode(group, segment))[1]
    total = sum(len(columns["id"]) for columns in reader.read(shard.segments))
    assert total == manifest.rows


def test_manifest_of_a_fold_survives_json(tmp_path: Path) -> None:
    table = write(tmp_path / "table", in_place=True).fold(2, 3, seed=5)
    assert Table.from_json(table.to_json()) == table
