"""Rehearses a study: builds what it needs, and trains one step of its first trial."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import cloudpickle
import numpy as np

from spark_hpo.data.table import Table
from spark_hpo.driver.backends import open_backend
from spark_hpo.driver.build import build_rank_spec, start_spark
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.errors import BackendError
from spark_hpo.search.space import Space
from spark_hpo.search.space.parameter import Choice, Constant
from spark_hpo.study.search import Search
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Params, Report, Split

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_MEASURED_STEPS = 33
_PREDICTED_STEPS = 9
_MAX_DRAWS = 200  # of configurations, until each option has come up
_SCRATCH_PREFIX = ".doctor-"  # of a temporary folder in the study directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """The data that is sent to executors."""

    assignment_bytes: int  # with each assignment, to each rank
    file_bytes: Mapping[str, int]  # once, by name: the user's files of code


def measure_shipment(plan: StudyPlan, table: Table | None) -> Shipment:
    """Measure what a study sends to executors."""
    spec = build_rank_spec(plan, table, Storage(plan.config.study_dir), "doctor")
    files = {file.path.name: file.path.stat().st_size for file in plan.files}
    return Shipment(assignment_bytes=len(cloudpickle.dumps(partial(run_rank, spec))), file_bytes=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a trial trains, as measured in this process."""

    step_s: float  # seconds per batch
    start_s: float  # seconds of an assignment of one batch


def measure_pace(plan: StudyPlan, search: Search, table: Table, *, timeout_s: float) -> Pace | None:
    """Train the first trial for one batch and for several, in this process. Leaves nothing behind.

    Args:
        plan: of a study whose backend is `inline`.

    Returns:
        None if the trial fails, or if it is too slow.

    Raises:
        SparkHpoError: as `run_study`.
    """
    seconds = []
    for steps in (1, 1, _MEASURED_STEPS):  # the first one imports and warms up
        began = time.monotonic()
        try:
            report = run_first_step(plan, search, table, spark=None, timeout_s=timeout_s, steps=steps)
        except BackendError:
            return None
        if report is None or report.failure is not None:
            return None
        seconds.append(time.monotonic() - began)
    _, start_s, several_s = seconds
    return Pace(step_s=max(0.0, several_s - start_s) / (_MEASURED_STEPS - 1), start_s=start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedWait:
    """How long the steps of a trial wait for data, until it is fully trained."""

    share: float  # of the time of its steps, 0..1
    seconds: float


def predict_wait(
    plan: StudyPlan,
    search: Search,
    table: Table,
    first: Report,
    *,
    spark: SparkSession | None,
    timeout_s: float,
) -> PredictedWait | None:
    """Predict how long the steps of the first trial wait for data.

    A few more batches are trained, because the first step of a process also starts the libraries. Reading a
    batch costs its share of the row groups that were decoded for it. A trial pays this in each pass over the
    rows, or only in the first one if the rows are kept in the node cache.

    Args:
        first: the report of one batch.

    Returns:
        None if it cannot be told: the trial fails, or the table has too few rows.

    Raises:
        SparkHpoError: as `run_study`.
    """
    config = plan.config
    ranks, train = config.resources.most_ranks, table.manifest(Split.TRAIN)
    batch_size = int(search.sampler.ask(0).get("batch_size", config.training.batch_size))
    steps = min(_PREDICTED_STEPS, train.rows // batch_size)
    before = first.usage[0] if first.usage else None
    if before is None or before.waited_s is None or before.stepped_s is None or steps < 2:
        return None
    if before.stepped_s * steps > timeout_s:
        return None
    try:
        report = run_first_step(plan, search, table, spark=spark, timeout_s=timeout_s, steps=steps)
    except BackendError:  # slower than expected
        return None
    after = report.usage[0] if report is not None and report.usage else None
    if after is None or after.waited_s is None or after.stepped_s is None:
        return None
    group_rows = train.rows / len(train.row_groups)
    validation_rows = table.for_one_batch(ranks).manifest(Split.VALIDATION).rows
    decoded = math.ceil(steps * batch_size / ranks / group_rows) * group_rows + validation_rows / ranks
    read_s = after.waited_s / decoded * batch_size / ranks
    step_s = (after.stepped_s - before.stepped_s) / (steps - 1)
    if step_s <= 0:  # so fast that it is lost in the noise of the first step
        return None
    is_kept = config.data is not None and config.data.cache.enabled
    folds = config.search.max_resource if config.search.has_folds else 1
    passes = config.search.max_resource // config.search.parts if folds == 1 else folds * config.search.epochs
    waited_s = read_s * (1 if is_kept else passes)
    return PredictedWait(
        share=waited_s / (waited_s + passes * step_s), seconds=waited_s * train.rows / batch_size
    )


def each_option(space: Space, search: Search, seed: int) -> dict[str, Params]:
    """Return the first trial's parameters, and as many others as it takes to have each option of each choice.

    An option that no random configuration within the constraints has is left out.

    Returns:
        Parameters by a name for messages: `the first trial`, `a trial with optimizer option 2`.
    """
    missing = {
        (dimension.key, option)
        for dimension in space.dimensions()
        if isinstance(dimension.parameter, Choice)
        for option in range(len(dimension.parameter.options))
    }
    rng = np.random.default_rng(seed)
    found: dict[str, Params] = {}
    params = search.sampler.ask(0)
    for _ in range(_MAX_DRAWS):
        new = missing & set(space.flatten(params).items())
        if new or not found:
            found[f"a trial with {_options(space, params)}" if found else "the first trial"] = params
            missing -= new
        if not missing:
            break
        params = space.sample(rng)
    return found


def _options(space: Space, params: Params) -> str:
    """The options of all choices in a configuration, in words."""
    point = space.flatten(params)
    chosen = {".".join(map(str, d.path)): d for d in space.dimensions() if d.key in point}
    return ", ".join(
        f"{name} {_option(d.parameter.options[point[d.key]], point[d.key])}"
        for name, d in chosen.items()
        if isinstance(d.parameter, Choice)
    )


def _option(node: object, index: int) -> str:
    """An option: its value, or its number if it is a group."""
    return str(node.value) if isinstance(node, Constant) else f"option {index + 1}"


def run_first_step(
    plan: StudyPlan,
    search: Search,
    table: Table | None,
    *,
    spark: SparkSession | None,
    timeout_s: float,
    steps: int = 1,
    params: Params | None = None,
) -> Report | None:
    """Train one batch of a trial, where and as the study would. Leaves nothing behind.

    Args:
        params: of the trial; None: those of the first one.
        steps: the number of batches to train, if the table has as many.

    Returns:
        The report; None for a training function, which has no step that could be run alone.

    Raises:
        BackendError: the step has not ended in time.
        SparkHpoError: as `run_study`.
    """
    config = plan.config
    if table is None or not plan.has_task:
        return None
    params = search.sampler.ask(0) if params is None else params
    batch_size = int(params.get("batch_size", config.training.batch_size))
    scratch = Storage(f"{config.study_dir.rstrip('/')}/{_SCRATCH_PREFIX}{uuid.uuid4().hex[:8]}")
    spec = build_rank_spec(plan, table.for_one_batch(config.resources.most_ranks), scratch, "doctor")
    # With as many parts as batches, a part has one step; nothing is cached on the machines.
    parts = max(1, table.manifest(Split.TRAIN).rows // (max(batch_size, config.resources.most_ranks) * steps))
    spec = replace(spec, parts=parts, folds=None, max_resource=1, node_cache=None)
    first = Assignment(
        trial_id=0,
        attempt=1,
        params=params,
        bracket=0,
        rung=0,
        resource_from=0,
        resource_to=1,
        checkpoint=None,
        seed=config.seed,
    )
    with ExitStack() as stack:
        stack.callback(scratch.remove)
        session = start_spark(config, spark) if config.needs_spark else None
        backend = stack.enter_context(open_backend(plan, spec, session))
        backend.submit(first)
        report = backend.wait(timeout_s)
    if report is None:
        raise BackendError(f"one step of one trial has not ended within {timeout_s:.0f} s")
    return report
