"""`jobs/tune.py` with real Spark, MLflow and killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.events import EventKind
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Split
from tests.support.workspace import LIMIT_S, Workspace, wait_for

ACCURACY = Objective(metric="accuracy", mode=Mode.MAX)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, Any]]:
    """A finished study on Spark with two ranks per trial."""
    workspace = Workspace(tmp_path_factory.mktemp("finished"))
    return workspace, workspace.run()


def test_last_line_of_the_job_is_its_result(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, answer = finished
    assert set(answer) == {
        *("study", "study_dir", "metric", "mode", "best", "test", "trials", "segments"),
        *("resource_spent", "slot_utilization", "wall_s", "stopped_by", "outlook", "mlflow", "model"),
    }
    assert (answer["study"], answer["metric"], answer["mode"]) == ("clusters", "accuracy", "max")
    assert answer["stopped_by"] == "trials"
    assert sum(answer["trials"].values()) == 12
    # One bracket of 9/3/1, one of 3/1.
    assert answer["segments"] == {"run": 13 + 4, "replayed": 0, "failed": 0}
    assert answer["resource_spent"] == (9 + 3 * 2 + 6) + (3 * 3 + 6)
    assert answer["best"]["value"] > 0.8
    assert answer["test"]["accuracy"] > 0.75
    assert 0 < answer["slot_utilization"] <= 1
    assert answer["model"] == {
        "name": "clusters",
        "version": "1",
        "uri": "models:/clusters/1",
        "is_champion": True,
        "is_best": True,
    }
    assert f"best: trial {answer['best']['trial']} after" in workspace.log


def test_job_run_again_after_its_end_does_nothing(
    finished: tuple[Workspace, dict[str, Any]], spark: Any
) -> None:
    workspace, answer = finished
    again = workspace.run_in_process()
    assert again["segments"] == {"run": 0, "replayed": 17, "failed": 0}
    assert {k: again[k] for k in ("best", "test", "trials", "resource_spent", "model", "mlflow")} == {
        k: answer[k] for k in ("best", "test", "trials", "resource_spent", "model", "mlflow")
    }


def test_mlflow_has_runs_of_the_study_and_every_trial(finished: tuple[Workspace, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    workspace, answer = finished
    client = MlflowClient(f"sqlite:///{workspace.folder}/mlflow.db")
    parent = client.get_run(answer["mlflow"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_accuracy"] == answer["best"]["value"]
    assert parent.data.metrics["test_accuracy"] == answer["test"]["accuracy"]
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {"config.yaml", "space.yaml", "leaderboard.json", "report.html"}
    children = client.search_runs(
        [answer["mlflow"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len(children) == 12
    best = next(
        run for run in children if run.data.tags["spark_hpo.trial_id"] == str(answer["best"]["trial"])
    )
    history = client.get_metric_history(best.info.run_id, "accuracy")
    assert [point.step for point in history] == list(range(1, answer["best"]["resource"] + 1))
    assert history[-1].value == answer["best"]["value"]
    assert float(best.data.params["learning_rate"]) == answer["best"]["params"]["learning_rate"]
    assert best.data.metrics["rows_per_second"] > 0


def test_journal_and_mlflow_have_the_use_of_each_rank(finished: tuple[Workspace, dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    workspace, answer = finished
    journal = Journal(Storage(workspace.folder / answer["study_dir"]), ACCURACY)
    reports = [event.report for event in journal.past if event.kind is EventKind.REPORTED]
    assert reports
    for report in reports:
        assert [use.rank for use in report.usage] == [0, 1]
        for use in report.usage:
            assert use.wait_share is not None
            assert 0 <= use.wait_share < 1
            assert use.memory_bytes is not None
            assert use.memory_bytes > 50 * 2**20
            assert use.cpu_s is not None
            assert 0 < use.cpu_s / use.seconds < 64
    client = MlflowClient(f"sqlite:///{workspace.folder}/mlflow.db")
    children = client.search_runs(
        [answer["mlflow"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{answer['mlflow']['run_id']}'"
    )
    for run in children:
        assert run.data.metrics["system/cpu_utilization_percentage"] > 0
        assert run.data.metrics["system/system_memory_usage_megabytes"] > 50
        assert 0 <= run.data.metrics["system/data_wait_percentage"] < 100


def test_registered_model_repeats_its_test_metrics_in_a_new_process(
    finished: tuple[Workspace, dict[str, Any]],
) -> None:
    workspace, answer = finished
    program = """
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/clusters@champion")
assert model.metadata.signature is not None and model.input_example is not None
rows = pd.read_parquet(sys.argv[2])
answers = model.predict(rows[["x", "y"]].astype("float64"))
print((answers["prediction"].to_numpy() == rows["side"].to_numpy()).mean())
"""
    # Not in the source tree, and without the package on its path: the model brings its code along.
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            f"sqlite:///{workspace.folder}/mlflow.db",
            workspace.folder / "table/test",
        ],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(answer["test"]["accuracy"], abs=1e-9)


def test_second_study_of_the_same_seed_has_identical_results(
    finished: tuple[Workspace, dict[str, Any]], spark: Any
) -> None:
    workspace, _ = finished
    second = workspace.run_in_process("study_dir=again")
    keys = ("trial_id", "rung", "resource", "metrics")
    assert [{k: e[k] for k in keys} for e in workspace.reported("again")] == [
        {k: e[k] for k in keys} for e in workspace.reported()
    ]
    proposed = [e["params"] for e in workspace.events("again") if e["event"] == "assigned"]
    assert proposed == [e["params"] for e in workspace.events() if e["event"] == "assigned"]
    # As good as the champion is not better: the alias stays.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.folder}/mlflow.db")
    assert second["model"]["version"] == "2"
    assert client.get_model_version_by_alias("clusters", "champion").version in (1, "1")


@pytest.mark.slow
def test_driver_killed_halfway_loses_no_reports(tmp_path: Path, spark: Any) -> None:
    workspace = Workspace(tmp_path)
    process = workspace.start()
    wait_for(lambda: len(workspace.reported()) >= 6, "six reports")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(LIMIT_S)
    before = [(e["trial_id"], e["rung"]) for e in workspace.reported()]

    answer = workspace.run_in_process("--resume", "must")
    assert answer["segments"]["replayed"] == len(before)
    assert answer["segments"]["run"] == 17 - len(before)
    after = [(e["trial_id"], e["rung"]) for e in workspace.reported()]
    assert len(after) == len(set(after)) == 17
    assert after[: len(before)] == before


@pytest.mark.slow
def test_sigterm_pauses_the_study_and_prints_how_to_resume(tmp_path: Path, spark: Any) -> None:
    workspace = Workspace(tmp_path)
    process = workspace.start("--log-file", "events.log")
    wait_for(lambda: len(workspace.reported()) >= 3, "three reports")
    process.terminate()
    assert process.wait(LIMIT_S) == 130, workspace.log[-3000:]
    # Not the last line for certain: the JVM writes to the same stream, and may still tell of killed tasks.
    assert "Rerun the same command to resume:\n" in workspace.log
    assert "jobs/tune.py --config tune.yaml" in workspace.log.split("Rerun the same command to resume:")[1]
    journal = Journal(Storage(workspace.folder / "study"), ACCURACY)
    assert journal.past[-1].kind is EventKind.CLOSED
    assert journal.past[-1].data["reason"] == "interrupted"
    assert "trial 0, epoch 1 of " in (tmp_path / "events.log").read_text()
    answer = workspace.run_in_process()
    assert answer["segments"]["replayed"] >= 3
    assert answer["segments"]["run"] + answer["segments"]["replayed"] == 17


@pytest.mark.slow
def test_own_task_is_shipped_and_its_failures_are_recorded(tmp_path: Path) -> None:
    """The task is in a file beside the study file. Three of four trials fail, each in another way."""
    workspace = Workspace(tmp_path)
    (tmp_path / "my_task.py").write_text(
        "from spark_hpo.train.tasks.tabular import TabularTask\n"
        "class MyTask(TabularTask):\n"
        "    def loss(self, outputs, batch):\n"
        "        if self.params['fate'] == 'raise':\n"
        "            raise ValueError('as it must')\n"
        "        if self.params['fate'] == 'memory':\n"
        "            raise MemoryError\n"
        "        if self.params['fate'] == 'nan':\n"
        "            return super().loss(outputs, batch) * float('nan')\n"
        "        return super().loss(outputs, batch)\n"
    )
    fates = "space={fate: {type: choice, options: [fine, raise, memory, nan]}}"
    # And without our daemon, in Python processes that Spark uses again: the same, only slower.
    plain = "{spark.master: 'local[2]', spark.python.daemon.module: pyspark.daemon, "
    plain += "spark.python.worker.reuse: 'true', spark.ui.enabled: 'false'}"
    answer = workspace.run(
        "task=my_task.py:MyTask", fates, "search.sampler=grid", f"spark={plain}", "resources.world_size=1"
    )
    failed = [e for e in workspace.reported() if e["failure"]]
    assert answer["segments"]["failed"] == answer["trials"]["failed"] == len(failed) == 3
    assert answer["stopped_by"] == "search_space"
    assert answer["best"]["params"]["fate"] == "fine"
    assert {e["failure"]["kind"] for e in failed} == {"trial", "memory"}
    assert "ValueError: as it must" in workspace.log, "the traceback is in the log"

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([answer["mlflow"]["experiment_id"]], "attributes.status = 'FAILED'")
    assert len(runs) == len(failed)
    raised = next(run for run in runs if run.data.params["fate"] == "raise")
    traceback = Path(
        client.download_artifacts(raised.info.run_id, "traceback.txt", str(tmp_path))
    ).read_text()
    assert "ValueError: as it must" in traceback
    # The model carries the user's module: a new process that cannot see the file loads it all the same.
    program = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]);"
        "print(mlflow.pyfunc.load_model('models:/clusters/1'))"
    )
    subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path}/mlflow.db"],
        check=True,
        cwd="/",
        timeout=LIMIT_S,
    )


def test_last_checkpoint_is_that_of_the_best_trial(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, answer = finished
    left = [str(p.parent.name) for p in (workspace.folder / "study/checkpoints").rglob("*.pt")]
    assert left == [f"trial-{answer['best']['trial']:06d}"]


def test_test_split_is_read_once(finished: tuple[Workspace, dict[str, Any]]) -> None:
    workspace, _ = finished
    tested = [e for e in workspace.events() if e["event"] == "assigned" and e["split"] == Split.TEST]
    assert len(tested) == 1
