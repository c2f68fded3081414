"""Tables that are damaged while a study reads them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.cost_table import CostTable
from tests.faults.processes import eventually
from tests.faults.study_run import ROWS, StudyRun

NewStudy = Callable[..., StudyRun]

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


def with_files(study: StudyRun) -> Path:
    """Write the training split as several files, and return the one to damage."""
    folder = study.folder / "table/train"
    whole = pq.read_table(folder / "part-0.parquet")
    for number in range(FILES):
        part = whole.slice(number * ROWS_OF_A_FILE, ROWS_OF_A_FILE)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=16)
    return folder / "part-1.parquet"


def test_damaged_file_ends_the_study_which_resumes_when_it_is_repaired(
    new_study: NewStudy, costs: CostTable
) -> None:
    trials = 2 * (len(DAMAGES) + 1)
    study = new_study(
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
        process = study.start_driver()
        eventually(lambda: len(study.results()) > len(before), "a report")  # noqa: B023
        if took_s:  # what this driver has repeated, the damage before has cost
            repeated_s.append(study.repeated_s())
        before = study.results()
        damage(file)
        damaged = time.time()
        assert process.wait(120) == 3, f"{name}\n{study.log[-4000:]}"
        took_s.append(time.time() - damaged)
        assert "train/part-1.parquet" in study.log, name
        study.assert_no_leftovers()
        shutil.copy2(study.folder / "whole.parquet", file)
        assert before.items() <= study.results().items(), name
    study.finish_and_check()
    assert before.items() <= study.results().items()
    assert len(study.results()) == trials
    repeated_s.append(study.repeated_s())
    for name, took, (then, now) in zip(DAMAGES, took_s, pairwise(repeated_s), strict=True):
        costs.add(f"data {name}, policy fail", repeated_s=now - then, recovery_s=took)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_file_is_skipped_if_the_study_allows_it(
    new_study: NewStudy, costs: CostTable, damage: str
) -> None:
    study = new_study(step_s=0.1, spark=LOCAL, data={"cache": {"enabled": False}, "on_bad_file": "skip"})
    file = with_files(study)
    study.start_driver()
    eventually(lambda: len(study.reported()) >= 1, "a report")
    DAMAGES[damage](file)
    answer = study.finish_and_check(rows=None)
    assert answer["trials"] == {"completed": 4}
    assert [name.endswith("train/part-1.parquet") for name in answer["files_left_out"]] == [True]
    rows = [point["rows"] for report in study.reported() for point in report["curve"]]
    assert set(rows) == {ROWS_OF_A_FILE * FILES, ROWS_OF_A_FILE * (FILES - 1)}
    assert "train/part-1.parquet" in study.log
    assert f"without {ROWS_OF_A_FILE} of {2 * ROWS} rows" in study.log
    costs.add(f"data {damage}, policy skip", repeated_s=study.repeated_s())
