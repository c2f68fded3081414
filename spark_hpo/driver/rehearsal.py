"""A look ahead: what a study would do, as far as one step of its first trial."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import cloudpickle

from spark_hpo.config import StudyConfig
from spark_hpo.data.table import Table
from spark_hpo.driver.build import Parts
from spark_hpo.errors import BackendError
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.reference import is_task
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_SCRATCH_PREFIX = ".doctor-"  # of a folder in the study directory, for as long as a rehearsal takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """What goes to the executors."""

    assignment_bytes: int  # with each assignment, to each rank
    file_bytes: Mapping[str, int]  # once, by name: the task's code


class Rehearsal:
    """A study without its search: whether it would run. Leaves nothing behind.

    What is raised is what `run_study` would raise. The table must be there: nothing is prepared.
    """

    def __init__(
        self, config: StudyConfig, *, place: str = "study", spark: SparkSession | None = None
    ) -> None:
        self._parts = Parts.of(config, place, spark=spark)

    def check(self) -> None:
        """Settings, search, code and reader, as far as they can be known before Spark starts."""
        self._parts.code()
        self._parts.search()
        self._parts.check_reader()

    def table(self) -> Table | None:
        """The table, with its footers read and its rows planned; None: the study has none."""
        return self._parts.table(may_prepare=False)

    def shipment(self) -> Shipment:
        """What goes to the executors."""
        code, table = self._parts.code(), self._parts.table(may_prepare=False)
        spec = self._parts.spec("doctor", Storage(self._parts.config.study_dir), table, code)
        files = {file.name: file.stat().st_size for file in self._parts.code_files(code)}
        return Shipment(assignment_bytes=len(cloudpickle.dumps(partial(run_rank, spec))), file_bytes=files)

    def first_step(self, timeout_s: float) -> Report | None:
        """One batch through one step of the first trial, where and as it will be trained.

        None: only its training function would know.
        """
        config, code, table = self._parts.config, self._parts.code(), self._parts.table(may_prepare=False)
        if table is None or not is_task(code.trainable):
            return None  # what a training function does first is its own affair
        params = self._parts.search().sampler.ask(0)
        batch_size = int(params.get("batch_size", config.training.batch_size))
        scratch = Storage(f"{config.study_dir.rstrip('/')}/{_SCRATCH_PREFIX}{uuid.uuid4().hex[:8]}")
        spec = self._parts.spec("doctor", scratch, table.for_one_batch(config.resources.world_size), code)
        # An epoch of so many parts has one step in each; nothing stays on the machines.
        parts = max(1, table.manifest(Split.TRAIN).rows // max(batch_size, config.resources.world_size))
        spec = replace(spec, parts=parts, max_resource=1, node_cache=None)
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
            backend = self._parts.backend(spec, code, stack)
            backend.submit(first)
            report = backend.wait(timeout_s)
        if report is None:
            raise BackendError(f"one step of one trial has not ended within {timeout_s:.0f} s")
        return report
