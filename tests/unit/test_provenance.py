import subprocess
import sys
from pathlib import Path

import pytest

from spark_hpo.provenance import git_commit, provenance

ROOT = Path(__file__).parents[2]


def command(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", argv)
    return provenance()["command"]


def test_versions_and_commit_are_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    facts = provenance()
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert {"spark_hpo", "torch", "mlflow", "optuna"} <= facts["versions"].keys()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert facts["git_commit"] == (head.stdout.strip() or None)


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None


def test_a_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    argv = [str(tmp_path / "jobs/tune.py"), "--config", "my study.yaml", "budget.trials=3"]
    assert command(argv, monkeypatch) == "python jobs/tune.py --config 'my study.yaml' budget.trials=3"
    assert command(["/usr/bin/spark-hpo", "run", "a.yaml"], monkeypatch) == "spark-hpo run a.yaml"
    module = "/venv/lib/python3.11/site-packages/spark_hpo/__main__.py"
    assert command([module, "resume", "dir"], monkeypatch) == "python -m spark_hpo resume dir"
    assert command(["/elsewhere/job.py"], monkeypatch) == "python /elsewhere/job.py"
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1234")
    assert command(["job.py"], monkeypatch) == "spark-submit job.py"


@pytest.mark.parametrize(
    "argv", [[], ["-c"], [""], ["/venv/lib/python3.11/site-packages/ipykernel_launcher.py", "-f", "x.json"]]
)
def test_a_notebook_has_no_command(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(argv, monkeypatch) is None


def test_credentials_of_a_command_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["tune.py", "mlflow.tracking_uri=https://me:s3cr3t@host"]
    assert "s3cr3t" not in str(command(argv, monkeypatch))
