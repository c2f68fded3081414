"""Finalists in the board's line, in JSON, in the lines of events and on the page."""

from __future__ import annotations

import pytest

from spark_hpo.report.confirmation import confirmation_in_words, confirmation_of
from spark_hpo.report.events import line_of
from spark_hpo.report.ladder import ladder_of
from spark_hpo.report.page import html_of
from spark_hpo.report.timeline import Use, timeline_of
from spark_hpo.study_dir.events import EventKind
from spark_hpo.trial import Report, TrialState
from tests.support.written_studies import StudyWriter

VALUES = {(0, 1): 0.80, (1, 1): 0.88, (0, 2): 0.82, (1, 2): 0.90}


def confirmed(count: int = len(VALUES)) -> StudyWriter:
    """Two trials, of which trial 0 was lucky in the search."""
    writer = StudyWriter().slots(1)
    for trial, value in ((0, 0.95), (1, 0.93)):
        writer.start(trial, 0, 9).end(trial, 9, value).settle(TrialState.COMPLETED, trial)
    writer.journal.confirming({0: 9, 1: 9}, 2)
    for (trial, seed), value in list(VALUES.items())[:count]:
        writer.start(trial, 0, 9, repeat=seed).at(10 * (seed + 2 * trial))
        writer.journal.repeated(
            Report(
                trial_id=trial,
                attempt=1,
                rung=0,
                resource=9,
                repeat=seed,
                metrics={"accuracy": value},
                seconds=10.0,
            )
        )
    return writer


def test_winner_is_the_finalist_with_the_best_mean() -> None:
    record = confirmed().close().record()
    first, second = (each.to_json() for each in confirmation_of(record))
    assert (first["trial"], first["values"]) == (1, [0.88, 0.90])
    assert (first["mean"], first["spread"]) == (pytest.approx(0.89), pytest.approx(0.0141, abs=1e-4))
    assert first["chance"] > 0.9
    assert second["chance"] == pytest.approx(1 - first["chance"])
    assert record.ranking[0].trial_id == 1
    words = confirmation_in_words(record)
    assert words is not None
    assert words.startswith("trial 1 wins with a mean of 0.89 ± 0.014 over 2 other seeds")
    page = html_of(record)
    assert words in page
    assert "chance to be the best" in page


def test_confirmation_in_progress_does_not_change_the_best() -> None:
    record = confirmed(3).die().record(is_running=True)
    assert confirmation_in_words(record) == (
        "training 2 finalists with 2 other seeds each; 1 training is left"
    )
    assert record.ranking[0].trial_id == 0
    events = [event for driver in record.drivers for event in driver.events]
    lines = [line_of(event, record) for event in events]
    assert any(line.endswith("finalists: trials 0, 1, with 2 other seeds each") for line in lines)
    assert any("trial 1, seed 1: accuracy 0.88 after 9 epochs" in line for line in lines)


def test_repeats_are_busy_slots_and_not_trials_of_a_rung() -> None:
    record = confirmed().close().record()
    assert sum(rung.trials for rung in ladder_of(record)) == 2
    assert timeline_of(record).totals[Use.BUSY] > 0
    assert not any(event.kind is EventKind.LOST for d in record.drivers for event in d.events)
    assert len(record.trials[0].curve) == 1, "the trial itself has not changed"
