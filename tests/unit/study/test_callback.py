"""Callbacks: the order of their calls, and errors that they raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Assignment, Report, Trial, TrialState
from tests.support.study_bench import StudyRunner


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.states: dict[int, TrialState] = {}

    def on_study_start(self, study: RunningStudy) -> None:
        self.events.append(("study_start", len(study.trials)))

    def on_trial_start(self, study: RunningStudy, trial: Trial) -> None:
        assert study.trials[trial.trial_id].state is TrialState.RUNNING
        self.events.append(("trial_start", trial.trial_id))

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        self.events.append(("assigned", assignment.trial_id))

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        assert study.trials[trial.trial_id].metrics == report.metrics
        self.events.append(("report", trial.trial_id))

    def on_trial_end(self, study: RunningStudy, trial: Trial) -> None:
        self.events.append(("trial_end", trial.trial_id))
        self.states[trial.trial_id] = trial.state

    def on_study_end(self, study: RunningStudy) -> None:
        self.events.append(("study_end", len(study.trials)))
        self.stopped_by = study.stopped_by


@pytest.fixture
def bench(tmp_path: Path) -> StudyRunner:
    return StudyRunner(tmp_path / "study")


def test_callbacks_see_each_trial_start_report_and_end(bench: StudyRunner) -> None:
    recorder = Recorder()
    study = bench.study(callbacks=[recorder])
    study.run()
    assert recorder.events[0] == ("study_start", 0)
    assert recorder.events[-1] == ("study_end", 15)
    assert recorder.stopped_by == "trials"
    for trial_id, trial in study.trials.items():
        events = [event for event, of in recorder.events[1:-1] if of == trial_id]
        rungs = events.count("report")
        assert events == ["trial_start", *["assigned", "report"] * rungs, "trial_end"]
        assert trial.state is recorder.states[trial_id]
    assert {TrialState.STOPPED, TrialState.COMPLETED} == set(recorder.states.values())
    assert max(sum(e == ("report", i) for e in recorder.events) for i in study.trials) > 1  # one was promoted


def test_callbacks_do_not_see_events_of_earlier_drivers(bench: StudyRunner) -> None:
    first = Recorder()

    def stop_soon(study: RunningStudy, trial: Trial, report: Report) -> None:
        if len([e for e in first.events if e[0] == "report"]) == 6:
            raise KeyboardInterrupt

    stopper = Callback()
    stopper.on_report = stop_soon  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.study(callbacks=[first, stopper]).run()
    assert first.events[-1][0] == "study_end"
    assert first.stopped_by is None
    second = Recorder()
    bench.study(callbacks=[second]).run()
    assert second.events[0][1] > 0
    seen = [e for e in first.events + second.events if e[0] in ("trial_start", "report", "trial_end")]
    whole = Recorder()
    StudyRunner(Path(f"{bench.storage.url}-whole")).study(callbacks=[whole]).run()
    assert seen == [e for e in whole.events if e[0] in ("trial_start", "report", "trial_end")]


def test_callback_that_raises_is_logged_and_does_not_disturb_others(
    bench: StudyRunner, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Callback):
        def on_report(self, *_: Any) -> None:
            raise ZeroDivisionError("mine")

    recorder = Recorder()
    assert bench.study(callbacks=[Broken(), recorder], trials=3).run() == "trials"
    assert "Broken.on_report raised ZeroDivisionError: mine" in caplog.text
    assert sum(event == "report" for event, _ in recorder.events) >= 3


def test_callback_stops_the_study(bench: StudyRunner) -> None:
    class Enough(Callback):
        def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
            if len(study.trials) == 4:
                study.stop("enough")

    recorder = Recorder()
    study = bench.study(callbacks=[Enough(), recorder])
    assert study.run() == "enough"
    assert recorder.stopped_by == "enough"
    assert len(study.trials) == 4
