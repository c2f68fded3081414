"""Studies on a standalone cluster of real processes, as on machines other than the driver's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
import pytest

from spark_hpo import load_study
from spark_hpo.backend.spark.package import write_zip
from tests.support.standalone import SPARK, StandaloneCluster, bare_python, standalone_cluster
from tests.support.workspace import LIMIT_S, ROOT, Workspace, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# A small machine must run them all at once.
EXECUTORS = {
    "spark.executor.memory": "512m",
    "spark.executor.memoryOverhead": "3g",  # two ranks share it
    "spark.executor.cores": "2",
    "spark.ui.enabled": "false",
    "spark.executorEnv.OMP_NUM_THREADS": "1",
}
# It notes where each rank runs, and goes on when it is told to.
TASK = """
import json, os, pathlib, sys, time
PRELOADED = "torch._dynamo" in sys.modules
import torch.distributed as dist
import spark_hpo
from spark_hpo.train.tasks.tabular import TabularTask

class Noted(TabularTask):
    def build_optimizer(self, model):
        rank = dist.get_rank() if dist.is_initialized() else 0
        note = {"rank": rank, "worker": os.getcwd(), "package": spark_hpo.__file__, "preloaded": PRELOADED}
        folder = pathlib.Path(os.environ["NOTES"])
        written = folder / f"{os.getpid()}.tmp"
        written.write_text(json.dumps(note))
        written.rename(written.with_suffix(".json"))  # readers see whole notes only
        deadline = time.monotonic() + 120
        while (folder / "hold").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().build_optimizer(model)
"""


class Submitted(Workspace):
    """A study run by spark-submit on a cluster."""

    def __init__(self, folder: Path, cluster: StandaloneCluster, *, driver: Path, executors: Path) -> None:
        super().__init__(
            folder,
            {
                "PYSPARK_DRIVER_PYTHON": str(driver),
                "PYSPARK_PYTHON": str(executors),
                "SPARK_LOCAL_IP": "127.0.0.1",
                "PYTHONPATH": "",
            },
        )
        self.notes_folder = folder / "notes"
        self.notes_folder.mkdir()
        (folder / "noted.py").write_text(TASK)
        settings = {**EXECUTORS, "spark.executorEnv.NOTES": str(self.notes_folder)}
        options = [f"--conf={key}={value}" for key, value in settings.items()]
        self._command = [str(SPARK / "bin/spark-submit"), "--master", cluster.url, *options]

    def submit(self, *overrides: str, py_files: tuple[Path, ...] = ()) -> subprocess.Popen[bytes]:
        files = ["--py-files", ",".join(map(str, py_files))] if py_files else []
        job = [str(ROOT / "jobs/tune.py"), "--config", "tune.yaml", "spark={}", *overrides]
        return self.popen([*self._command, *files, *job])

    @property
    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(file.read_text()) for file in self.notes_folder.glob("*.json")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    with standalone_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that cannot import the package."""
    return bare_python(tmp_path_factory.mktemp("python"))


def test_two_ranks_on_two_machines_get_the_package_from_py_files(
    tmp_path: Path, cluster: StandaloneCluster, bare: Path
) -> None:
    workspace = Submitted(tmp_path, cluster, driver=bare, executors=bare)
    files = (write_zip(tmp_path / "dist/spark_hpo.zip"), tmp_path / "noted.py")
    process = workspace.submit(
        *("task=noted:Noted", "budget.trials=3", "search.max_resource=3", "search.scheduler=full"),
        *("resources.max_concurrent=2", "resources.slot_timeout_s=60"),
        py_files=files,
    )
    assert process.wait(LIMIT_S) == 0, workspace.log[-4000:]
    answer = workspace.answer
    assert answer["trials"]["completed"] == 3
    assert answer["model"]["version"] == "1"
    for rank in (0, 1):
        assert {note["rank"] for note in workspace.notes} >= {rank}
    assert len({note["worker"] for note in workspace.notes}) == 2, "both workers have trained"
    assert all(".zip" in note["package"] for note in workspace.notes)
    usage = load_study(tmp_path / answer["study_dir"]).usage
    assert set(usage["rank"]) == {0, 1}
    assert set(usage.memory_limit_bytes) == {3 * 2**29}
    assert (usage.memory_bytes > 50 * 2**20).all()
    assert all(note["preloaded"] for note in workspace.notes), "the daemon was found in the zip"


def test_executors_receive_the_package_and_slots_follow_executors(
    tmp_path: Path, cluster: StandaloneCluster, bare: Path
) -> None:
    workspace = Submitted(tmp_path, cluster, driver=Path(sys.executable), executors=bare)
    (workspace.notes_folder / "hold").touch()
    process = workspace.submit(
        *("task=noted.py:Noted", "budget.trials=6", "search.max_resource=1", "search.scheduler=full"),
        *("resources={world_size: 1, slot_timeout_s: 60}",),
    )
    try:
        wait_for(lambda: "slots for trials: 4" in workspace.log, "two executors")
        third = cluster.add_worker()
        wait_for(lambda: "slots for trials: 6" in workspace.log, "the third executor")
        wait_for(lambda: len(workspace.notes) >= 6, "six trials at the same time")
        third.kill()
        wait_for(lambda: workspace.log.rindex("slots for trials: 4") > workspace.log.index(": 6"), "its end")
        (workspace.notes_folder / "hold").unlink()
        assert process.wait(LIMIT_S) == 0, workspace.log[-4000:]
    finally:
        process.kill()
    answer = workspace.answer
    assert answer["trials"]["completed"] == 6
    assert "executors cannot import spark_hpo.daemon" in workspace.log
    assert "executors do not have spark_hpo; sending it to them" in workspace.log
    assert not any(note["preloaded"] for note in workspace.notes)


def drive(
    program: str, cluster: StandaloneCluster, folder: Path, *, limit_s: float = LIMIT_S, **settings: str
) -> dict[str, Any]:
    """Run a driver process, and return its last line as JSON."""
    settings = {
        **EXECUTORS,
        "spark.master": cluster.url,
        "spark.log.level": "ERROR",
        "spark.python.daemon.module": "pyspark.daemon",  # nothing is trained here: no torch has to be loaded
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        },
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


DYNAMIC = """
import json, sys, time
from spark_hpo import tune
from spark_hpo.backend.spark.session import cluster_of, start_session
from spark_hpo.backend.spark.backend import SparkBackend
from spark_hpo.backend.spark.gathering import Gathering
from tests.support.ranks import assignment, train

def ranks(ctx):
    import torch, torch.distributed as dist
    total = torch.ones(1)
    dist.all_reduce(total)
    time.sleep(0.5)
    ctx.report({"loss": ctx.params["x"], "ranks": float(total)}, checkpoint=0.0)

def study(name):
    return tune(
        ranks, {"x": {"type": "uniform", "low": 0.0, "high": 1.0}}, metric="loss", mode="min", name=name,
        trials=4, max_resource=1, world_size=2, spark=spark, storage=name,
        search={"sampler": "random", "scheduler": "full"}, mlflow={"tracking_uri": "sqlite:///mlflow.db"},
    )

def wait_until_executors_left():
    deadline = time.monotonic() + 60
    while cluster.num_task_slots(None) and time.monotonic() < deadline:
        time.sleep(0.1)
    return cluster.num_task_slots(None)

spark = start_session("dynamic", json.loads(sys.argv[1]), timeout_s=150)
cluster = cluster_of(spark)
found = {"before": wait_until_executors_left()}
backend = SparkBackend(cluster, train, slot_timeout_s=60)
found["alone"] = backend.num_slots
for trial_id in range(3):
    backend.submit(assignment(trial_id, seconds=1))
reports = [backend.wait(150) for _ in range(3)]
found["failures"] = [r.failure.message for r in reports if r.failure]

# One of three executors is taken, so three ranks never fit. They give back the executors that they got.
backend.submit(assignment(8, seconds=120))
deadline = time.monotonic() + 60
while not cluster.num_task_slots(None) and time.monotonic() < deadline:
    time.sleep(0.1)
found["with_executors"] = backend.num_slots  # the executor of a running task does not leave
gathering = Gathering(has_met=lambda _: False, limit_s=10.0)
wide = SparkBackend(cluster, train, world_size=3, gathering=gathering, slot_timeout_s=60)
wide.submit(assignment(9, seconds=120))
report = wide.wait(150)
found["too_few"] = [report.failure.kind, report.failure.message, round(report.seconds)]
backend.cancel(8)

trials = study("two-ranks").journal.trials.values()
found["ranks"] = [trial.metrics["ranks"] for trial in trials]
found["after"] = wait_until_executors_left()
print(json.dumps(found))
spark.stop()
"""


@pytest.mark.timeout(2 * LIMIT_S + 60)
def test_dynamic_allocation_runs_trials_of_one_rank_and_of_several(
    tmp_path: Path, cluster: StandaloneCluster
) -> None:
    found = drive(
        DYNAMIC,
        cluster,
        tmp_path,
        limit_s=2 * LIMIT_S,  # executors start many times
        **{
            "spark.dynamicAllocation.enabled": "true",
            "spark.dynamicAllocation.shuffleTracking.enabled": "true",
            "spark.dynamicAllocation.executorIdleTimeout": "1s",
            "spark.dynamicAllocation.maxExecutors": "3",
            "spark.executor.cores": "1",
        },
    )
    assert found["before"] == 0
    assert found["alone"] == 1, "no executor is there: a trial that waits brings the first"
    assert found["failures"] == []
    assert 2 <= found["with_executors"] <= 4
    # Three executors of one core: while one trial trains, another one waits with one of its two ranks.
    assert found["ranks"] == [2.0] * 4
    assert found["after"] == 0, "the executors have been given back"
    kind, message, seconds = found["too_few"]
    assert kind == "capacity"
    assert "its 3 ranks did not all find a slot within 10 s" in message
    assert seconds < 60


GPUS = """
import json, os, sys
from spark_hpo.backend.spark.session import cluster_of, start_session
from spark_hpo.backend.spark.backend import SparkBackend
from tests.support.ranks import assignment, next_report, train

spark = start_session("gpus", json.loads(sys.argv[1]), timeout_s=60)
found = {}
for gpus, world_size in ((0, 1), (0.25, 1), (0.5, 1), (1, 1), (2, 1), (1, 2), (2, 2)):
    backend = SparkBackend(
        cluster_of(spark), train, world_size=world_size, gpus_per_rank=gpus, slot_timeout_s=60
    )
    deadline = 60
    slots = backend.num_slots
    for trial_id in range(min(slots, 3)):
        backend.submit(assignment(trial_id))
    reports = [next_report(backend) for _ in range(min(slots, 3))]
    found[f"{gpus:g} x {world_size}"] = {
        "slots": slots,
        "cuda": [[r.metrics[k] for k in sorted(r.metrics) if k.startswith("gpu")] for r in reports],
        "visible": [r.metrics["visible"] for r in reports],
        "failures": [r.failure.message for r in reports if r.failure],
    }
print(json.dumps(found))
spark.stop()
"""


@pytest.mark.skipif(
    pyspark.__version__.startswith("3."), reason="profiles for mapInArrow came with Spark 4.0"
)
def test_ranks_use_the_gpus_that_spark_assigns(tmp_path: Path, cluster: StandaloneCluster) -> None:
    found = drive(
        GPUS,
        cluster,
        tmp_path,
        **{
            "spark.executor.resource.gpu.amount": "2",
            "spark.executor.resource.gpu.discoveryScript": str(cluster.gpu_script),
            "spark.executorEnv.CUDA_VISIBLE_DEVICES": "0",  # stale: of another job
        },
    )
    assert [trial for result in found.values() for trial in result["failures"]] == []
    assert {name: result["slots"] for name, result in found.items()} == {
        "0 x 1": 4,
        "0.25 x 1": 4,
        "0.5 x 1": 4,
        "1 x 1": 4,
        "2 x 1": 2,
        "1 x 2": 2,
        "2 x 2": 1,
    }
    for name, result in found.items():
        each = int(float(name.split()[0]) + 0.75)
        for gpus, visible in zip(result["cuda"], result["visible"], strict=True):
            assert len(set(gpus)) == len(gpus) == each
            assert set(gpus) <= {2, 5}, "cuda:N, N what the script says"
            assert visible == (1 if each == 0 else 0), "CUDA_VISIBLE_DEVICES does not count"
