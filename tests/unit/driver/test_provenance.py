import subprocess
import sys
from pathlib import Path

import pytest

from spark_hpo.driver.provenance import git_commit, program_of_environment, provenance

ROOT = Path(__file__).parents[3]


def command(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(sys, "argv", argv)
    return provenance()["command"]


def test_versions_and_commit_are_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    facts = provenance()
    assert facts["versions"]["python"] == sys.version.split()[0]
    assert {"spark_hpo", "torch", "mlflow", "hyperopt"} <= facts["versions"].keys()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert facts["git_commit"] == (head.stdout.strip() or None)


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The programs of an environment below the working directory, which runs this process."""
    folder = tmp_path / ".venv/bin"
    folder.mkdir(parents=True)
    for name in ("python", "spark-hpo", "spark-submit"):
        (folder / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    return folder


@pytest.mark.parametrize(
    ("path", "before"),
    [("{venv}:/usr/bin", ""), ("/usr/bin:/bin", ".venv/bin/")],
    ids=["activated", "not activated"],
)
def test_command_line_can_be_pasted(
    venv: Path, path: str, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path.format(venv=venv))
    argv = [str(Path.cwd() / "jobs/tune.py"), "--config", "my study.yaml", "budget.trials=3"]
    expected = f"{before}python jobs/tune.py --config 'my study.yaml' budget.trials=3"
    assert command(argv, monkeypatch) == expected
    assert command([str(venv / "spark-hpo"), "run", "a.yaml"], monkeypatch) == f"{before}spark-hpo run a.yaml"
    module = "/venv/lib/python3.11/site-packages/spark_hpo/__main__.py"
    assert command([module, "resume", "dir"], monkeypatch) == f"{before}python -m spark_hpo resume dir"
    assert command(["/elsewhere/job.py"], monkeypatch) == f"{before}python /elsewhere/job.py"
    assert program_of_environment("spark-hpo") == f"{before}spark-hpo"
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1234")
    python = f"env PYSPARK_PYTHON={venv}/python " if before else ""
    assert command(["job.py"], monkeypatch) == f"{python}{before}spark-submit job.py"


def test_another_program_of_the_same_name_is_not_taken_for_ours(
    venv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert command(["job.py"], monkeypatch) == ".venv/bin/python job.py"


@pytest.mark.parametrize(
    "argv", [[], ["-c"], [""], ["/venv/lib/python3.11/site-packages/ipykernel_launcher.py", "-f", "x.json"]]
)
def test_command_line_of_a_notebook_is_none(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(argv, monkeypatch) is None


def test_credentials_of_a_command_are_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["tune.py", "mlflow.tracking_uri=https://me:s3cr3t@host"]
    assert "s3cr3t" not in str(command(argv, monkeypatch))
