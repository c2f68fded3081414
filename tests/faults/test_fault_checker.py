"""The checker of the fault tests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import read_journal, violations

Records = list[dict[str, Any]]


def point(resource: int, rows: int = 120) -> dict[str, Any]:
    return {"resource": resource, "metrics": {"loss": 1.0 / resource}, "rows": rows}


def assigned(trial: int, rung: int, attempt: int = 1, split: str = "validation") -> dict[str, Any]:
    start, stop = (3, 3) if split == "test" else [(0, 1), (1, 3)][rung]
    return {
        "event": "assigned",
        "trial_id": trial,
        "rung": rung,
        "attempt": attempt,
        "split": split,
        "resource_from": start,
        "resource_to": stop,
        "checkpoint": f"checkpoints/trial-{trial:06d}/{start:06d}-1.pt" if start else None,
    }


def reported(trial: int, rung: int, attempt: int = 1, **changes: Any) -> dict[str, Any]:
    start, stop = [(0, 1), (1, 3)][rung]
    return {
        "event": "reported",
        "trial_id": trial,
        "rung": rung,
        "attempt": attempt,
        "split": "validation",
        "resource": stop,
        "metrics": {"loss": 1.0 / stop},
        "curve": [point(resource) for resource in range(start + 1, stop + 1)],
        "checkpoint": f"checkpoints/trial-{trial:06d}/{stop:06d}-{attempt}.pt",
        "failure": None,
        **changes,
    }


def settled(trial: int, state: str) -> dict[str, Any]:
    return {"event": "settled", "trials": [trial], "state": state}


def valid() -> Records:
    """Two trials; the first is promoted to the next rung, where an attempt is lost."""
    return [
        {"event": "opened", "version": 1, "after": {}},
        assigned(0, 0),
        assigned(1, 0),
        reported(1, 0),
        reported(0, 0),
        settled(1, "stopped"),
        assigned(0, 1),
        {**reported(0, 1), "event": "lost", "failure": {"kind": "infrastructure"}},
        assigned(0, 1, attempt=2),
        reported(0, 1, attempt=2),
        settled(0, "completed"),
        {"event": "closed", "reason": "trials"},
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Records], Path]:
    """Write a study directory: the given journal, and the other files of a valid study."""

    def write(records: Records, epoch: int = 1, first: int = 1) -> Path:
        study = tmp_path / "study"
        (study / "journal").mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"sequence": first + i, "time": 0.0, **r}) for i, r in enumerate(records)]
        (study / f"journal/{epoch:06d}.jsonl").write_text("".join(line + "\n" for line in lines))
        (study / "checkpoints/trial-000000").mkdir(parents=True, exist_ok=True)
        (study / "checkpoints/trial-000000/000003-2.pt").touch()
        (study / "lease.json").write_text(json.dumps({"released": True}))
        (study / "study.json").write_text(json.dumps({"study_id": "s"}))
        return study

    return write


def test_checker_accepts_a_valid_study(write: Any) -> None:
    assert violations(write(valid()), rows=120) == []


def without(index: int) -> Callable[[Records], Records]:
    return lambda records: [*records[:index], *records[index + 1 :]]


def put(index: int, record: dict[str, Any]) -> Callable[[Records], Records]:
    return lambda records: [*records[:index], record, *records[index:]]


def change(index: int, **values: Any) -> Callable[[Records], Records]:
    return lambda records: [*records[:index], {**records[index], **values}, *records[index + 1 :]]


@pytest.mark.parametrize(
    ("breaking", "sentence"),
    [
        (put(10, reported(0, 1, attempt=2)), "trial 0, rung 1 was reported twice"),
        (put(10, assigned(0, 1, attempt=3)), "trial 0, rung 1 was assigned again after it had been reported"),
        (change(8, attempt=3), "trial 0, rung 1: attempt 3 follows 1 others"),
        (change(8, resource_to=9), "trial 0, rung 1: the next attempt has other work"),
        (change(9, attempt=1), "trial 0, rung 1: a result of attempt 1, but 2 is open"),
        (without(9), "trial 0, rung 1 was assigned and never reported"),
        (change(6, resource_from=0), "trial 0, rung 1 starts at 0 from checkpoints/trial-000000/000001-1.pt"),
        (change(6, checkpoint="x"), "trial 0, rung 1 starts at 1 from x; the rung below ended at 1 with"),
        (change(4, failure={"kind": "trial"}), "trial 0, rung 1 was assigned although the trial had failed"),
        (change(9, curve=[point(2)]), "trial 0 has 2 measurements for 3 epochs"),
        (change(9, curve=[point(2), point(2)]), "trial 0 was measured at [1, 2, 2]"),
        (change(9, curve=[point(2), point(3, 119)]), "trial 0, epoch 3: 119 rows were read, not 120"),
        (change(9, resource=2), "trial 0, rung 1 reached 2, not 3"),
        (change(5, state="paused"), "checkpoints/trial-000001/000001-1.pt is needed, but missing"),
        (change(9, checkpoint="elsewhere"), "elsewhere is needed, but missing"),
        (change(3, sequence=3), "the journal's event 3 comes after event 3"),
        (put(2, settled(0, "completed")), None),
    ],
)
def test_checker_finds_broken_records(write: Any, breaking: Any, sentence: str | None) -> None:
    found = violations(write(breaking(valid())), rows=120)
    if sentence is None:
        assert found == []
    else:
        assert any(text.startswith(sentence) for text in found), found


def test_checker_finds_leftover_files(write: Any) -> None:
    study = write(valid())
    (study / "checkpoints/trial-000001").mkdir()
    (study / "checkpoints/trial-000001/000001-1.pt").touch()
    (study / "checkpoints/trial-000000/.tmp-abc").touch()
    (study / "stop").touch()
    (study / "lease.json").write_text(json.dumps({"released": False}))
    assert violations(study) == [
        "checkpoints/trial-000000/.tmp-abc is not needed, but exists",
        "checkpoints/trial-000001/000001-1.pt is not needed, but exists",
        "checkpoints/trial-000000/.tmp-abc was left by an interrupted writer",
        "stop is left in the study directory",
        "the lease was not released",
    ]
    assert violations(study, is_finished=False) == [], "a resumed study deletes them"


def test_checker_ignores_writes_after_the_lease_was_lost(write: Any) -> None:
    old = valid()
    write([*old[:5], reported(0, 0)])  # the last one late
    study = write([{"event": "opened", "after": {"1": 5}}, *old[5:]], epoch=2, first=6)
    assert violations(study, rows=120) == []
    assert [record["event"] for record in read_journal(study / "journal")][4:6] == ["reported", "opened"]


def test_checker_ignores_a_torn_last_record_and_reports_damaged_ones(write: Any) -> None:
    study = write(valid())
    log = study / "journal/000001.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"sequence": 13, "ev')
    assert violations(study, rows=120) == []
    log.write_bytes(whole[:40] + b"\n" + whole[40:])
    assert violations(study) == [violations(study)[0]]
    assert violations(study)[0].startswith("000001.jsonl: line 1 cannot be read")


class TestMlflow:
    @pytest.fixture
    def database(self, tmp_path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(tmp_path / "mlflow.db")
        connection.execute("CREATE TABLE runs (run_uuid, status, lifecycle_stage)")
        connection.execute("CREATE TABLE tags (run_uuid, key, value)")
        connection.execute("CREATE TABLE metrics (run_uuid, key, step, value)")
        self.add(connection, "parent", "study")
        for trial, steps in {0: (1, 2, 3), 1: (1,)}.items():
            self.add(connection, f"run-{trial}", "trial", trial)
            for step in steps:
                connection.execute(
                    "INSERT INTO metrics VALUES (?, 'loss', ?, ?)", (f"run-{trial}", step, 1.0 / step)
                )
        connection.commit()
        return connection

    def add(self, connection: sqlite3.Connection, run: str, kind: str, trial: int = 0) -> None:
        connection.execute("INSERT INTO runs VALUES (?, 'FINISHED', 'active')", (run,))
        tags = {"study_id": "s", "kind": kind, **({"trial_id": str(trial)} if kind == "trial" else {})}
        for key, value in tags.items():
            connection.execute("INSERT INTO tags VALUES (?, ?, ?)", (run, f"spark_hpo.{key}", value))

    @pytest.mark.parametrize(
        ("statement", "sentence"),
        [
            ("SELECT 1", None),
            (
                "UPDATE runs SET status = 'RUNNING' WHERE run_uuid = 'run-1'",
                "MLflow's run of run-1 is still running",
            ),
            ("DELETE FROM tags WHERE run_uuid = 'run-1'", "MLflow has 0 runs of trial 1"),
            ("DELETE FROM metrics WHERE step = 2", "MLflow's points of trial 0 differ from the journal's"),
            ("INSERT INTO metrics SELECT * FROM metrics WHERE step = 3", "MLflow's points of trial 0 differ"),
            ("UPDATE metrics SET value = 7 WHERE step = 3", "MLflow's points of trial 0 differ"),
        ],
    )
    def test_checker_finds_missing_and_duplicate_mlflow_records(
        self, write: Any, database: sqlite3.Connection, tmp_path: Path, statement: str, sentence: str | None
    ) -> None:
        database.execute(statement)
        database.commit()
        found = violations(write(valid()), mlflow=tmp_path / "mlflow.db")
        assert len(found) == (sentence is not None), found
        assert sentence is None or found[0].startswith(sentence)

    def test_checker_finds_a_second_run_of_a_trial(
        self, write: Any, database: sqlite3.Connection, tmp_path: Path
    ) -> None:
        self.add(database, "again", "trial", 1)
        database.commit()
        found = violations(write(valid()), mlflow=tmp_path / "mlflow.db")
        assert found == ["MLflow has 2 runs of trial 1"]
