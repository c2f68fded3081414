"""Substitutes for training that report where they ran and which arguments they received."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
from pyspark import cloudpickle as of_spark

from spark_hpo.backend.base import Backend
from spark_hpo.trial import Assignment, Report

LIMIT_S = 60.0

# Ranks cannot import a module of the tests: what is defined here travels by value.
for pickle in (cloudpickle, of_spark):
    pickle.register_pickle_by_value(sys.modules[__name__])


def assignment(trial_id: int, **params: Any) -> Assignment:
    return Assignment(
        trial_id=trial_id,
        attempt=1,
        params=params,
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=1,
        checkpoint=None,
        seed=0,
    )


def meet(folder: Path, trial_id: int) -> bool:
    """Return True if another trial calls this at the same time."""
    (folder / str(trial_id)).touch()
    deadline = time.monotonic() + LIMIT_S / 2
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(list(folder.iterdir())) == 2


def train(
    assignment: Assignment, *, rank: int, world_size: int, gpus: tuple[int, ...] = (), **_: Any
) -> Report:
    time.sleep(assignment.params.get("seconds", 0.0))
    return Report(
        trial_id=assignment.trial_id,
        attempt=assignment.attempt,
        rung=0,
        resource=1,
        metrics={
            **{f"gpu{i}": gpu for i, gpu in enumerate(gpus)},
            "rank": rank,
            "world_size": world_size,
            "visible": float("CUDA_VISIBLE_DEVICES" in os.environ),
        },
    )


def next_report(backend: Backend) -> Report:
    report = backend.wait(LIMIT_S)
    assert report is not None, f"no report in {LIMIT_S} s"
    return report
