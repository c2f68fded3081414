"""Whose weights a child of population based training took: in the log, the export and the report."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from spark_hpo.report.events import line_of
from spark_hpo.report.leaderboard import leaderboard
from spark_hpo.report.lineage import lineage_in_words, lineage_of
from spark_hpo.report.page import html_of
from spark_hpo.search.registry import build_explorer, build_scheduler
from spark_hpo.search.schedulers.staged import StagedScheduler
from spark_hpo.study_dir import layout
from spark_hpo.study_dir.events import EventKind
from tests.support.study_bench import SPACE, StudyRunner
from tests.support.written_studies import StudyWriter


def test_best_trial_names_its_ancestors(study: StudyWriter) -> None:
    record = study.record()
    assert lineage_of(record, record.trials[2]) == [(1, 6), (0, 3)]
    words = (
        "Trial 2 began with the weights of trial 1 after 6 epochs, which began with those of trial 0 after "
        "3 epochs."
    )
    assert lineage_in_words(record, record.trials[2]) == words
    assert lineage_in_words(record, record.trials[0]) is None
    assert words in html_of(record)
    assert "2 (from 1)" in html_of(record)


@pytest.fixture
def study() -> StudyWriter:
    writer = StudyWriter()
    for trial, (begin, end) in enumerate([(0, 3), (3, 6), (6, 9)]):
        parent = writer.journal.trials[trial - 1].checkpoint if trial else None
        writer.start(trial, begin, end, checkpoint=parent)
        writer.end(trial, end, 0.7 + trial / 10, checkpoint=layout.checkpoint(trial, end, 1))
    return writer.close()


def test_export_has_the_parent_of_each_child(study: StudyWriter) -> None:
    table = leaderboard(study.record().trials.values(), study.objective).set_index("trial")["parent"]
    assert table.isna()[0]
    assert (table[1], table[2]) == (0, 1)


def test_log_and_events_name_the_parent(
    study: StudyWriter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = study.record()
    events = [e for driver in record.drivers for e in driver.events if e.kind is EventKind.ASSIGNED]
    assert line_of(events[1], record).endswith("started from the weights of trial 0")
    assert line_of(events[0], record).endswith("started")
    caplog.set_level(logging.INFO, "spark_hpo")
    bench = StudyRunner(tmp_path)
    bench.study(
        scheduler="population_based",
        scheduler_settings={"population_size": 4},
        explorer=build_explorer("perturbation", SPACE, 0),
        trials=8,
    ).run()
    assert bench.journal is not None
    children = {t.trial_id: t.parent for t in bench.journal.trials.values() if t.parent is not None}
    assert children
    for child, parent in children.items():
        lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"trial {child}, rung")]
        assert lines[0].endswith(f", from the weights of trial {parent}")
        assert not any("from the weights" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("trials", "allowed"),
    [(12, "at most 2 exploits"), (11, "at most 1 exploit,"), (10, "no exploit"), (20, None)],
)
def test_population_says_when_its_trials_allow_few_exploits(trials: int, allowed: str | None) -> None:
    warning = StagedScheduler(
        lambda limit: build_scheduler("population_based", max_resource=81, max_trials=limit), trials
    ).warning
    assert (warning is None) == (allowed is None)
    assert warning is None or allowed in warning  # type: ignore[operator]
