import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spark_hpo.errors import DataError
from spark_hpo.report.board import board, state_in_words
from spark_hpo.report.events import line_of
from spark_hpo.report.serve.tally import Tally
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.report.timeline import Use, timeline_of
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.lease import Holder
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.support.written_studies import TEST, StudyWriter


def drawn(status: StudyStatus) -> str:
    text = io.StringIO()
    Console(width=100, file=text).print(board(status, events=True))
    return text.getvalue()


def kill(pen: StudyWriter) -> None:
    """As if the driver had been a process of this machine that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    record = json.loads(pen.storage.read("lease.json") or b"")
    pen.storage.write("lease.json", json.dumps({**record, "pid": process.pid}).encode())


@pytest.fixture
def pen(tmp_path: Path) -> StudyWriter:
    """A study under way: trial 0 was promoted and runs, 1 waits, 2 is out, 3 has failed, 4 runs."""
    pen = StudyWriter(storage=Storage(tmp_path / "study"), budget={"trials": 8, "seconds": None})
    pen.slots(2)
    pen.at(10).start(0).at(14).end(0, value=0.8)
    pen.start(1).at(20).end(1, value=0.7)
    pen.start(2).at(24).end(2, value=0.2).settle(TrialState.STOPPED, 2)
    failure = Failure(kind=FailureKind.TRIAL, message="ValueError: 17 is too many [sic]")
    pen.start(3).at(26).end(3, value=None, failure=failure)
    pen.at(30).start(0, 1, 3, rung=1).start(4)
    return pen


def test_status_names_the_share_of_the_slots(pen: StudyWriter) -> None:
    pen.journal.slots(2, fit=8, num_others=3)
    status = StudyStatus.read(pen.storage)
    assert status.slots == 2
    assert status.share == ", a share of 8 with 3 other studies"
    assert status.to_json()["slots_shared_with"] == 3
    pen.journal.slots(8)
    status = StudyStatus.read(pen.storage)
    assert (status.slots, status.share, status.to_json()["slots_shared_with"]) == (8, "", 0)


def test_status_of_a_running_study_comes_from_its_directory(pen: StudyWriter) -> None:
    status = StudyStatus.read(pen.storage)
    assert status.state is StudyState.RUNNING
    assert status.trials == {"running": 2, "paused": 1, "stopped": 1, "failed": 1}
    assert [a.assignment.trial_id for a in status.running] == [0, 4]
    assert status.slots == 2
    record = status.to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["best"] == {"trial": 0, "params": {"x": 0.5}, "value": 0.8, "resource": 1, "peak": None}
    assert record["budget"] == {"trials": {"spent": 2.0, "limit": 8.0}}
    assert record["driver"]["pid"] == os.getpid()
    assert record["driver"]["host"] == socket.gethostname()
    assert record["driver"]["alive"] is True
    assert record["failures"][0]["message"] == "ValueError: # is too many [sic]"
    assert record["last_event"]["kind"] == "assigned"


def test_board_status_and_live_page_have_the_estimate_of_the_driver(pen: StudyWriter) -> None:
    assert StudyStatus.read(pen.storage).seconds_left is None
    Forecast(time=time.time(), seconds_left=90.4).write(pen.storage)
    status, tally = StudyStatus.read(pen.storage), Tally.begin(pen.storage)
    assert status.to_json()["seconds_left"] == pytest.approx(90.4, abs=1)
    assert "about 1 min 30 s left" in drawn(status) or "about 1 min 29 s left" in drawn(status)
    look = tally.look(Holder.read(pen.storage), Forecast.load(pen.storage))
    assert look.seconds_left == pytest.approx(90.4, abs=1)


def test_status_of_a_steered_study_has_what_people_have_changed(pen: StudyWriter) -> None:
    def steer(verb: str, **effect: Any) -> None:
        pen.journal.steered(
            {
                "request": verb,
                "verb": verb,
                "by": "ann@desk",
                "reply": "done",
                "message": "",
                "effect": effect,
            }
        )

    pen.at(40)
    steer("extend", budget={"trials": [8, 12]})
    steer("narrow", ranges={"x": [0.5, 2.0]})
    steer("pause")
    pen.lose(0, kind=FailureKind.INTERRUPTED).lose(4, kind=FailureKind.INTERRUPTED)
    pen.at(90)
    steer("drop", dropped=[1])
    status = StudyStatus.read(pen.storage)
    assert status.state is StudyState.PAUSED
    assert "somebody has paused" in drawn(status)
    assert [spent.limit for spent in status.budget] == [12]
    (dimension,) = status.record.space.dimensions()
    assert (dimension.parameter.low, dimension.parameter.high) == (0.0, 2.0)
    assert timeline_of(status.record).totals[Use.PAUSED] >= 40


def test_status_distinguishes_a_killed_driver_from_a_running_one(pen: StudyWriter) -> None:
    kill(pen)
    status = StudyStatus.read(pen.storage)
    assert status.state is StudyState.DEAD
    assert status.running == []
    assert status.trials["unfinished"] == 2
    assert "running" not in status.trials
    assert status.exit_code == 1
    assert f"spark-hpo resume {pen.storage.url}" in state_in_words(status)
    assert "died" in drawn(status)


def test_status_trusts_the_lease_of_a_driver_on_another_machine(pen: StudyWriter) -> None:
    record = json.loads(pen.storage.read("lease.json") or b"")
    pen.storage.write("lease.json", json.dumps({**record, "machine": "elsewhere"}).encode())
    assert StudyStatus.read(pen.storage).state is StudyState.RUNNING
    os.utime(pen.storage.path("lease.json"), (time.time() - 61,) * 2)
    assert StudyStatus.read(pen.storage).state is StudyState.DEAD


def test_status_has_a_state_and_an_exit_code_for_each_ending(pen: StudyWriter) -> None:
    pen.at(40).end(4, value=0.6).end(0, 3, value=0.9, rung=1).settle(TrialState.COMPLETED, 0)
    pen.start(0, 3, 3, **TEST).at(41).end(0, 3, value=0.85, **TEST)
    pen.close("interrupted")
    status = StudyStatus.read(pen.storage)
    assert (status.state, status.exit_code) == (StudyState.INTERRUPTED, 130)
    pen.open().close("trials")
    status = StudyStatus.read(pen.storage)
    assert (status.state, status.exit_code) == (StudyState.FINISHED, 0)
    assert status.answer.test == {"accuracy": 0.85}
    pen.open().start(5).die()
    status = StudyStatus.read(pen.storage)
    assert (status.state, status.exit_code) == (StudyState.FAILED, 1)
    assert status.to_json()["driver"]["drivers"] == 3


def test_status_of_a_study_whose_driver_ended_before_the_first_trial(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study"))
    pen.journal.failed(KeyboardInterrupt())
    pen.die()
    status = StudyStatus.read(pen.storage)
    assert (status.state, status.exit_code, status.record.ending) == (
        StudyState.INTERRUPTED,
        130,
        "interrupted",
    )
    pen.open().start(0).journal.failed(DataError("part-0.parquet: no rows"))
    pen.die()
    status = StudyStatus.read(pen.storage)
    assert (status.state, status.exit_code) == (StudyState.FAILED, 4)
    assert status.to_json()["error"] == "DataError: part-0.parquet: no rows"


def test_status_ignores_a_driver_that_was_refused(pen: StudyWriter) -> None:
    pen.end(0, 3, value=0.9, rung=1).end(4).close("trials")
    pen.open()
    assert StudyStatus.read(pen.storage).record.ending is None, "it works"
    pen.die()
    assert StudyStatus.read(pen.storage).state is StudyState.FINISHED


def test_exit_code_without_a_successful_trial_is_that_of_the_driver(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study"))
    pen.start(0).end(0, value=None, failure=Failure(kind=FailureKind.TRIAL, message="no")).die()
    assert StudyStatus.read(pen.storage).exit_code == 4


def test_status_does_not_count_attempts_of_an_earlier_driver_as_running(pen: StudyWriter) -> None:
    kill(pen)
    pen.at(100).open().start(4, attempt=2)
    assert [a.assignment.trial_id for a in StudyStatus.read(pen.storage).running] == [4]


def test_status_does_not_disturb_the_driver(pen: StudyWriter) -> None:
    before = pen.storage.read("lease.json")
    StudyStatus.read(pen.storage)
    assert pen.storage.read("lease.json") == before
    pen.end(4, value=0.6)  # it writes on


def test_board_shows_the_study(pen: StudyWriter) -> None:
    text = drawn(StudyStatus.read(pen.storage))
    for shown in (
        "by hand  running",
        "accuracy 0.8  trial 0 after 1 epoch",
        "x=0.5",
        "2 running  1 paused  1 stopped  1 failed",
        "2 of 8",
        "2 of 2 busy",
        "1 running, 1 waiting, 1 promoted, 1 stopped, 1 failed",
        "trial 0, epochs 2 to 3 of 9",
        "1 x trial: ValueError: # is too many [sic]",
        "trial 4, epoch 1 of 9: started",
    ):
        assert shown in text, shown


def test_board_of_a_study_without_trials(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study"))
    assert "no trial has succeeded yet" in drawn(StudyStatus.read(pen.storage))


def test_line_of_each_event(pen: StudyWriter) -> None:
    pen.at(35).lose(4, "executor 3 was lost").start(4, attempt=2).at(40).end(4, metrics={"loss": 1.0})
    pen.start(0, 3, 3, **TEST).end(0, 3, value=0.85, **TEST).close("trials")
    status = StudyStatus.read(pen.storage)
    events = status.record.drivers[0].events
    lines = [line_of(event, status.record) for event in events]
    words = [line[len("2026-11-21 13:43:49 ") :] for line in lines]
    assert words[0] == "driver 1 opened the study"
    assert words[1] == "slots for trials: 2"
    for expected in (
        "trial 0: accuracy 0.8 after 1 epoch, 1.0 s",
        "trial 2: stopped",
        "trial 3: failed: ValueError: 17 is too many [sic]",
        "trial 4: attempt 1 was lost: executor 3 was lost",
        "trial 4, epoch 1 of 9: started, attempt 2",
        "trial 4: accuracy not reported after 1 epoch, 1.0 s",
        "trial 0: accuracy 0.85 on test",
        "the driver ended: trials",
    ):
        assert expected in words
    assert len(words) == len(events)


def test_status_without_a_driver(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study")).die()
    pen.storage.delete("lease.json")
    assert Holder.read(pen.storage) is None
    status = StudyStatus.read(pen.storage)
    assert status.state is StudyState.DEAD
    assert status.to_json()["driver"] is None
