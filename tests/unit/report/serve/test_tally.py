"""`Tally`: the same numbers as the report and `spark-hpo status`, event by event."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.report.answer import answer_of
from spark_hpo.report.cost import cost_of
from spark_hpo.report.serve.tally import Tally
from spark_hpo.report.status import StudyStatus
from spark_hpo.study_dir.journal_logs import Tail
from spark_hpo.study_dir.lease import Holder
from spark_hpo.study_dir.storage import Storage
from tests.support.written_studies import StudyWriter

JOURNALS = sorted((Path(__file__).parents[3] / "data/journals").glob("*/*-*"))


def tally_of(storage: Storage) -> Tally:
    tally = Tally.begin(storage)
    tally.add(Tail(storage).read()[0])
    return tally


def compare(storage: Storage) -> Tally:
    tally, status = tally_of(storage), StudyStatus.read(storage)
    record, answer, cost = status.record, answer_of(status.record), cost_of(status.record)
    look = tally.look(Holder.read(storage))
    assert look.state is status.state
    assert look.trials == status.trials
    assert [(s.kind, s.limit) for s in look.budget] == [(s.kind, s.limit) for s in status.budget]
    assert [s.spent for s in look.budget] == pytest.approx([s.spent for s in status.budget], abs=0.5)
    assert look.slot_s == pytest.approx(cost.slot_s)
    assert look.money == (None if cost.money is None else pytest.approx(cost.money))
    assert tally.resource == cost.resource
    assert (tally.drivers, tally.lost) == (len(record.drivers), sum(a.is_lost for a in record.attempts))
    assert look.busy == len(status.running)
    assert look.seconds == pytest.approx(record.seconds, abs=0.5)
    found = tally.best and (tally.best.trial_id, tally.best.value, tally.best.resource)
    assert found == (answer.best and (answer.best.trial_id, answer.value, answer.best.resource))
    return tally


@pytest.mark.parametrize("folder", JOURNALS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_tally_agrees_with_the_status_of_older_studies(folder: Path) -> None:
    compare(Storage(folder))


def test_tally_agrees_with_the_status_of_a_study_with_everything(storage: Storage) -> None:
    tally = compare(storage)
    values = [step.value for step in tally.steps]
    assert values == sorted(values)
    assert values[-1] == (tally.best and tally.best.value)
    assert tally.lost


def test_tally_follows_a_study_with_folds_while_it_runs(tmp_path: Path) -> None:
    writer = StudyWriter(storage=Storage(tmp_path / "study"), search={"max_resource": 3, "resource": "folds"})
    tail, tally = Tail(writer.storage), Tally.begin(writer.storage)
    for trial, value in ((1, 0.9), (2, 0.7)):
        writer.at(10 * trial).start(trial, fold=1)
        assert compare(writer.storage).running
        writer.at(10 * trial + 4).journal.fold_reported(writer._report(trial, 1, value, fold=1))
        writer.end(trial, 1, value)
        tally.add(tail.read()[0])
        compare(writer.storage)
    assert tally.sequence == writer.journal.sequence
    assert tally.best is not None
    assert tally.best.trial_id == 1
