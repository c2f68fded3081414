"""Requests to a study without a driver: what the directory tells is refused at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

import pytest

from spark_hpo.report.steering import ask
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.driver_settings import Settings
from spark_hpo.study_dir.requests import REQUESTS, Reply, Verb
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState


@pytest.fixture(scope="module")
def ended(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    folder = tmp_path_factory.mktemp("ended") / "study"
    shutil.copytree(storage.url, folder)
    copy = Storage(folder)
    Settings(config={"budget": {"trials": 40}}, place="study.yaml", folder="/").write(copy)
    return copy


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        (Verb.DROP, {"trial": 400}, "there is no trial 400"),
        (Verb.EXTEND, {"budget": {"budget.trials": 40}}, "budget.trials is 40 now, and can only be raised"),
        (Verb.EXTEND, {"budget": {"budget.seconds": "+60"}}, "budget.seconds has no limit"),
        (Verb.NARROW, {"space": {"learning_rat": [0.1, 0.2]}}, "is not a parameter of the space"),
        (Verb.ADD, {"params": {"learning_rate": -1.0}}, "learning_rate must be a number"),
        (Verb.ADD, {"params": {}, "like": 400}, "there is no trial 400"),
        (Verb.ADD, {"params": {}, "like": 3}, "all 40 trials of the budget are taken"),
    ],
)
def test_request_that_every_driver_would_refuse_is_refused_at_once(
    ended: Storage, verb: Verb, arguments: Mapping[str, Any], message: str
) -> None:
    answer = ask(ended, verb, arguments)
    assert answer.reply is Reply.REFUSED
    assert message in answer.message
    assert not ended.names(REQUESTS)


def test_trial_that_is_out_cannot_be_dropped(ended: Storage) -> None:
    trials = StudyRecord.read(ended).trials
    out = next(i for i, trial in trials.items() if trial.state is TrialState.STOPPED)
    assert f"trial {out} is stopped already" in ask(ended, Verb.DROP, {"trial": out}).message


def test_request_that_the_next_driver_can_do_waits_for_it(ended: Storage) -> None:
    answers = [
        ask(ended, Verb.EXTEND, {"budget": {"budget.trials": "+5"}}),
        ask(ended, Verb.ADD, {"params": {}, "like": 3}),  # there is room after the request before
    ]
    assert {answer.reply for answer in answers} == {Reply.QUEUED}
    assert len(ended.names(REQUESTS)) == 2
