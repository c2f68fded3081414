"""The reserve in the board, in JSON, in the lines of events and on the page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from spark_hpo.report.board import board
from spark_hpo.report.events import line_of
from spark_hpo.report.page import html_of
from spark_hpo.report.reserve import reserve_in_words, reserve_of
from spark_hpo.report.status import StudyStatus
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Params
from tests.support.simulated import Curve
from tests.support.virtual_studies import Killed, write_study


class Fading:
    """The first trial is the best after one epoch, and the worst from then on."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        epochs = np.arange(1, 28)
        accuracy = 0.5 + 0.01 * np.sqrt(epochs) + 0.0001 * trial_id
        if trial_id == 0:
            accuracy = np.where(epochs == 1, 0.9, 0.4 + 0.01 * epochs)
        return Curve(metrics={"accuracy": accuracy}, elapsed_s=2.0 * epochs)


def shown(storage: Storage) -> tuple[StudyStatus, str]:
    status, console = StudyStatus.read(storage), Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(board(status))
    return status, captured.get()


def test_reserve_is_planned_counted_and_shown(tmp_path: Path) -> None:
    search = {"scheduler": "asha", "max_resource": 27}
    storage = write_study(
        tmp_path, trials=9, slots=1, curves=Fading(), search=search, finish=1, stop_after=(9, Killed)
    )
    running = StudyRecord.read(storage, is_running=True)
    assert reserve_of(running).to_json()["planned"] == {"trials": [0], "resource": 24}
    assert reserve_in_words(running, reserve_of(running)) == "24 epochs, to train trial 0 to the end"
    write_study(storage, trials=9, slots=1, curves=Fading(), search=search, finish=1)
    status, text = shown(storage)
    used = status.to_json()["reserve"]["used"]
    assert (used["trials"], used["resource"], used["seconds"]) == ([0], 24, 48.0)
    assert "trained trial 0, the best so far, to the end: 24 epochs, 48 s" in text
    assert status.answer.best is not None
    assert (status.answer.best.trial_id, status.answer.best.resource) == (0, 1)
    (note,) = [warning for warning in status.answer.warnings if "checkpoint" in warning]
    assert note.endswith("after 27 epochs its accuracy is 0.67.")
    assert "trained trial 0, the best so far, to the end: 24 epochs, 48 s" in html_of(status.record)
    events = status.record.drivers[-1].events
    line = next(line_of(e, status.record) for e in events if e.kind is EventKind.RESERVE)
    assert line.endswith("the search ended (trials); reserve: 24 epochs for trial 0, to the end")
