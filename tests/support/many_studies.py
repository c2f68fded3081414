"""Many studies at once in one process, as in a notebook: `many_studies.py FOLDER COUNT`.

Prints one JSON object: the result of each study, the tags of all jobs, the threads that are left, and the
descriptors and ports that one more study has left open.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from spark_hpo.backend.spark.classic import ClassicCluster
from spark_hpo.backend.spark.session import start_session
from spark_hpo.config import StudyConfig, build_config
from spark_hpo.driver.run import run_study
from spark_hpo.errors import StudyInterrupted
from spark_hpo.study import RunningStudy
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Report, Trial
from tests.support.tables import write_clusters

TRIALS = 4
THREADS_LIMIT_S = 30.0


def rows_of(number: int) -> int:
    """Return the number of training rows of a study's own table, which identifies its measurements."""
    return 64 + number


def config(folder: Path, number: int) -> StudyConfig:
    record: dict[str, Any] = {
        "name": f"study-{number}",
        "study_dir": str(folder / f"study-{number}"),
        "seed": number,
        "task": "tabular",
        "data": {"path": str(folder / f"table-{number}")},
        "objective": {"metric": "accuracy", "mode": "max"},
        "space": {"learning_rate": {"type": "loguniform", "low": 0.01, "high": 0.1}},
        "search": {"method": "asha", "max_resource": 3},
        "budget": {"trials": TRIALS},
        "training": {"batch_size": 16},
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "experiment": "many"},
    }
    return build_config(record, place="many")


class InterruptAtOnce(Callback):
    """Raises KeyboardInterrupt in one of the studies."""

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        raise KeyboardInterrupt


def main(folder: Path, count: int) -> None:
    tags: list[str] = []
    real = ClassicCluster.tag

    def tag(cluster: ClassicCluster, *names: str, description: str) -> None:
        tags.append(names[0])
        real(cluster, *names, description=description)

    ClassicCluster.tag = tag  # type: ignore[method-assign]
    settings = {"spark.master": "local[4]", "spark.ui.enabled": "false", "spark.log.level": "OFF"}
    spark = start_session("many", settings)
    for number in range(count):
        write_clusters(folder / f"table-{number}", rows=rows_of(number))
    start = threading.Barrier(count)
    before = set(threading.enumerate())

    def run(number: int) -> str:
        start.wait()
        # One of them is interrupted: that must not touch the others.
        callbacks = [InterruptAtOnce()] if number == 0 else []
        try:
            result = run_study(config(folder, number), callbacks=callbacks)
        except StudyInterrupted:
            return "interrupted"
        except Exception as exc:  # whatever ends a study is what this program tells
            return repr(exc)
        return result.stopped_by if result.is_tracked else "MLflow lacks something"

    with ThreadPoolExecutor(count) as pool:
        ends = list(pool.map(run, range(count)))
    held = held_now()
    ends.append(run_study(config(folder, 0)).stopped_by)
    deadline = time.monotonic() + THREADS_LIMIT_S
    while (left := ours_among(set(threading.enumerate()) - before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = {"ends": ends, "tags": tags, "threads": left, "held": sorted((held_now() - held).elements())}
    print(json.dumps(found), flush=True)
    spark.stop()


def held_now() -> Counter[str]:
    """Return the open files of this process, and the ports on which it and its children listen."""
    here = psutil.Process()
    files = [file.path for file in here.open_files()]
    ports = [
        f"{process.name()} listens on a port"
        for process in (here, *here.children(recursive=True))
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    return Counter([*files, *ports])


def ours_among(threads: set[threading.Thread]) -> list[str]:
    """Return the threads that are ours. Py4J keeps a thread for each connection, and reuses it."""
    return [thread.name for thread in threads if thread.is_alive() and "py4j" not in thread.name.lower()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
