import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from spark_hpo.errors import DataError, JournalError, LeaseError, StudyInterrupted
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.events import Ending, EventKind, Outcome, ending_of
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Assignment, Failure, FailureKind, Measurement, Report, Split, TrialState

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)


def assignment(trial_id: int, *, rung: int = 0, start: int = 0, stop: int = 1) -> Assignment:
    return Assignment(
        trial_id=trial_id,
        attempt=1,
        params={"lr": 0.1, "layers": [{"width": 3}]},
        bracket=0,
        rung=rung,
        resource_from=start,
        resource_to=stop,
        checkpoint=None,
        seed=5,
    )


def report(trial_id: int, accuracy: float, *, resource: int = 1, rung: int = 0) -> Report:
    metrics = {"accuracy": accuracy}
    measured = Measurement(resource=resource, metrics=metrics, time=1.5, seconds=0.5, rows=10)
    return Report(
        trial_id=trial_id,
        attempt=1,
        rung=rung,
        resource=resource,
        metrics=metrics,
        curve=(measured,),
        checkpoint=f"checkpoints/{trial_id}.pt",
        seconds=2.0,
    )


def failed(trial_id: int) -> Report:
    failure = Failure(kind=FailureKind.TRIAL, message="it broke", traceback="Traceback ...")
    return Report(trial_id=trial_id, attempt=1, rung=0, resource=0, failure=failure)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def test_journal_reads_back_what_was_written(storage: Storage) -> None:
    first = Journal.open(storage, ACCURACY)
    first.assigned(assignment(0))
    first.reported(report(0, 0.75))
    first.settled([0], TrialState.STOPPED)
    first.assigned(assignment(1))
    first.reported(failed(1))
    first.assigned(assignment(2))
    first.close()

    again = Journal.open(storage, ACCURACY)
    assert dict(again.trials) == dict(first.trials)
    assert again.trials[0].state is TrialState.STOPPED
    assert again.trials[0].loss == -0.75
    assert again.trials[0].curve[0].metrics == {"accuracy": 0.75}
    assert again.trials[1].state is TrialState.FAILED
    assert again.trials[1].loss == math.inf
    assert again.trials[1].failure is not None
    assert again.trials[1].failure.traceback == "Traceback ..."
    assert again.trials[2].state is TrialState.RUNNING
    assert [e.kind for e in again.past][:3] == [EventKind.OPENED, EventKind.ASSIGNED, EventKind.REPORTED]
    assert again.past[1].assignment == assignment(0)
    assert again.past[2].report == report(0, 0.75)


@pytest.mark.medium
def test_journal_cut_at_any_byte_can_be_read_and_resumed(tmp_path: Path) -> None:
    whole = Journal.open(Storage(tmp_path / "whole"), ACCURACY)
    for trial_id in range(3):
        whole.assigned(assignment(trial_id))
        whole.reported(report(trial_id, 0.5))
    whole.close()
    data = (tmp_path / "whole/journal/000001.jsonl").read_bytes()
    for size in range(0, len(data), 7):
        folder = tmp_path / f"cut-{size}"
        (folder / "journal").mkdir(parents=True)
        (folder / "journal/000001.jsonl").write_bytes(data[:size])
        journal = Journal.open(Storage(folder), ACCURACY)
        complete = data[:size].count(b"\n")
        assert len(journal.past) == complete
        journal.assigned(assignment(7))
        journal.close()
        assert 7 in Journal(Storage(folder), ACCURACY).trials


def test_journal_ignores_events_of_a_driver_that_was_replaced(storage: Storage) -> None:
    first = Journal.open(storage, ACCURACY)
    first.assigned(assignment(0))
    old_log = storage.log("journal/000001")
    first.close()
    second = Journal.open(storage, ACCURACY)
    late = {"sequence": 3, "time": 9.0, "event": "reported", **report(0, 0.99).to_json()}
    old_log.append(json.dumps(late))
    second.reported(report(0, 0.5))
    second.close()
    third = Journal.open(storage, ACCURACY)
    assert third.trials[0].loss == -0.5
    third.close()
    # Nor does a later driver count the late record, which it reads from the beginning.
    assert Journal(storage, ACCURACY).trials[0].loss == -0.5


def test_journal_ignores_segments_of_a_driver_that_was_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("spark_hpo.study_dir.storage._LINES_PER_SEGMENT", 3)
    storage = Storage(f"memory://{tmp_path}")
    first = Journal.open(storage, ACCURACY)
    first.assigned(assignment(0))
    old_log = first._log
    assert first._lease is not None
    assert old_log is not None
    first._lease.release()
    second = Journal.open(storage, ACCURACY)
    late = {"sequence": 3, "time": 9.0, "event": "reported", **report(0, 0.99).to_json()}
    old_log.append(json.dumps(late))
    assert storage.names("journal/000001") == ["000000001-000000003.jsonl"]
    assert Journal(storage, ACCURACY).trials[0].state is TrialState.RUNNING
    second.reported(report(0, 0.5))
    assert Journal(storage, ACCURACY).trials[0].loss == -0.5


def test_journal_refuses_to_append_after_its_lease_is_lost(storage: Storage) -> None:
    first = Journal.open(storage, ACCURACY)
    assert first._lease is not None
    first._lease.release()
    Journal.open(storage, ACCURACY)
    with pytest.raises(LeaseError, match="lost the study"):
        first.assigned(assignment(0))
    assert 0 not in first.trials


def test_journal_names_the_damaged_line(storage: Storage, tmp_path: Path) -> None:
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.close()
    path = tmp_path / "journal/000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"garbage\n" + b"".join(lines[1:]))
    with pytest.raises(JournalError, match=r"000001.jsonl: line 1 is damaged"):
        Journal(storage, ACCURACY)


@pytest.mark.parametrize("trial_id", ["../../up", -1, 1.5, None, True, [1]])
def test_journal_refuses_an_invalid_trial_id(storage: Storage, tmp_path: Path, trial_id: object) -> None:
    """It becomes a part of the paths of checkpoints, and another user may have written the journal."""
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.close()
    path = tmp_path / "journal/000001.jsonl"
    opened, assigned = path.read_text().splitlines()
    wrong = json.dumps({**json.loads(assigned), "trial_id": trial_id})
    path.write_text("\n".join([opened, wrong, assigned, ""]))
    with pytest.raises(JournalError, match=r"line 2 is damaged \(trial_id is "):
        Journal(storage, ACCURACY)


def test_journal_of_a_newer_version_is_refused(storage: Storage, tmp_path: Path) -> None:
    Journal.open(storage, ACCURACY).close()
    path = tmp_path / "journal/000001.jsonl"
    path.write_text(path.read_text().replace('"version":1', '"version":99'))
    with pytest.raises(JournalError, match="newer spark_hpo"):
        Journal(storage, ACCURACY)


def test_journal_keeps_test_metrics_apart_from_the_trial(storage: Storage) -> None:
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.reported(report(0, 0.5))
    journal.reported(replace(report(0, 0.9), split=Split.TEST))
    assert journal.trials[0].loss == -0.5
    assert journal.tests[0].metrics == {"accuracy": 0.9}


def test_changed_since_returns_trials_of_later_events(storage: Storage) -> None:
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.assigned(assignment(1))
    seen = journal.sequence
    journal.reported(report(1, 0.5))
    assert [trial.trial_id for trial in journal.changed_since(seen)] == [1]


def test_changed_since_and_states_agree_with_trials(storage: Storage) -> None:
    journal = Journal.open(storage, ACCURACY)
    for trial_id in range(6):
        journal.assigned(assignment(trial_id))
    journal.reported(report(4, 0.5))
    journal.reported(failed(1))
    journal.settled([4, 0], TrialState.STOPPED)
    for seen in range(journal.sequence + 1):
        later = [trial for trial in journal.trials.values() if trial.changed_at > seen]
        assert list(journal.changed_since(seen)) == later
    journal.close()
    for one in (journal, Journal(storage, ACCURACY)):
        counted = Counter(trial.state for trial in one.trials.values())
        assert {state: count for state, count in one.states.items() if count} == counted


def test_settled_writes_nothing_for_settled_trials(storage: Storage) -> None:
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.reported(report(0, 0.5))
    journal.settled([0], TrialState.STOPPED)
    before = journal.sequence
    journal.settled([0], TrialState.STOPPED)
    assert journal.sequence == before


def test_journal_on_an_object_store_resumes() -> None:
    storage = Storage("memory://journal-on-objects")
    first = Journal.open(storage, ACCURACY)
    first.assigned(assignment(0))
    first.reported(report(0, 0.5))
    first.close()
    assert dict(Journal.open(storage, ACCURACY).trials) == dict(first.trials)


def test_journal_ignores_temporary_files_of_killed_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a mount that cannot append, a log is a folder of objects."""
    monkeypatch.setattr("spark_hpo.study_dir.storage._NO_APPEND", (str(tmp_path),))
    storage = Storage(tmp_path)
    journal = Journal.open(storage, ACCURACY)
    journal.assigned(assignment(0))
    journal.close()
    (tmp_path / "journal/000001/.tmp-abc").write_bytes(b'{"seq')
    (tmp_path / "journal/.nfs0001").write_bytes(b"")
    assert 0 in Journal(storage, ACCURACY).trials


def test_journal_records_facts_about_drivers_and_slots(storage: Storage) -> None:
    clock = iter((10.0, 20.0, 30.0))
    journal = Journal.open(storage, ACCURACY, driver={"git_commit": "abc"}, clock=lambda: next(clock))
    journal.slots(4)
    journal.closed("trials")
    journal.close()
    opened, slots, _ = Journal(storage, ACCURACY).past
    assert opened.data["driver"] == {"git_commit": "abc"}
    assert (slots.kind, slots.data["slots"], slots.time) == (EventKind.SLOTS, 4, 20.0)
    Journal.open(storage, ACCURACY).close()
    assert "driver" not in Journal(storage, ACCURACY).past[-1].data


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), Ending(outcome=Outcome.INTERRUPTED, reason="interrupted")),
        (StudyInterrupted("stopped"), Ending(outcome=Outcome.INTERRUPTED, reason="interrupted")),
        (DataError("no rows"), Ending(outcome=Outcome.FAILED, reason="DataError", message="no rows")),
        (
            ValueError("s3://me:secret@bucket"),
            Ending(outcome=Outcome.FAILED, reason="ValueError", message="s3://***@bucket"),
        ),
    ],
)
def test_journal_records_what_ended_its_driver(
    storage: Storage, error: BaseException, expected: Ending
) -> None:
    with pytest.raises(type(error)), Journal.open(storage, ACCURACY):
        raise error
    last = Journal(storage, ACCURACY).past[-1]
    assert (last.kind, last.ending) == (EventKind.CLOSED, expected)
    Journal.open(storage, ACCURACY).close()  # the lease has been released


def test_journal_keeps_the_first_ending_of_a_driver(storage: Storage) -> None:
    with Journal.open(storage, ACCURACY) as journal:
        journal.closed("trials")
        journal.failed(DataError("after the search"))
    assert ending_of(Journal(storage, ACCURACY).past) == Ending(outcome=Outcome.FINISHED, reason="trials")


def test_journal_without_its_lease_records_no_ending_and_does_not_raise(storage: Storage) -> None:
    with Journal.open(storage, ACCURACY) as journal:
        storage.delete("lease.json")
        journal.failed(DataError("no rows"))
    assert [event.kind for event in Journal(storage, ACCURACY).past] == [EventKind.OPENED]


def test_ending_of_a_journal_without_outcomes_is_read(storage: Storage) -> None:
    for reason, outcome in (("interrupted", Outcome.INTERRUPTED), ("seconds", Outcome.FINISHED)):
        assert Ending.from_json({"reason": reason}) == Ending(outcome=outcome, reason=reason)


@pytest.mark.parametrize(
    ("drivers", "expected"),
    [
        (["finished"], Outcome.FINISHED),
        (["killed"], None),
        (["idle interrupted"], Outcome.INTERRUPTED),
        (["idle failed"], Outcome.FAILED),
        (["finished", "idle failed"], Outcome.FINISHED),
        (["finished", "idle interrupted"], Outcome.FINISHED),
        (["finished", "idle killed"], Outcome.FINISHED),
        (["finished", "failed"], Outcome.FAILED),
        (["interrupted", "idle failed"], Outcome.INTERRUPTED),
        (["killed", "idle interrupted"], Outcome.INTERRUPTED),
        (["failed", "idle interrupted"], Outcome.INTERRUPTED),
        (["interrupted", "idle finished"], Outcome.FINISHED),
    ],
)
def test_ending_of_a_study_ignores_drivers_that_changed_nothing(
    storage: Storage, drivers: list[str], expected: Outcome | None
) -> None:
    for driver in drivers:
        journal = Journal.open(storage, ACCURACY)
        if "idle" not in driver:
            journal.slots(1)
        match driver.split()[-1]:
            case "finished":
                journal.closed("trials")
            case "interrupted":
                journal.failed(KeyboardInterrupt())
            case "failed":
                journal.failed(DataError("no rows"))
        journal.close()
    ending = ending_of(Journal(storage, ACCURACY).past)
    assert (ending and ending.outcome) == expected
