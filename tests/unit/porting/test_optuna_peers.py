"""The ended trials that a driver writes for the pruners on executors, and what a pruner reads of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Report, Trial, TrialState

optuna = pytest.importorskip("optuna", reason="Optuna is an extra")

from spark_hpo.porting import optuna_peers  # noqa: E402 - needs Optuna
from spark_hpo.porting.optuna_sampler import notes_of, quiet_study  # noqa: E402

TRIALS, STEPS = 200, 50


class CountingStorage(Storage):
    """Counts the bytes of what is written and read."""

    written = 0
    bytes_read = 0

    def write(self, name: str, data: bytes) -> None:
        self.written += len(data)
        super().write(name, data)

    def read(self, name: str) -> bytes | None:
        data = super().read(name)
        self.bytes_read += len(data or b"")
        return data


@pytest.fixture(autouse=True)
def _each_refresh_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_peers, "_REFRESH_S", 0.0)


def notes(number: int) -> dict[str, Any]:
    trial = optuna.trial.create_trial(
        value=number / 7, intermediate_values={step: number / 7 + step for step in range(STEPS)}
    )
    return notes_of(trial, state="COMPLETE", values=trial.values)


def reports(study: Any, numbers: range) -> Iterator[tuple[Trial, Report]]:
    """The reports of a study's trials, each in the study when it comes."""
    for number in numbers:
        report = Report(trial_id=number, attempt=1, rung=0, resource=1, notes=notes(number))
        trial = Trial(
            trial_id=number, params={}, state=TrialState.COMPLETED, bracket=0, rung=0, notes=report.notes
        )
        study.trials[number] = trial
        yield trial, report


def test_peers_are_written_and_read_a_bounded_number_of_times(tmp_path: Path) -> None:
    driver, executor = CountingStorage(tmp_path), CountingStorage(tmp_path)
    study: Any = SimpleNamespace(trials={})
    callback = optuna_peers.PeersCallback(driver)
    callback.on_study_start(study)
    own = quiet_study()
    peers = optuna_peers.Peers(own, executor, TRIALS)
    for trial, report in reports(study, range(TRIALS)):
        callback.on_report(study, trial, report)
        peers.refresh()
    ended = own.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert [trial.intermediate_values[3] for trial in ended] == [n / 7 + 3 for n in range(TRIALS)]
    once = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    assert once > TRIALS * STEPS * 10
    assert driver.written < 20 * once
    assert executor.bytes_read < 20 * once


def test_peers_of_a_resumed_study_reach_a_rank(tmp_path: Path) -> None:
    study: Any = SimpleNamespace(trials={})
    first = optuna_peers.PeersCallback(Storage(tmp_path))
    for trial, report in reversed(list(reports(study, range(60)))):
        first.on_report(study, trial, report)
    second = optuna_peers.PeersCallback(Storage(tmp_path))
    second.on_study_start(study)
    own = quiet_study()
    peers = optuna_peers.Peers(own, Storage(tmp_path), 0)
    peers.refresh()
    for trial, report in reports(study, range(60, 90)):
        second.on_report(study, trial, report)
        peers.refresh()
    ended = own.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    assert [trial.number for trial in ended] == list(range(1, 90))
