"""What runs on an executor: one rank of one assignment."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from spark_hpo.data.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table
from spark_hpo.errors import CheckpointError, DataError, StorageError, TrialError
from spark_hpo.storage import Storage
from spark_hpo.train import checkpoint, generators
from spark_hpo.train.context import ResourceRange, TrainContext
from spark_hpo.train.loop import Trainer, run_epochs
from spark_hpo.train.reference import Trainable, find_trainable, is_task
from spark_hpo.train.settings import TrainingSettings
from spark_hpo.train.task import TrainTask
from spark_hpo.train.world import Rendezvous, World, join
from spark_hpo.trial import Assignment, Failure, FailureKind, Measurement, Meeting, Objective, Report, Split


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """What all assignments of a study have in common. Travels to the executors with each of them."""

    study_id: str
    storage: Storage  # of the study directory
    trainable: str | Trainable
    table: Table | None  # None: the function brings its own data
    objective: Objective
    settings: TrainingSettings
    max_resource: int
    seed: int  # of the study
    reader: str
    shuffle_window: int  # rows
    parts: int = 1  # passes that make an epoch of the training split
    node_cache: CacheSettings | None = None
    rendezvous: Rendezvous | None = None  # None: every world is of one rank


def run_rank(
    spec: RankSpec,
    assignment: Assignment,
    *,
    rank: int,
    world_size: int,
    gpus: Sequence[int] = (),
    meeting: Meeting | None = None,
) -> Report:
    """Run one rank of an assignment. Never raises: a failure is a report too.

    Args:
        gpus: N of each `cuda:N` that is this rank's, the first for the model; none: it runs on the CPU.
        meeting: how the ranks find each other when `spec.rendezvous` is not on the driver.

    Returns:
        The same metrics on every rank; rank 0 has saved the checkpoint that it names.
    """
    report = Report(
        trial_id=assignment.trial_id,
        attempt=assignment.attempt,
        rung=assignment.rung,
        resource=assignment.resource_from,
        split=assignment.split,
    )
    try:
        devices = [torch.device("cuda", gpu) for gpu in gpus] or [torch.device("cpu")]
        if gpus:
            torch.cuda.set_device(devices[0])
        key = (
            f"{spec.study_id}/{assignment.trial_id}/{assignment.rung}/{assignment.split}/{assignment.attempt}"
        )
        with join(spec.rendezvous, meeting, key=key, rank=rank, size=world_size, device=devices[0]) as world:
            return _Rank(spec, assignment, world, devices).run(report)
    except (Exception, SystemExit) as exc:  # the user's code runs in here
        return replace(report, failure=_failure(exc))


class _Rank:
    def __init__(
        self, spec: RankSpec, assignment: Assignment, world: World, devices: Sequence[torch.device]
    ) -> None:
        self._spec = spec
        self._assignment = assignment
        self._world = world
        self._devices = devices
        batch_size = assignment.params.get("batch_size", spec.settings.batch_size)
        self._settings = replace(spec.settings, batch_size=int(batch_size))

    def run(self, report: Report) -> Report:
        trainable = find_trainable(self._spec.trainable)
        if isinstance(trainable, type) and is_task(trainable):
            resource, curve, metrics, state = self._run_task(trainable)
        else:
            resource = self._assignment.resource_from
            curve, metrics, state = self._run_function(trainable)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        objective, split = self._spec.objective, self._assignment.split
        # The test split judges the model by the first metric: the others may be none of its business.
        wanted = objective.metrics if split is Split.VALIDATION else (objective.metric,)
        for name in wanted:
            if metrics and name not in finite:
                raise TrialError(f"{name} is {metrics.get(name, 'not reported')} on {split}")
        return replace(
            report,
            resource=curve[-1].resource if curve else resource,
            metrics=finite,
            # A function without checkpoints starts anew at each rung: it measures some resources twice.
            curve=tuple(m for m in curve if m.resource > self._assignment.resource_from),
            checkpoint=self._save(curve, state),
        )

    def _run_task(self, task_class: type[TrainTask]) -> tuple[int, tuple[Measurement, ...], Any, Any]:
        spec, assignment = self._spec, self._assignment
        assert spec.table is not None, "a task needs a table"
        task = task_class(assignment.params, spec.table.schema)
        train = self._open(Split.TRAIN)
        trainer = Trainer(
            task,
            self._world,
            self._settings,
            seed=assignment.seed,
            total_steps=train.num_steps(0, spec.max_resource),
        )
        if assignment.checkpoint is not None:
            trainer.load_state(checkpoint.load(spec.storage, assignment.checkpoint))
        curve = run_epochs(
            trainer,
            assignment.resource_from,
            assignment.resource_to,
            train=lambda: train,
            validation=partial(self._open, Split.VALIDATION),
            objective=spec.objective,
        )
        # An evaluation, or a trial that has been on its plateau since the rung below.
        metrics = curve[-1].metrics if curve else trainer.evaluate(self._open(assignment.split))
        return trainer.resource, curve, metrics, trainer.state() if curve else None

    def _run_function(self, function: Any) -> tuple[tuple[Measurement, ...], Any, Any]:
        spec, assignment = self._spec, self._assignment
        generators.seed(assignment.seed, assignment.resource_from, self._world.rank)
        start = assignment.resource_from if assignment.checkpoint is not None else 0
        context = TrainContext(
            params=assignment.params,
            world=self._world,
            devices=self._devices,
            resource=ResourceRange(start, assignment.resource_to),
            split=assignment.split,
            schema=spec.table.schema if spec.table is not None else None,
            open_loader=self._open,
            load_checkpoint=self._load_function_state,
            seed=assignment.seed,
        )
        returned = function(context)
        if isinstance(returned, Mapping) and not context.measurements:
            context.report(returned, resource=assignment.resource_to)
        if not context.measurements:
            if context.is_evaluation:
                return (), {}, None
            raise TrialError(
                "the training function has reported nothing: call ctx.report(...) or return a dict"
            )
        curve = tuple(context.measurements)
        if context.is_evaluation:
            return (), curve[-1].metrics, None
        metrics = curve[-1].metrics
        if (missing := spec.objective.missing(metrics)) is not None:
            names = ", ".join(sorted(metrics)) or "nothing"
            raise TrialError(f"{missing}; the function has reported finite values of {names}")
        state = None if context.checkpoint is None else {"function": context.checkpoint}
        return curve, metrics, state

    def _load_function_state(self) -> Any:
        if self._assignment.checkpoint is None:
            return None
        return checkpoint.load(self._spec.storage, self._assignment.checkpoint)["function"]

    def _open(self, split: Split, batch_size: int | None = None) -> Loader:
        if self._spec.table is None:
            raise TrialError(f"ctx.batches({str(split)!r}): the study has no data section")
        is_training = split is Split.TRAIN
        settings = self._settings
        return Loader(
            self._spec.table,
            split,
            rank=self._world.rank,
            world_size=self._world.size,
            batch_size=batch_size or (settings.batch_size if is_training else settings.evaluation_batch_size),
            seed=self._spec.seed,
            reader=self._spec.reader,
            shuffle_window=self._spec.shuffle_window if is_training else None,
            parts=self._spec.parts if is_training else 1,
            node_cache=self._spec.node_cache,
        )

    def _save(self, curve: tuple[Measurement, ...], state: Mapping[str, Any] | None) -> str | None:
        if state is None:  # after more training, the old checkpoint would pass for the new model
            return None if curve else self._assignment.checkpoint
        assignment = self._assignment
        path = checkpoint.name(assignment.trial_id, curve[-1].resource, assignment.attempt)
        if self._world.rank == 0:  # alone: DDP keeps the parameters equal
            checkpoint.save(self._spec.storage, path, state)
        return path


def _failure(exc: BaseException) -> Failure:
    # A peer that fails closes its connections: what this rank then sees is not the cause.
    is_outage = isinstance(exc, StorageError) and not isinstance(exc, CheckpointError)
    if isinstance(exc, torch.distributed.DistError) or _is_lost_peer(exc) or is_outage:
        kind = FailureKind.INFRASTRUCTURE
    elif isinstance(exc, DataError):
        kind = FailureKind.DATA
    else:
        kind = FailureKind.TRIAL
    lines = str(exc).strip().splitlines() or [""]
    message = lines[0] if isinstance(exc, (DataError, TrialError)) else f"{type(exc).__name__}: {lines[0]}"
    return Failure(kind=kind, message=message, traceback=traceback.format_exc())


def _is_lost_peer(exc: BaseException) -> bool:
    signs = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
    return isinstance(exc, RuntimeError) and any(sign in str(exc) for sign in signs)
