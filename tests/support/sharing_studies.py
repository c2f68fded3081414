"""Studies in threads of one process that share four slots: `sharing_studies.py FOLDER`.

`heavy` has twice the share of the others and ends early; `late` starts when `heavy` has run some trials. When
all have ended, studies of 1, 2 and 3 ranks run side by side.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

from pyspark.sql import SparkSession

from spark_hpo import tune
from spark_hpo.backend.spark.session import start_session
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Report, Trial

SLOTS = 4
TRIALS = {"heavy": 40, "light": 40, "late": 20}
SHARES = {"heavy": 2.0, "light": 1.0, "late": 1.0}
RANKS = {"one": 1, "two": 2, "three": 3}
TRIALS_OF_RANKS = 3
_BEFORE_LATE = 6
_LIMIT_S = 240.0


def train(ctx: Any) -> None:
    time.sleep(0.4 + ctx.params["x"])
    ctx.report({"loss": ctx.params["x"]}, checkpoint=0.0)


class AfterReports(Callback):
    """Sets an event after a number of reports."""

    def __init__(self, reports: int, event: Event) -> None:
        self._left, self._event = reports, event

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self._left -= 1
        if self._left == 0:
            self._event.set()


def run(name: str, folder: Path, spark: SparkSession, *callbacks: Callback) -> None:
    tune(
        train,
        {"x": {"type": "uniform", "low": 0.0, "high": 0.2}},
        metric="loss",
        mode="min",
        name=name,
        trials=TRIALS.get(name, TRIALS_OF_RANKS),
        max_resource=1,
        world_size=RANKS.get(name, 1),
        search={"sampler": "random", "scheduler": "full"},
        resources={"share": SHARES.get(name, 1.0)},
        storage=str(folder / name),
        mlflow={"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "sharing"},
        spark=spark,
        callbacks=callbacks,
    )


def main(folder: Path) -> None:
    settings = {"spark.master": f"local[{SLOTS}]", "spark.ui.enabled": "false", "spark.log.level": "OFF"}
    spark = start_session("sharing", settings)
    begin = Event()

    def late() -> None:
        assert begin.wait(_LIMIT_S)
        run("late", folder, spark)

    with ThreadPoolExecutor() as threads:
        studies = [
            threads.submit(run, "heavy", folder, spark, AfterReports(_BEFORE_LATE, begin)),
            threads.submit(run, "light", folder, spark),
            threads.submit(late),
        ]
        for study in studies:
            study.result(_LIMIT_S)
        for study in [threads.submit(run, name, folder, spark) for name in RANKS]:
            study.result(_LIMIT_S)
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
