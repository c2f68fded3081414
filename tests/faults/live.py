"""A study in processes of its own, which can be watched and hurt while it runs."""

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
from tests.faults.family import LIMIT_S, VARIABLE, Family, eventually
from tests.faults.spark_home import SparkHome
from tests.support.workspace import ROOT, Workspace

ROWS = 120  # of the table's training split
_TASK = Path(__file__).with_name("faulty.py")
_HURT = Path(__file__).with_name("hurt")  # its sitecustomize.py

# Small, because a machine of two cores runs them all; quick to notice, because tests wait.
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
    "task": f"{_TASK}:Faulty",
    "data": {"path": "table"},
    "objective": {"metric": "loss", "mode": "min"},
    "space": {
        "learning_rate": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
        "hidden_units": {"type": "int", "low": 4, "high": 16},
    },
    "search": {"sampler": "random", "scheduler": "full", "max_resource": 3},
    "budget": {"trials": 4},
    "training": {"batch_size": 16},
    "resources": {"rank_timeout_s": 10, "slot_timeout_s": 60},
    "mlflow": {"tracking_uri": "sqlite:///mlflow.db"},
}


@dataclass(frozen=True)
class Step:
    """One training step of one rank, as `faulty.py` noted it."""

    rate: float
    rank: int
    pid: int
    step: int
    rows: int
    time: float


class LiveStudy(Workspace):
    """`jobs/tune.py` with a task that leaves traces. Every process that it starts carries a mark.

    Args:
        home: the Spark that it uses; None: it uses none.
        step_s: seconds of a training step.
        spark: settings beside those of all tests.
        hurt: what `hurt/sitecustomize.py` is to do to every Python of it.
        config: sections of the study file, whose keys replace those of `CONFIG`.
    """

    def __init__(
        self,
        folder: Path,
        home: SparkHome | None = None,
        *,
        step_s: float = 0.02,
        spark: Mapping[str, str] | None = None,
        hurt: Mapping[str, str] | None = None,
        **config: Any,
    ) -> None:
        self.family = Family()
        self.faults = folder / "faults"
        for name in ("traces", "children"):
            (self.faults / name).mkdir(parents=True)
        (folder / "tmp").mkdir()
        ours = {
            VARIABLE: self.family.mark,
            "FAULTS": str(self.faults),
            "STEP_S": str(step_s),
            "TMPDIR": str(folder / "tmp"),
            **(home.environment if home else {}),
            "PYTHONPATH": os.pathsep.join([str(_HURT), str(ROOT)]),
            **(hurt or {}),
        }
        super().__init__(folder, ours)
        settings = {**SPARK_SETTINGS, **(spark or {})}
        for key in (VARIABLE, "FAULTS", "STEP_S", "PYTHONPATH", *(hurt or {})):
            settings[f"spark.executorEnv.{key}"] = ours[key]
        study_file = _merged(CONFIG, {**config, "spark": settings})
        (folder / "tune.yaml").write_text(yaml.safe_dump(study_file))
        self.study_dir = folder / "study"  # as this process sees it
        self.command: tuple[str, ...] = (sys.executable,)  # before the job: what starts drivers
        self.process: subprocess.Popen[bytes] | None = None
        self._logs: dict[int, str] = {}  # by process

    # Running it ------------------------------------------------------------------------------------------

    def begin(
        self,
        *overrides: str,
        log: str = "log.txt",
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a driver, by another command than `self.command` if it has to be."""
        words = [*(command or self.command), str(ROOT / "jobs/tune.py"), "--config", "tune.yaml", *overrides]
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        self.process = self.popen(["env", *variables, *words] if variables else words, log)
        self._logs[self.process.pid] = log
        return self.process

    def finish(self, *overrides: str, code: int = 0) -> dict[str, Any]:
        """Wait for the driver, or start one when none is alive; the JSON of its last line."""
        if self.process is None or self.process.poll() is not None:
            self.begin(*overrides)
        assert self.process is not None
        assert self.process.wait(LIMIT_S) == code, self.log[-6000:]
        return self.answer if code == 0 else {}

    def finish_soundly(self, *overrides: str, code: int = 0, rows: int | None = ROWS) -> dict[str, Any]:
        """Like `finish`, and then no promise may be broken and nothing may be left."""
        answer = self.finish(*overrides, code=code)
        self.assert_sound(rows=rows)
        self.assert_nothing_is_left()
        return answer

    def assert_sound(self, *, rows: int | None = ROWS, is_finished: bool = True) -> None:
        found = violations(
            self.study_dir, mlflow=self.folder / "mlflow.db", rows=rows, is_finished=is_finished
        )
        assert not found, "\n".join([*found, self.log[-4000:]])

    def kill_driver(self) -> None:
        """`kill -9` of the driver's Python alone: its JVM has to notice for itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    # What it does ----------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Of the driver that is looked at: `process`."""
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
        """The learning rate of each trial, by which its steps are known."""
        return {
            e["trial_id"]: e["params"]["learning_rate"] for e in self.events() if e["event"] == "assigned"
        }

    def steps_of(self, trial_id: int) -> list[Step]:
        rate = self.rates().get(trial_id)
        return [step for step in self.steps() if step.rate == rate]

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == kind]

    def results(self) -> dict[tuple[int, int], dict[str, float]]:
        """The metrics by trial and resource: what must be the same, whatever has happened."""
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
        """The first step of a trial, or of any, with at least this number, since then, of such processes."""
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
        """Of all ranks that have made a step."""
        return {step.pid for step in self.steps()}

    def repeated_s(self) -> float:
        """Work done more than once: steps of rank 0 beyond the first of their number, in seconds."""
        counts = Counter((step.rate, step.step) for step in self.steps() if step.rank == 0)
        return sum(count - 1 for count in counts.values()) * self.step_seconds()

    def step_seconds(self) -> float:
        """What a step takes, as a rule."""
        by_pid: dict[int, list[float]] = defaultdict(list)
        for step in self.steps():
            by_pid[step.pid].append(step.time)
        gaps = sorted(b - a for times in by_pid.values() for a, b in itertools.pairwise(times))
        return gaps[len(gaps) // 2] if gaps else 0.0

    def trial_of(self, pid: int) -> int:
        """The trial that a rank trains."""
        rate = next(step.rate for step in self.steps() if step.pid == pid)
        return next(trial for trial, known in self.rates().items() if known == rate)

    def lost(self) -> list[tuple[int, int]]:
        """Trial and attempt of what the infrastructure has failed."""
        return [(e["trial_id"], e["attempt"]) for e in self.of_kind("lost")]

    def children(self) -> list[int]:
        """Processes that ranks have started."""
        return [int(path.name) for path in (self.faults / "children").iterdir()]

    # Its end ---------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Kill whatever is left."""
        self.family.kill()
        if self.process is not None:
            self.process.wait()

    def assert_nothing_is_left(self) -> None:
        """After a driver's end its processes go, and their ports and descriptors with them."""
        assert self.family.are_gone(), self.family.names()
        ours = [p.name for p in (self.folder / "tmp").iterdir() if not p.name.startswith(_SPARKS_OWN)]
        assert ours == [], "temporary files are left behind"


# A JVM that is killed cannot clear its folder of temporary files; Spark's own are Spark's matter.
_SPARKS_OWN = (
    *("spark-", "blockmgr-", "liblz4", "libzstd", "snappy", "localPyFiles", "pyspark-"),
    "torchinductor_",  # torch's cache, one for a user
)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A section's keys replace those of the base; of a space and of Spark's settings, all of them."""
    merged = dict(base)
    for key, value in changes.items():
        is_section = isinstance(value, Mapping) and key not in ("space", "spark")
        merged[key] = {**base.get(key, {}), **value} if is_section else value
    return merged
