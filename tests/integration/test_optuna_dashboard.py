"""optuna-dashboard shows studies that `spark-hpo export --what optuna` has written."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import TrialState
from tests.support.browser import CURE, chromium
from tests.support.command_line import spark_hpo

pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
pytestmark = pytest.mark.medium

STUDIES = Path(__file__).parents[1] / "data/journals/0.1"
START_S = 60


def export(study: Path, folder: Path) -> Path:
    file = folder / f"{study.name}.db"
    done = spark_hpo(folder, "export", str(study), "--what", "optuna", "--output", str(file))
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stdout
    return file


class Dashboard:
    """A server of optuna-dashboard."""

    def __init__(self, file: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = "from optuna_dashboard._cli import main; main()"
        words = [f"sqlite:///{file}", "--port", str(port), "--server", "wsgiref"]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL)

    def get(self, path: str) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urlopen(f"{self.url}/api/{path}", timeout=START_S) as reply:
                    return json.load(reply)
            except URLError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError("the dashboard does not answer") from error
                time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    dashboard = Dashboard(export(STUDIES / "hyperband-finished", tmp_path_factory.mktemp("dashboard")))
    dashboard.get("studies")  # it has started
    yield dashboard
    dashboard.close()


def test_dashboard_has_every_trial_of_the_study(dashboard: Dashboard) -> None:
    record = StudyRecord.read(Storage(STUDIES / "hyperband-finished"))
    [summary] = dashboard.get("studies")["study_summaries"]
    assert summary["study_name"] == record.name
    shown = dashboard.get(f"studies/{summary['study_id']}?after=0")
    assert shown["has_intermediate_values"]
    names = {TrialState.COMPLETED: "Complete", TrialState.STOPPED: "Pruned", TrialState.FAILED: "Fail"}
    assert {t["number"]: t["state"] for t in shown["trials"]} == {
        trial_id: names[trial.state] for trial_id, trial in record.trials.items()
    }
    assert len(set(names) & {trial.state for trial in record.trials.values()}) > 1
    values = {t["number"]: t["values"] for t in shown["trials"] if t.get("values")}
    assert {number: value for number, [value] in values.items()} == {
        trial.trial_id: pytest.approx(record.objective.value(trial.loss)) for trial in record.ranking
    }
    curves = {t["number"]: [p["step"] for p in t["intermediate_values"]] for t in shown["trials"]}
    assert curves == {i: [m.resource for m in trial.curve] for i, trial in record.trials.items()}


def test_browser_draws_the_study_without_an_error(dashboard: Dashboard) -> None:
    with chromium() as browser:
        if browser is None:
            pytest.skip(CURE)
        errors: list[str] = []
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{dashboard.url}/dashboard/studies/1", wait_until="networkidle")
        page.wait_for_selector(".plotly .main-svg", timeout=1000 * START_S)
        page.get_by_text("Intermediate values").first.wait_for(timeout=1000 * START_S)
        assert errors == []
