"""A look at the executors before the first trial: does their Python start, and what can it import?"""

from __future__ import annotations

import importlib.util
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark import cloudpickle

from spark_hpo.backend.spark.cluster import Cluster
from spark_hpo.errors import CapacityError

_CANCEL_LIMIT_S = 10.0


def missing_modules(cluster: Cluster, names: tuple[str, ...], *, timeout_s: float) -> set[str]:
    """Which of some modules an executor cannot import. One small job; it also starts Python's daemons there.

    Raises:
        CapacityError: no executor ran it in time.
        Exception: Spark's own, when Python does not start.
    """
    answers = ask(cluster, partial(_missing, names), timeout_s=timeout_s)
    return {name for answer in answers for name in answer}


def ask(cluster: Cluster, question: Callable[[], Any], *, most: int = 10_000, timeout_s: float) -> list[Any]:
    """What a function returns on executors, once for each slot or `most` times. JSON can hold it.

    Raises:
        CapacityError: no executor ran it in time.
        Exception: Spark's own, when Python does not start, or when the function raises.
    """
    # What finds out whether the package is there must not come from it.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    answers: list[list[Any]] = []
    failures: list[Exception] = []
    tag = f"spark_hpo-probe-{uuid.uuid4().hex[:8]}"

    def run() -> None:
        try:
            cluster.tag(tag, "spark_hpo: a look at the executors")
            tasks = min(max(1, cluster.num_task_slots(None)), most)
            rows = cluster.spark.range(0, tasks, 1, tasks).mapInArrow(
                partial(_answer, question), "json string"
            )
            answers.append([json.loads(row.json) for row in rows.collect()])
        except Exception as exc:  # whatever it is, it is raised where somebody waits for it
            failures.append(exc)

    thread = cluster.thread(run)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        cluster.cancel(tag)
        thread.join(_CANCEL_LIMIT_S)
    if answers:
        return answers[0]
    if failures and not thread.is_alive():
        raise failures[0]
    raise CapacityError(
        f"no executor has run a first small task in {timeout_s:.0f} s: is the cluster full, or are its "
        "machines too small for spark.executor.memory and spark.executor.cores? "
        "resources.slot_timeout_s is how long a study waits"
    )


def _answer(question: Callable[[], Any], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The task."""
    for _ in batches:
        pass
    yield pa.RecordBatch.from_pydict({"json": pa.array([json.dumps(question())], pa.string())})


def _missing(names: tuple[str, ...]) -> list[str]:
    """Never imports the modules: that would take seconds."""
    return [name for name in names if importlib.util.find_spec(name) is None]
