"""Requests to a driver, on a local file system and an object store."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.events import Event, EventKind, drivers_of
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.requests import ANSWERS, REQUESTS, Inbox, Reply, Request, Verb, checked, request
from spark_hpo.study_dir.steered import Course, Steered
from spark_hpo.study_dir.storage import Storage

LOSS = Objective(metric="loss", mode=Mode.MIN)


@pytest.fixture(params=["local", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    local = request.param == "local"
    made = Storage(tmp_path / "study" if local else f"memory://{tmp_path.name}/study")
    Definition.create({}).write(made)
    yield made
    if not local:
        made.remove()


def answering(storage: Storage, count: int) -> threading.Thread:
    """A driver that answers some requests, with the order in which it took them."""

    def run() -> None:
        inbox, taken = Inbox(storage), 0
        while taken < count:
            for asked in inbox.waiting():
                taken += 1
                inbox.answer(asked.id, Reply.DONE, f"{taken}: {asked.verb} {asked.arguments}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_request_returns_the_answer_of_the_driver_and_leaves_nothing(storage: Storage) -> None:
    with Journal.open(storage, LOSS):
        driver = answering(storage, 3)
        answers = [request(storage, Verb.DROP, {"trial": n}, timeout_s=20).message for n in range(3)]
        driver.join(20)
    assert answers == [f"{n + 1}: drop {{'trial': {n}}}" for n in range(3)]
    assert storage.names(REQUESTS) == storage.names(ANSWERS) == []


def test_request_without_a_driver_waits_for_the_next_one_or_is_refused(storage: Storage) -> None:
    queued = request(storage, Verb.EXTEND, {"budget": {"budget.trials": "+5"}})
    refused = request(storage, "pause")
    assert (queued.reply, refused.reply) == (Reply.QUEUED, Reply.REFUSED)
    assert "spark-hpo resume" in queued.message
    (waiting,) = Inbox(storage).waiting()
    assert (waiting.verb, waiting.arguments) == (Verb.EXTEND, {"budget": {"trials": "+5"}})
    assert "@" in waiting.by


def test_request_that_is_not_answered_in_time_is_kept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    Definition.create({}).write(storage)
    with Journal.open(storage, LOSS):
        answer = request(tmp_path, Verb.PAUSE, timeout_s=0.2)
    assert answer.reply is Reply.QUEUED
    assert len(Inbox(storage).waiting()) == 1


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("explode", {}, "is not a valid verb"),
        (Verb.PAUSE, {"trial": 1}, "does not take these arguments"),
        (Verb.DROP, {"trial": "1"}, "does not take these arguments"),
        (Verb.ADD, {"params": {}}, "needs the values of a trial"),
        (Verb.EXTEND, {"budget": {"budget.time": 5}}, "is not a limit of the budget"),
        (Verb.EXTEND, {"budget": {"trials": "+0"}}, "must be a whole number above 0"),
        (Verb.EXTEND, {"budget": {"resource": 1.5}}, "must be a whole number above 0"),
        (Verb.EXTEND, {"budget": {"seconds": "nan"}}, "must be a number above 0"),
        (Verb.NARROW, {"space": {"lr": 0.1}}, "must be a list"),
    ],
)
def test_request_that_makes_no_sense_is_not_sent(
    tmp_path: Path, verb: Any, arguments: dict[str, Any], message: str
) -> None:
    storage = Storage(tmp_path)
    Definition.create({}).write(storage)
    with pytest.raises(ConfigError, match=message):
        request(storage, verb, arguments)
    assert storage.names(REQUESTS) == []


def test_request_to_a_directory_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no study here"):
        request(tmp_path, Verb.PAUSE)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert checked(Verb.NARROW, {"space": {"lr": ("1e-4", 1, "sgd")}}) == {"space": {"lr": [1e-4, 1, "sgd"]}}


def test_inbox_ignores_foreign_files_and_answers_damaged_requests(storage: Storage) -> None:
    good, bad = Request.new(Verb.RESUME, {}), "00000000000000000001-0123abcd"
    record = {"verb": "resume", "arguments": {}, "by": "ann"}
    storage.write(f"{REQUESTS}/{good.id}.json", json.dumps(record).encode())
    storage.write(f"{REQUESTS}/{bad}.json", b"[" * 100_000)
    storage.write(f"{REQUESTS}/notes.txt", b"hello")
    inbox = Inbox(storage)
    assert [asked.id for asked in inbox.waiting()] == [good.id]
    assert json.loads(storage.read(f"{ANSWERS}/{bad}.json") or b"")["reply"] == "refused"
    inbox.forget_old_answers()
    assert storage.names(ANSWERS) == []


def steered(verb: Verb, time: float, **data: Any) -> Event:
    record = {"request": f"{time}", "verb": verb, "reply": "done", "message": "", "by": "ann", **data}
    return Event(int(time), time, EventKind.STEERED, record)


def opened(time: float) -> Event:
    return Event(int(time), time, EventKind.OPENED, {"after": {}})


def test_paused_time_is_not_work_also_of_a_driver_that_starts_paused() -> None:
    first = [opened(0), steered(Verb.PAUSE, 10), steered(Verb.RESUME, 30), steered(Verb.PAUSE, 40)]
    second = [opened(100), steered(Verb.DROP, 105), steered(Verb.STOP, 120), opened(130)]
    drivers = list(drivers_of([*first, *second], now=135))
    assert [driver.seconds for driver in drivers] == [20, 0, 5]


def test_steered_keeps_the_limit_until_the_configuration_changes() -> None:
    state = Steered.of(
        [steered(Verb.EXTEND, 1, effect={"budget": {"trials": [8, 12]}}), steered(Verb.PAUSE, 2)]
    )
    assert [state.limit("trials", n) for n in (8, 20, None)] == [12, 20, None]
    assert state.limit("seconds", 60.0) == 60.0
    assert state.course is Course.PAUSED
    refused = steered(Verb.RESUME, 3, reply="refused")
    state.apply(refused)
    assert state.course is Course.PAUSED
    assert state.answered["3"] == (Reply.REFUSED, "")
