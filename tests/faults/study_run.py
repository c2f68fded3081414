"""A study whose drivers run in processes of their own, to be observed and disturbed while they run."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.faults.checker import violations
from tests.faults.processes import LIMIT_S, VARIABLE, StudyProcesses, eventually
from tests.support.spark_home import SparkHome
from tests.support.workspace import ROOT, Workspace

ROWS = 120  # of the table's training split
_TASK = Path(__file__).with_name("faulty_task.py")
_INJECTED = Path(__file__).with_name("injected")  # its sitecustomize.py

# Small, because a machine of two cores runs everything; short timeouts, because tests wait for them.
SPARK_SETTINGS = {
    "spark.master": "local-cluster[2,1,1024]",
    "spark.executor.memory": "512m",
    "spark.ui.enabled": "false",
    "spark.executor.heartbeatInterval": "1s",
    "spark.network.timeout": "8s",
    "spark.network.timeoutInterval": "1s",
}
CONFIG: dict[str, Any] = {
    "name": "faults",
    "study_dir": "study",
    "seed": 3,
    "task": f"{_TASK}:FaultyTask",
    "data": {"path": "table"},
    "objective": {"metric": "loss", "mode": "min"},
    "space": {
        "learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
        "hidden_units": {"type": "int", "low": 4, "high": 16},
    },
    "search": {"sampler": "random", "scheduler": "full", "max_resource": 3},
    "budget": {"trials": 4, "finish": 0},
    "training": {"batch_size": 16},
    "resources": {"rank_timeout_s": 10, "slot_timeout_s": 60},
    "mlflow": {"tracking_uri": "sqlite:///mlflow.db"},
}


@dataclass(frozen=True)
class Step:
    """One training step of one rank, as `faulty_task.py` wrote it down."""

    rate: float
    rank: int
    pid: int
    host: str
    step: int
    rows: int
    time: float


class StudyRun(Workspace):
    """A study of `FaultyTask`, run by `jobs/tune.py`. All its processes have the same mark.

    Args:
        home: the Spark to use, or None for a study without Spark.
        step_s: seconds of a training step.
        spark: Spark settings in addition to `SPARK_SETTINGS`.
        injected: environment variables for `injected/sitecustomize.py`, in every Python process of the study.
        config: sections of the study file, merged into those of `CONFIG`.
    """

    def __init__(
        self,
        folder: Path,
        home: SparkHome | None = None,
        *,
        step_s: float = 0.02,
        spark: Mapping[str, str] | None = None,
        injected: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        self.processes = StudyProcesses()
        self.faults = folder / "faults"
        for name in ("traces", "children"):
            (self.faults / name).mkdir(parents=True)
        (folder / "tmp").mkdir()
        ours = {
            VARIABLE: self.processes.mark,
            "FAULTS": str(self.faults),
            "STEP_S": str(step_s),
            "TMPDIR": str(folder / "tmp"),
            **(home.environment if home else {}),
            "PYTHONPATH": os.pathsep.join([str(_INJECTED), str(ROOT)]),
            **(injected or {}),
        }
        super().__init__(folder, ours)
        settings = {**SPARK_SETTINGS, **(spark or {})}
        for key in (VARIABLE, "FAULTS", "STEP_S", "PYTHONPATH", *(injected or {})):
            settings[f"spark.executorEnv.{key}"] = ours[key]
        study_file = _merged(CONFIG, {**config, "spark": settings})
        (folder / "tune.yaml").write_text(yaml.safe_dump(study_file))
        self.study_dir = folder / "study"  # as seen from this process
        self.command: tuple[str, ...] = (sys.executable,)  # starts a driver: the words before jobs/tune.py
        self.process: subprocess.Popen[bytes] | None = None
        self._logs: dict[int, str] = {}  # by process

    # Drivers ------------------------------------------------------------------------------------------

    def start_driver(
        self,
        *overrides: str,
        log: str = "log.txt",
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a driver, by `self.command` unless another command is given."""
        words = [*(command or self.command), str(ROOT / "jobs/tune.py"), "--config", "tune.yaml", *overrides]
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        self.process = self.popen(["env", *variables, *words] if variables else words, log)
        self._logs[self.process.pid] = log
        return self.process

    def finish(self, *overrides: str, code: int = 0) -> dict[str, Any]:
        """Wait for the driver, after starting one if none is alive, and return its answer."""
        if self.process is None or self.process.poll() is not None:
            self.start_driver(*overrides)
        assert self.process is not None
        assert self.process.wait(LIMIT_S) == code, self.log[-6000:]
        return self.answer if code == 0 else {}

    def finish_and_check(self, *overrides: str, code: int = 0, rows: int | None = ROWS) -> dict[str, Any]:
        """Call `finish`, then check that every guarantee holds and that nothing is left behind."""
        answer = self.finish(*overrides, code=code)
        self.assert_consistent(rows=rows)
        self.assert_no_leftovers()
        return answer

    def assert_consistent(self, *, rows: int | None = ROWS, is_finished: bool = True) -> None:
        found = violations(
            self.study_dir, mlflow=self.folder / "mlflow.db", rows=rows, is_finished=is_finished
        )
        assert not found, "\n".join([*found, self.log[-4000:]])

    def kill_driver(self) -> None:
        """Send SIGKILL to the driver's Python process only. Its JVM has to notice this on its own."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    # What it has done -------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """The log of the current driver, `process`."""
        assert self.process is not None
        return (self.folder / self._logs[self.process.pid]).read_text(errors="replace")

    def events(self, study: str = "") -> list[dict[str, Any]]:
        return super().events(str(self.study_dir))

    def steps(self) -> list[Step]:
        found = []
        for file in (self.faults / "traces").glob("*.jsonl"):
            lines = file.read_text().splitlines(keepends=True)
            found += [Step(**json.loads(line)) for line in lines if line.endswith("\n")]
        return sorted(found, key=lambda step: step.time)

    def rates(self) -> dict[int, float]:
        """Return the learning rate of each trial, which identifies its steps."""
        return {
            e["trial_id"]: e["params"]["learning_rate"] for e in self.events() if e["event"] == "assigned"
        }

    def steps_of(self, trial_id: int) -> list[Step]:
        rate = self.rates().get(trial_id)
        return [step for step in self.steps() if step.rate == rate]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == kind]

    def results(self) -> dict[tuple[int, int], dict[str, float]]:
        """Return the metrics by trial and resource, which must be the same after any fault."""
        return {(e["trial_id"], e["resource"]): e["metrics"] for e in self.reported() if e["failure"] is None}

    def wait_for_step(
        self,
        trial_id: int | None = None,
        *,
        step: int = 0,
        after: float = 0.0,
        by: Container[int] | None = None,
        not_by: Container[int] = (),
    ) -> Step:
        """Wait for a step, and return the first one that meets all conditions.

        Args:
            trial_id: the trial, or None for any.
            step: the smallest number of the step.
            after: the time after which the step was made.
            by: processes that may have made the step; None: all.
            not_by: processes that must not have made it.
        """
        found: list[Step] = []

        def there() -> bool:
            steps = self.steps() if trial_id is None else self.steps_of(trial_id)
            found[:] = [
                s
                for s in steps
                if s.step >= step and s.time > after and s.pid not in not_by and (by is None or s.pid in by)
            ]
            assert found or self.process is None or self.process.poll() is None, self.log[-4000:]
            return bool(found)

        eventually(there, f"step {step} of trial {trial_id}")
        return found[0]

    def pids(self) -> set[int]:
        """Return the ids of all ranks that have made a step."""
        return {step.pid for step in self.steps()}

    def repeated_s(self) -> float:
        """Return the seconds that rank 0 spent on steps that it had made before."""
        counts = Counter((step.rate, step.step) for step in self.steps() if step.rank == 0)
        return sum(count - 1 for count in counts.values()) * self.step_seconds()

    def step_seconds(self) -> float:
        """Return the median time between two steps."""
        by_pid: dict[int, list[float]] = defaultdict(list)
        for step in self.steps():
            by_pid[step.pid].append(step.time)
        gaps = sorted(b - a for times in by_pid.values() for a, b in itertools.pairwise(times))
        return gaps[len(gaps) // 2] if gaps else 0.0

    def trial_of(self, pid: int) -> int:
        """Return the trial that a rank trains."""
        rate = next(step.rate for step in self.steps() if step.pid == pid)
        return next(trial for trial, known in self.rates().items() if known == rate)

    def lost(self) -> list[tuple[int, int]]:
        """Return trial and attempt of each attempt that the infrastructure has failed."""
        return [(e["trial_id"], e["attempt"]) for e in self.of_kind("lost")]

    def children(self) -> list[int]:
        """Return the ids of the processes that ranks have started."""
        return [int(path.name) for path in (self.faults / "children").iterdir()]

    # Afterwards ------------------------------------------------------------------------------------------

    def kill_all(self) -> None:
        """Kill all processes of the study that are still alive."""
        self.processes.kill()
        if self.process is not None:
            self.process.wait()

    def assert_no_leftovers(self) -> None:
        """Check that all processes have ended and that no temporary files are left."""
        assert self.processes.wait_until_gone(), self.processes.names()
        ours = [p.name for p in (self.folder / "tmp").iterdir() if not p.name.startswith(_SPARK_FILES)]
        assert ours == [], "temporary files are left behind"


# A killed JVM cannot delete its temporary files.
_SPARK_FILES = (
    *("spark-", "blockmgr-", "liblz4", "libzstd", "snappy", "localPyFiles", "pyspark-"),
    "torchinductor_",  # torch's cache, one per user
)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge sections key by key; a space and Spark settings replace those of the base as a whole."""
    merged = dict(base)
    for key, value in changes.items():
        is_section = isinstance(value, Mapping) and key not in ("space", "spark")
        merged[key] = {**base.get(key, {}), **value} if is_section else value
    return merged
