"""One decode a machine, whoever reads, and whoever dies."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_hpo.data.cache import cache_folder
from spark_hpo.data.cache.cache_folder import CacheFolder, CacheSettings, key_of
from spark_hpo.data.cache.node_cache import NodeCache, open_node_cache
from spark_hpo.data.encode import Columns
from spark_hpo.data.plan.manifest import Manifest
from spark_hpo.data.plan.read_manifest import read_manifest
from spark_hpo.data.plan.shards import Segment
from spark_hpo.data.readers import open_reader
from spark_hpo.data.schema import ColumnKind, Feature, Label, TableSchema
from spark_hpo.errors import DataError

SCHEMA = TableSchema(
    features=(
        Feature(name="id", kind=ColumnKind.NUMERIC),
        Feature(name="pair", kind=ColumnKind.ARRAY, shape=(2,)),
    ),
    label=Label(name="class", classes=("a", "b")),
)
ROWS, GROUP_ROWS = 1000, 100
LIMIT_S = 60.0


class Counting:
    """A reader that notes which row groups it is asked for, and may be slow or fail."""

    def __init__(self, manifest: Manifest, before: Callable[[Segment], None] = lambda _: None) -> None:
        self._reader = open_reader("arrow", manifest, SCHEMA)
        self._before = before
        self.read_groups: list[int] = []

    def read(self, segments: Sequence[Segment]) -> Generator[Columns, None, None]:
        for segment in segments:
            self._before(segment)
            self.read_groups.append(segment.row_group)
            yield from self._reader.read([segment])


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    folder = tmp_path / "split"
    folder.mkdir()
    ids = np.arange(ROWS)
    table = pa.table(
        {
            "id": ids.astype("float32"),
            "pair": pa.array(list(np.stack([ids, -ids], 1).astype("float32"))),
            "class": ids % 2,
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=GROUP_ROWS)
    return read_manifest(str(folder), SCHEMA)


def opened(
    manifest: Manifest, folder: Path, reader: Any = None, *, mapped: bool = True, **options: Any
) -> tuple[NodeCache | None, Counting]:
    reader = reader or Counting(manifest)
    settings = CacheSettings(folder=str(folder), **options)
    return open_node_cache(settings, reader, manifest, SCHEMA, shard_bytes=20_000, mapped=mapped), reader


def segments(*groups: int) -> list[Segment]:
    return [Segment(0, group, 0, GROUP_ROWS) for group in groups]


def ids(pieces: Any) -> list[int]:
    found = []
    for piece in pieces:
        np.testing.assert_array_equal(piece["pair"], np.stack([piece["id"], -piece["id"]], 1))
        np.testing.assert_array_equal(piece["class"], piece["id"].astype(int) % 2)
        found += [int(i) for i in piece["id"]]
    return found


def rows_of(*groups: int) -> list[int]:
    return [i for group in groups for i in range(group * GROUP_ROWS, (group + 1) * GROUP_ROWS)]


@pytest.mark.parametrize("mapped", [True, False])
def test_cache_decodes_each_row_group_once_for_all_readers(
    manifest: Manifest, tmp_path: Path, mapped: bool
) -> None:
    first, reader = opened(manifest, tmp_path, mapped=mapped)
    assert first is not None
    assert ids(first.read(segments(7, 2, 4))) == rows_of(7, 2, 4)
    assert ids(first.read([Segment(0, 4, 3, 9), *segments(1)])) == [*range(403, 409), *rows_of(1)]
    assert sorted(reader.read_groups) == [1, 2, 4, 7]
    # Another rank, with another shard: what is there is not decoded again.
    second, other = opened(manifest, tmp_path, mapped=mapped)
    assert second is not None
    assert ids(second.read(segments(1, 2, 3))) == rows_of(1, 2, 3)
    assert other.read_groups == [3]


def test_cache_returns_read_only_maps_of_its_files(manifest: Manifest, tmp_path: Path) -> None:
    cache, _ = opened(manifest, tmp_path)
    assert cache is not None
    [piece] = cache.read(segments(0))
    with pytest.raises(ValueError, match="read-only"):
        piece["id"][0] = 7
    maps = Path("/proc/self/maps").read_text()
    assert str(tmp_path) in maps


def test_another_table_or_other_columns_are_another_entry(manifest: Manifest, tmp_path: Path) -> None:
    cache, reader = opened(manifest, tmp_path)
    assert cache is not None
    list(cache.read(segments(0)))
    narrow = TableSchema(features=SCHEMA.features[:1], label=SCHEMA.label)
    other = open_node_cache(
        CacheSettings(folder=str(tmp_path)),
        open_reader("arrow", manifest, narrow),
        manifest,
        narrow,
        shard_bytes=1,
        mapped=True,
    )
    assert other is not None
    [piece] = other.read(segments(0))
    assert set(piece) == {"id", "class"}
    [file] = manifest.files
    os.utime(file.path, (1, 1))
    touched, reader = opened(read_manifest(manifest.url, SCHEMA), tmp_path)
    assert touched is not None
    list(touched.read(segments(0)))
    assert reader.read_groups == [0]


def _read_in_another_process(manifest: Manifest, folder: Path, results: Any, groups: list[int]) -> None:
    cache, reader = opened(manifest, folder, Counting(manifest, before=lambda _: time.sleep(0.01)))
    assert cache is not None
    results.put((ids(cache.read(segments(*groups))), reader.read_groups))


def test_processes_that_read_at_once_share_the_work(manifest: Manifest, tmp_path: Path) -> None:
    context = mp.get_context("fork")
    results = context.Queue()
    orders = [list(np.random.default_rng(seed).permutation(10)) for seed in range(4)]
    processes = [
        context.Process(target=_read_in_another_process, args=(manifest, tmp_path, results, order))
        for order in orders
    ]
    for process in processes:
        process.start()
    answers = [results.get(timeout=LIMIT_S) for _ in processes]
    for process in processes:
        process.join(LIMIT_S)
    assert sorted(rows for rows, _ in answers) == sorted(rows_of(*order) for order in orders)
    decoded = [group for _, groups in answers for group in groups]
    assert sorted(decoded) == list(range(10)), "a row group was decoded twice, or never"


def _hang_while_decoding(manifest: Manifest, folder: Path, reached: Any) -> None:
    def hang(segment: Segment) -> None:
        if segment.row_group == 3:
            reached.set()
            time.sleep(LIMIT_S)

    cache, _ = opened(manifest, folder, Counting(manifest, before=hang))
    assert cache is not None
    list(cache.read(segments(1, 3, 5)))


def test_process_killed_while_it_decodes_leaves_the_cache_valid(manifest: Manifest, tmp_path: Path) -> None:
    context = mp.get_context("fork")
    reached = context.Event()
    process = context.Process(target=_hang_while_decoding, args=(manifest, tmp_path, reached))
    process.start()
    assert reached.wait(LIMIT_S)
    cache, reader = opened(manifest, tmp_path)
    assert cache is not None
    pieces = cache.read(segments(5, 3, 1))
    killer = threading.Timer(0.2, os.kill, (process.pid, signal.SIGKILL))
    killer.start()
    assert ids(pieces) == rows_of(5, 3, 1)
    assert set(reader.read_groups) <= {1, 3, 5}
    assert 3 in reader.read_groups
    process.join(LIMIT_S)


def test_cache_stops_waiting_for_a_stalled_process(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_hpo.data.cache.node_cache._LIMIT_S", 0.1)
    context = mp.get_context("fork")
    reached = context.Event()
    process = context.Process(target=_hang_while_decoding, args=(manifest, tmp_path, reached))
    process.start()
    assert reached.wait(LIMIT_S)
    try:
        cache, _ = opened(manifest, tmp_path)
        assert cache is not None
        assert ids(cache.read(segments(3, 6))) == rows_of(3, 6)
    finally:
        process.kill()
        process.join(LIMIT_S)


def test_full_disk_turns_the_cache_off(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, reader = opened(manifest, tmp_path)
    assert cache is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spark_hpo.data.cache.node_cache._BlockFile.write", full)
    assert ids(cache.read(segments(0, 1))) == rows_of(0, 1)
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    again, reader = opened(manifest, tmp_path)
    assert again is not None
    assert ids(again.read(segments(0, 1))) == rows_of(0, 1)
    assert reader.read_groups == [0, 1], "what was not written whole is not marked"


def test_cache_without_room_is_off_with_a_warning(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, _ = opened(manifest, tmp_path, max_bytes=10_000)
    assert cache is None
    assert opened(manifest, tmp_path, max_bytes=10_000)[0] is None
    assert caplog.text.count("reading without the node cache") == 1, "not from each rank of each trial"
    assert "has no room for" in caplog.text


def test_cache_raises_decoding_errors_in_the_reader(manifest: Manifest, tmp_path: Path) -> None:
    def fail(segment: Segment) -> None:
        if segment.row_group == 2:
            raise DataError("row group 2 is damaged")

    cache, _ = opened(manifest, tmp_path, Counting(manifest, before=fail))
    assert cache is not None
    pieces = cache.read(segments(1, 2))
    assert ids([next(pieces)]) == rows_of(1)
    with pytest.raises(DataError, match="row group 2 is damaged"):
        next(pieces)


def test_leaving_half_way_ends_the_thread(manifest: Manifest, tmp_path: Path) -> None:
    cache, _ = opened(manifest, tmp_path)
    assert cache is not None
    pieces = cache.read(segments(*range(10)))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("reader")]


# The folder ----------------------------------------------------------------------------------------------


def fill(folder: CacheFolder, key: str, size: int) -> Any:
    entry = folder.open(key, {"data": size}, needed=size)
    assert entry is not None
    (entry.path / "data").write_bytes(bytes(1) * size)
    return entry


def used_at(folder: CacheFolder, key: str, seconds: float) -> None:
    os.utime(folder.path / key / "in_use", (seconds, seconds))


def test_cache_evicts_the_least_recently_used_entry(tmp_path: Path) -> None:
    folder = CacheFolder(CacheSettings(folder=str(tmp_path), max_bytes=300_000))
    for key in ("a", "b"):
        fill(folder, key, 100_000).close()
    used_at(folder, "b", 1000.0)
    used_at(folder, "a", 2000.0)
    fill(folder, "c", 150_000).close()
    assert sorted(path.name for path in folder.path.iterdir()) == ["a", "c"]


def test_cache_never_evicts_an_entry_in_use(tmp_path: Path) -> None:
    folder = CacheFolder(CacheSettings(folder=str(tmp_path), max_bytes=300_000))
    held = fill(folder, "a", 200_000)
    assert folder.open("b", {"data": 200_000}, needed=200_000) is None
    held.close()
    assert folder.open("b", {"data": 200_000}, needed=200_000) is not None
    assert not (folder.path / "a").exists()


def test_entries_that_nobody_uses_can_be_deleted(tmp_path: Path) -> None:
    folder = CacheFolder(CacheSettings(folder=str(tmp_path)))
    held = fill(folder, "held", 10_000)
    for key in ("old", "new"):
        fill(folder, key, 100_000).close()
    used_at(folder, "held", 1000.0)
    used_at(folder, "old", 1000.0)
    (size,) = folder.evict_unused(3600.0, dry_run=True)
    assert size >= 100_000
    assert (folder.path / "old").exists()
    assert folder.evict_unused(3600.0) == [size]
    assert sorted(path.name for path in folder.path.iterdir()) == ["held", "new"]
    held.close()
    assert len(folder.evict_unused(0.0)) == 2
    assert list(folder.path.iterdir()) == []


def test_cache_folder_is_private(tmp_path: Path) -> None:
    folder = CacheFolder(CacheSettings(folder=str(tmp_path)))
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.path.chmod(0o755)
    with pytest.raises(PermissionError, match="private to this user"):
        CacheFolder(CacheSettings(folder=str(tmp_path)))
    folder.path.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        CacheFolder(CacheSettings(folder=str(tmp_path)))


@pytest.mark.parametrize("name", ["", "ready", "locks", "block-0", "in_use"])
def test_cache_refuses_symbolic_links_and_reads_the_table(
    manifest: Manifest, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = opened(manifest, tmp_path)
    assert first is not None
    entry = first._entry.path
    moved = tmp_path / "elsewhere"
    (entry / name).rename(moved)
    (entry / name).symlink_to(moved)
    cache, _ = opened(manifest, tmp_path)
    assert cache is None or ids(cache.read(segments(0))) == rows_of(0)
    assert "is a symbolic link" in caplog.text


def test_cache_files_are_private(manifest: Manifest, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache, _ = opened(manifest, tmp_path)
        assert cache is not None
        assert ids(cache.read(segments(0))) == rows_of(0)
    finally:
        os.umask(before)
    made = [path for path in CacheFolder(CacheSettings(folder=str(tmp_path))).path.rglob("*")]
    assert made
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_cache_deletes_files_of_killed_processes(tmp_path: Path) -> None:
    folder = CacheFolder(CacheSettings(folder=str(tmp_path)))
    for name in (".new-old", ".new-young", ".old-old"):
        (folder.path / name).mkdir()
    for name in (".new-old", ".old-old"):
        os.utime(folder.path / name, (1.0, 1.0))
    fill(folder, "a", 1000).close()
    assert sorted(path.name for path in folder.path.iterdir()) == [".new-young", "a"]


def test_after_a_restart_of_the_machine_nothing_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(["facts"])
    assert key_of(["facts"]) == before
    monkeypatch.setattr(cache_folder, "_boot_id", lambda: "another start")
    assert key_of(["facts"]) != before


@pytest.mark.parametrize("variable", ["SPARK_HPO_CACHE_DIR", "SPARK_LOCAL_DIRS", "LOCAL_DIRS"])
def test_cache_uses_the_disk_of_the_cluster(variable: str, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("SPARK_HPO_CACHE_DIR",)}
    program = (
        "from spark_hpo.data.cache.cache_folder import *;print(CacheFolder(CacheSettings()).path.parent)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, variable: f"{tmp_path},/elsewhere"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == str(tmp_path)
