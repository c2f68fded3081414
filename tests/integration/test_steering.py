"""Studies that other processes steer, and drivers that are killed in the middle of a request."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from spark_hpo import cli, load_study, tune
from spark_hpo.errors import ConfigError
from spark_hpo.objective import Mode, Objective
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.study.callback import Callback
from spark_hpo.study_dir import events
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.requests import ANSWERS, REQUESTS, Reply
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState
from tests.support.command_line import Done, run_in_process
from tests.support.documents import blocks
from tests.support.mlflow_database import write_database
from tests.support.steered_study import STUDY, TASK
from tests.support.workspace import LIMIT_S, wait_for

# Runs the study file with a driver that kills itself at a step of a request.
KILLED = """
import os, signal, sys
from spark_hpo import cli
from spark_hpo.study_dir import requests
from spark_hpo.study_dir.journal import Journal

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "taken":
    Journal.steered = kill
else:
    requests.Inbox.answer = kill
cli.main(["run", "study.yaml"])
"""


class Steered:
    """A folder with a study file, its driver in a process of its own, and the commands that steer it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, Storage(folder / "study")
        (folder / "task.py").write_text(TASK)
        (folder / "study.yaml").write_text(STUDY)
        (folder / "killed.py").write_text(KILLED)
        write_database(folder)
        self.driver: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = words or ("-m", "spark_hpo", "run", "study.yaml")
        with (self.folder / "log.txt").open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )
        return self.driver

    def __call__(self, *words: str, code: int = 0) -> Done:
        done = run_in_process(cli.main, words, self.folder)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.log}"
        return done

    def drop_latest(self, drop: Callable[[str], object]) -> int:
        """Drop the trial that has started last. It may end before the request is taken, so try some."""
        for _ in range(5):
            trial = StudyStatus.read(self.storage).running[-1].assignment.trial_id
            with contextlib.suppress(AssertionError, ConfigError):
                drop(str(trial))
                return trial
        raise AssertionError(f"no trial could be dropped: {self.log}")

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()[-3000:]

    @property
    def journal(self) -> Journal:
        return Journal(self.storage, Objective(metric="loss", mode=Mode.MIN))

    @property
    def steered(self) -> list[events.Event]:
        return [event for event in self.journal.past if event.kind is EventKind.STEERED]

    def wait(self, condition: Callable[[Journal], object], what: str) -> None:
        def holds() -> bool:
            assert self.driver is not None
            assert self.driver.poll() is None, self.log
            return bool(condition(self.journal))

        wait_for(holds, what)

    def wait_for_reports(self, count: int) -> None:
        def reported(journal: Journal) -> bool:
            return len([e for e in journal.past if e.kind is EventKind.REPORTED]) >= count

        self.wait(reported, f"{count} reports")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steered]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steered = Steered(tmp_path)
    yield steered
    if steered.driver is not None and steered.driver.poll() is None:
        steered.driver.kill()
        steered.driver.wait()


@pytest.mark.slow
def test_second_process_steers_a_running_study(study: Steered, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = study.start()
    wait_for(lambda: bool(study.storage.names("journal")), "the driver")
    study.wait_for_reports(2)

    # Pause: running trials save and are put back, and nothing starts until somebody resumes.
    assert "paused; trials that save their state, within 10 s: " in study("pause", "study").stdout
    study.wait(
        lambda j: (
            j.states[TrialState.RUNNING] == len(_lost(j)) > 0 == len(StudyStatus.read(study.storage).running)
        ),
        "saved trials",
    )
    status = StudyStatus.read(study.storage)
    assert (status.state, status.running) == (StudyState.PAUSED, [])
    assert "somebody has paused the study" in study("status", "study").stdout
    count = len(study.journal.past)
    assert study("pause", "study").stdout == "the study is paused already\n"
    assert [event.kind for event in study.journal.past[count:]] == [EventKind.STEERED]
    assert study("resume", "study").stdout == "the study was paused and resumes\n"
    saved = {event.report.trial_id: event.report for event in _lost(study.journal)}
    study.wait(lambda j: {e.data.get("trial_id") for e in j.past[count:]} >= saved.keys(), "their retries")

    # Add, narrow, drop, extend; and what is not possible.
    assert "gets {'x': 0.25, 'y': " in study("add", "study", "x=0.25").stdout
    study("narrow", "study", "x=[2.0,3.0]", "y=[0.4,5e-1]")
    first = int(study.steered[-1].data["message"].split("trial ")[1].split()[0])
    running = study.drop_latest(lambda trial: study("drop", "study", trial))
    answer = json.loads(study("extend", "study", "budget.trials=+5", "--json").stdout)
    assert answer == {
        "verb": "extend",
        "reply": "done",
        "message": "budget.trials is 305 instead of 300",
    }
    refused = study("add", "study", "x=0.5", code=2).stderr
    assert "add: refused: x must be a number from 2 to 3 (got 0.5)" in refused
    assert (
        "budget.trials is 305 now, and can only be raised"
        in study("extend", "study", "budget.trials=9", code=2).stderr
    )
    assert "is not a limit of the budget" in study("extend", "study", "budget.time=+9", code=2).stderr
    with pytest.raises(ConfigError, match=f"trial {running} is dropped already"):
        load_study(study.folder / "study").drop(running)
    study.wait(lambda j: len(j.trials) > first + 2, "new trials")
    trials = study.journal.trials
    assert [trial.params["x"] for trial in trials.values()].count(0.25) == 1
    new = [trials[i].params for i in trials if i >= first and trials[i].params["x"] != 0.25]
    assert new
    assert all(2 <= params["x"] <= 3 and 0.4 <= params["y"] <= 0.5 for params in new)
    assert trials[running].state is TrialState.STOPPED

    # Two people at once: every request is taken once, in order.
    people = [Thread(target=_extend_often, args=(study.folder / "study",)) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join(LIMIT_S)
    limits = [
        e.data["effect"]["budget"]["trials"][1] for e in study.steered if "budget" in e.data.get("effect", {})
    ]
    assert limits == list(range(305, 312))
    ids = [event.data["request"] for event in study.steered if event.data["reply"] == Reply.DONE]
    assert len(set(ids)) == len(ids)
    assert study.storage.names(REQUESTS) == study.storage.names(ANSWERS) == []
    waited = [event.time - int(event.data["request"][:20]) / 1e9 for event in study.steered]
    print(
        f"{len(waited)} requests, taken after {max(waited):.2f} s at most and "
        f"{sorted(waited)[len(waited) // 2]:.2f} s in the median"
    )
    assert max(waited) < 4  # 2 s on an idle machine

    # What docs/steering.md shows, which ends with a stop: the best model is evaluated.
    (program,) = [block.text for block in blocks("docs/steering.md", "python")]
    for text, here in {"studies/adult": "study", "learning_rate": "x", "[1e-4": "[-1", "17": "0"}.items():
        program = program.replace(text, here)
    study("narrow", "study", "x=[-1,1]", "y=[0,1]")
    monkeypatch.chdir(study.folder)
    names: dict[str, Any] = {}
    before, after = program.replace("0.003", "0.5").split("study.drop(12)\n")
    exec(before, names)
    study.drop_latest(lambda trial: names["study"].drop(int(trial)))
    exec(after, names)
    assert driver.wait(LIMIT_S) == 0, study.log
    assert study.journal.past[-1].data["reason"] == "request"
    assert study.journal.tests
    assert "the search has ended (request)" in study("status", "study").stdout
    assert "there is nothing to pause" in study("pause", "study", code=2).stderr
    assert "the next one takes the request" in study("extend", "study", "budget.trials=+1").stdout


@pytest.mark.slow
@pytest.mark.parametrize("step", ["taken", "recorded"])
def test_request_survives_a_driver_that_is_killed_in_its_middle(study: Steered, step: str) -> None:
    driver = study.start("killed.py", step)
    wait_for(lambda: bool(study.storage.names("journal")), "the driver")
    study.wait_for_reports(1)
    said = study("extend", "study", "budget.trials=+4", "--limit", "20").stdout
    assert driver.wait(LIMIT_S) == -signal.SIGKILL
    assert "the next one takes the request" in said
    assert len(study.storage.names(REQUESTS)) == 1
    assert len(study.steered) == (step == "recorded")
    study.start()
    wait_for(lambda: not study.storage.names(REQUESTS), "the answer of the next driver")
    (event,) = study.steered
    assert event.data["message"] == "budget.trials is 304 instead of 300"
    assert "305" not in study("extend", "study", "budget.trials=+2").stdout
    assert study.steered[-1].data["message"] == "budget.trials is 306 instead of 304"


@pytest.mark.slow
def test_paused_study_leaves_its_slots_to_another_study_of_the_process(tmp_path: Path) -> None:
    begun, paused = Event(), Event()
    most = {"before": 0, "after": 0}

    class Watch(Callback):
        def on_assigned(self, study: Any, assignment: Any) -> None:
            key = "after" if paused.is_set() else "before"
            most[key] = max(most[key], len(study.progress.running))
            begun.set()

    def run(name: str, trials: int, *callbacks: Callback) -> None:
        tune(
            _slow,
            {"x": {"type": "uniform", "low": 0.0, "high": 1.0}},
            metric="loss",
            mode="min",
            name=name,
            trials=trials,
            max_resource=1,
            backend="local",
            search={"sampler": "random", "scheduler": "full"},
            storage=str(tmp_path / name),
            mlflow={"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
            callbacks=callbacks,
        )

    write_database(tmp_path)
    one, other = Thread(target=run, args=("one", 500)), Thread(target=run, args=("other", 24, Watch()))
    one.start()
    wait_for(lambda: bool(Storage(tmp_path / "one").names("checkpoints")), "the first study")
    other.start()
    assert begun.wait(LIMIT_S)
    view = load_study(tmp_path / "one")
    paused.set()  # the other study may take the slots before the answer is here
    assert view.pause().reply is Reply.DONE
    wait_for(lambda: not StudyStatus.read(Storage(tmp_path / "one")).running, "its trials to save")
    other.join(LIMIT_S)
    assert not other.is_alive()
    slots = [
        event.data
        for event in Journal(Storage(tmp_path / "other"), Objective(metric="loss", mode=Mode.MIN)).past
        if event.kind is EventKind.SLOTS
    ]
    assert most["after"] == slots[-1]["of"] > most["before"]
    assert load_study(tmp_path / "one").stop().message.startswith("the search ends now; cancelled trials: ")
    one.join(LIMIT_S)
    assert not one.is_alive()


def _slow(ctx: Any) -> None:
    for _ in range(*ctx.resource):
        time.sleep(0.5)
        ctx.report({"loss": ctx.params["x"]}, checkpoint=0)
    if ctx.is_evaluation:
        ctx.report({"loss": 0.0})


def _extend_often(folder: Path) -> None:
    for _ in range(3):
        assert load_study(folder).extend({"budget.trials": "+1"}).reply is Reply.DONE


def _lost(journal: Journal) -> list[Any]:
    return [event for event in journal.past if event.kind is EventKind.LOST]
