"""Runs functions on executors before the first trial: does Python start there, and what can it import?"""

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
from spark_hpo.timeout import call_within


def missing_modules(cluster: Cluster, names: tuple[str, ...], *, timeout_s: float) -> set[str]:
    """Find the modules that some executor cannot import, in one small job, which also starts Python there.

    Raises:
        CapacityError: no executor ran the job in time.
        Exception: Spark's own, when Python does not start.
    """
    answers = ask(cluster, partial(_missing, names), timeout_s=timeout_s)
    return {name for answer in answers for name in answer}


def ask(cluster: Cluster, question: Callable[[], Any], *, most: int = 10_000, timeout_s: float) -> list[Any]:
    """Call a function on executors, once per slot but at most `most` times.

    Args:
        question: returns a JSON value.

    Raises:
        CapacityError: no executor ran the job in time.
        Exception: Spark's own, when Python does not start, or when the function raises.
    """
    # The package may be missing on executors, so they must not import this function from it.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    tag = f"spark_hpo-probe-{uuid.uuid4().hex[:8]}"

    def run() -> list[Any]:
        cluster.tag(tag, description="spark_hpo: probe of the executors")
        tasks = min(max(1, cluster.num_task_slots(None)), most)
        ranks = cluster.spark.range(0, tasks, 1, tasks)
        rows = ranks.mapInArrow(partial(_answer, question), "json string")
        return [json.loads(row.json) for row in rows.collect()]

    try:
        return call_within(timeout_s, run, thread=cluster.thread)
    except TimeoutError:
        cluster.cancel(tag)
        raise CapacityError(
            f"no executor has run a first small task in {timeout_s:.0f} s. Check that the cluster has free "
            "capacity, and that its machines are large enough for spark.executor.memory and "
            "spark.executor.cores; resources.slot_timeout_s sets how long a study waits"
        ) from None


def _answer(question: Callable[[], Any], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The task."""
    for _ in batches:
        pass
    yield pa.RecordBatch.from_pydict({"json": pa.array([json.dumps(question())], pa.string())})


def _missing(names: tuple[str, ...]) -> list[str]:
    """Looks modules up without importing them, which would take seconds."""
    return [name for name in names if importlib.util.find_spec(name) is None]
