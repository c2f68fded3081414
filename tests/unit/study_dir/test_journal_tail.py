"""`Tail`: what a reader sees of a journal that drivers write meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_hpo.errors import JournalError
from spark_hpo.study_dir import storage as storage_module
from spark_hpo.study_dir.events import Event
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.journal_logs import Tail
from spark_hpo.study_dir.storage import Storage
from tests.support.written_studies import StudyWriter


@pytest.fixture(params=["local", "objects"])
def writer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyWriter:
    monkeypatch.setattr(storage_module, "_LINES_PER_SEGMENT", 4)
    url = str(tmp_path / "study") if request.param == "local" else f"memory://{tmp_path}"
    return StudyWriter(storage=Storage(url))


def numbers(events: list[Event]) -> list[int]:
    return [event.sequence for event in events]


def whole(writer: StudyWriter) -> list[int]:
    return numbers(list(Journal(Storage(writer.storage.url), writer.objective).past))


def test_tail_returns_each_event_once_while_the_log_grows_and_is_sealed(writer: StudyWriter) -> None:
    tail, seen = Tail(Storage(writer.storage.url)), []
    for trial in range(7):
        writer.at(trial).start(trial).end(trial)
        events, is_new = tail.read()
        assert not (is_new and seen)
        seen += numbers(events)
        assert seen == whole(writer), f"after trial {trial}"
        assert tail.read() == ([], False)


def test_tail_follows_the_next_driver(writer: StudyWriter) -> None:
    tail = Tail(Storage(writer.storage.url))
    writer.start(1)
    seen = numbers(tail.read()[0])
    writer.end(1)
    writer.journal.close()
    writer.open().start(2)
    events, is_new = tail.read()
    assert not is_new
    assert seen + numbers(events) == whole(writer)


def test_tail_starts_again_when_a_driver_has_not_seen_what_it_returned(tmp_path: Path) -> None:
    writer = StudyWriter(storage=Storage(tmp_path / "study")).start(1).end(1)
    tail = Tail(writer.storage)
    assert len(tail.read()[0]) == 3
    log = tmp_path / "study/journal/000001.jsonl"
    late = log.read_bytes().splitlines(keepends=True)[-1]
    writer.journal.close()
    log.write_bytes(log.read_bytes().removesuffix(late))
    writer.open()
    with log.open("ab") as file:
        file.write(late)  # of a driver that was suspended meanwhile
    events, is_new = tail.read()
    assert is_new
    assert numbers(events) == whole(writer)
    assert tail.read() == ([], False)


def test_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    writer = StudyWriter(storage=Storage(tmp_path / "study")).start(1)
    tail = Tail(writer.storage)
    tail.read()
    writer.end(1)
    log = tmp_path / "study/journal/000001.jsonl"
    data = log.read_bytes()
    log.write_bytes(data[:-20])
    assert tail.read() == ([], False)
    log.write_bytes(data)
    assert len(tail.read()[0]) == 1


def test_tail_refuses_a_damaged_line(tmp_path: Path) -> None:
    writer = StudyWriter(storage=Storage(tmp_path / "study")).start(1)
    tail = Tail(writer.storage)
    tail.read()
    with (tmp_path / "study/journal/000001.jsonl").open("ab") as file:
        file.write(b"{\n")
    assert tail.read() == ([], False), "the last line may be torn"
    writer.end(1)
    with pytest.raises(JournalError):
        tail.read()
