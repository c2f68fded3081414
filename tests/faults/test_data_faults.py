"""A table that is damaged while a study reads it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.family import eventually
from tests.faults.ledger import Ledger
from tests.faults.live import ROWS, LiveStudy

Live = Callable[..., LiveStudy]

LOCAL = {"spark.master": "local[2]"}
FILES = 3
ROWS_OF_A_FILE = 40


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    for at in range(4, len(data) - 700, 7):  # pages, not the footer
        data[at] ^= 0xFF
    file.write_bytes(bytes(data))


def replace(file: Path) -> None:
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 7), file)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "deleted": Path.unlink,
    "replaced": replace,
}


def with_files(study: LiveStudy) -> Path:
    """The training split in several files, and the one that will be damaged."""
    folder = study.folder / "table/train"
    whole = pq.read_table(folder / "part-0.parquet")
    for number in range(FILES):
        part = whole.slice(number * ROWS_OF_A_FILE, ROWS_OF_A_FILE)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=16)
    return folder / "part-1.parquet"


def test_damaged_files_end_the_study_with_their_name_and_it_goes_on_when_they_are_whole(
    live: Live, ledger: Ledger
) -> None:
    trials = 2 * (len(DAMAGES) + 1)
    study = live(
        step_s=0.1,
        spark=LOCAL,
        data={"cache": {"enabled": False}, "on_bad_file": "fail"},
        budget={"trials": trials},
    )
    file = with_files(study)
    shutil.copy2(file, study.folder / "whole.parquet")
    repeated_s, took_s = [0.0], []
    for name, damage in DAMAGES.items():
        before = study.results()
        process = study.begin()
        eventually(lambda: len(study.results()) > len(before), "a report")  # noqa: B023
        if took_s:  # what this driver has repeated, the damage before has cost
            repeated_s.append(study.repeated_s())
        before = study.results()
        damage(file)
        damaged = time.time()
        assert process.wait(120) == 3, f"{name}\n{study.log[-4000:]}"
        took_s.append(time.time() - damaged)
        assert "train/part-1.parquet" in study.log, name
        study.assert_nothing_is_left()
        shutil.copy2(study.folder / "whole.parquet", file)
        assert before.items() <= study.results().items(), name
    study.finish_soundly()
    assert before.items() <= study.results().items()
    assert len(study.results()) == trials
    repeated_s.append(study.repeated_s())
    for name, took, (then, now) in zip(DAMAGES, took_s, pairwise(repeated_s), strict=True):
        ledger.add(f"data {name}, policy fail", repeated_s=now - then, recovery_s=took)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_file_is_left_out_where_the_study_says_so(live: Live, ledger: Ledger, damage: str) -> None:
    study = live(step_s=0.1, spark=LOCAL, data={"cache": {"enabled": False}, "on_bad_file": "skip"})
    file = with_files(study)
    study.begin()
    eventually(lambda: len(study.reported()) >= 1, "a report")
    DAMAGES[damage](file)
    answer = study.finish_soundly(rows=None)
    assert answer["trials"] == {"completed": 4}
    assert [name.endswith("train/part-1.parquet") for name in answer["files_left_out"]] == [True]
    rows = [point["rows"] for report in study.reported() for point in report["curve"]]
    assert set(rows) == {ROWS_OF_A_FILE * FILES, ROWS_OF_A_FILE * (FILES - 1)}
    assert "train/part-1.parquet" in study.log
    assert f"{ROWS_OF_A_FILE} of {2 * ROWS} rows are not read" in study.log
    ledger.add(f"data {damage}, policy skip", repeated_s=study.repeated_s())
