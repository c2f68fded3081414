"""What runs on an executor: one rank of one assignment."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table
from spark_hpo.errors import CheckpointError, DataError, StorageError, TrialError, TrialPruned
from spark_hpo.objective import Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train import checkpoint, generators
from spark_hpo.train.attempt import Attempt
from spark_hpo.train.context import ResourceRange, TrainContext
from spark_hpo.train.loop import Trainer
from spark_hpo.train.pulse import Pulse, Stopped
from spark_hpo.train.reference import Trainable, find_trainable, is_task
from spark_hpo.train.rendezvous.world import Rendezvous, World, join
from spark_hpo.train.task import TrainTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.watch import Watch
from spark_hpo.trial import Assignment, Failure, FailureKind, Measurement, Meeting, Report, Split

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
_OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "bad_alloc")


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
    rank_timeout_s: float | None = None  # for a step; None: nobody watches, as in the driver's own process


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
    running: list[_Rank] = []  # none, until the ranks have met

    def moves() -> int | None:
        return running[0].moves if running else 0

    try:
        devices = [torch.device("cuda", gpu) for gpu in gpus] or [torch.device("cpu")]
        if gpus:
            torch.cuda.set_device(devices[0])
        key = (
            f"{spec.study_id}/{assignment.trial_id}/{assignment.rung}/{assignment.split}/{assignment.attempt}"
        )
        with (
            Watch(spec.storage, assignment, rank=rank, limit_s=spec.rank_timeout_s, moves=moves),
            join(spec.rendezvous, meeting, key=key, rank=rank, size=world_size, device=devices[0]) as world,
        ):
            running.append(_Rank(spec, assignment, world, devices))
            return running[0].run(report)
    except Stopped:
        return replace(
            report, failure=Failure(kind=FailureKind.INTERRUPTED, message="stopped, as the driver has asked")
        )
    except (Exception, SystemExit) as exc:  # the user's code runs in here
        return replace(running[0].told(report) if running else report, failure=_failure(exc))


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
        self._table = spec.table
        if spec.table is not None and assignment.without:
            self._table = spec.table.without(assignment.without)
        self._attempt = Attempt(spec.storage, assignment, world)
        self._pulse = Pulse(
            world,
            spec.storage,
            epochs=spec.settings.checkpoint_epochs,
            seconds=spec.settings.checkpoint_seconds,
        )
        self._is_watched = True
        self._context: TrainContext | None = None  # of a training function
        self._is_pruned = False

    @property
    def moves(self) -> int | None:
        """Grows while this rank is at work. None: a function that has not shown yet that it moves."""
        return self._pulse.moves if self._is_watched or self._pulse.moves else None

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
            if metrics and name not in finite and not self._is_pruned:
                raise TrialError(f"{name} is {metrics.get(name, 'not reported')} on {split}")
        return replace(
            self.told(report),
            resource=curve[-1].resource if curve else resource,
            metrics=finite,
            # A function without checkpoints starts anew at each rung: it measures some resources twice.
            curve=(self._context.trace if self._context else ())
            or tuple(m for m in curve if m.resource > self._assignment.resource_from),
            checkpoint=self._save(curve, state),
            is_pruned=self._is_pruned,
        )

    def told(self, report: Report) -> Report:
        """The report, with what a training function has said beside its metrics."""
        context = self._context
        if context is None:
            return report
        params = None if context.params is self._assignment.params else context.params
        return replace(report, params=params, notes=context.notes, curve=context.trace)

    def _run_task(self, task_class: type[TrainTask]) -> tuple[int, tuple[Measurement, ...], Any, Any]:
        spec, assignment = self._spec, self._assignment
        assert self._table is not None, "a task needs a table"
        task = task_class(assignment.params, self._table.schema)
        train = self._open(Split.TRAIN)
        trainer = Trainer(
            task,
            self._world,
            self._settings,
            seed=assignment.seed,
            total_steps=train.num_steps(0, spec.max_resource),
        )
        if not self._attempt.resume(trainer.load_partial) and assignment.checkpoint is not None:
            state = checkpoint.load(spec.storage, assignment.checkpoint)
            try:
                trainer.load_state(state)
            except CheckpointError as exc:
                raise CheckpointError(f"{spec.storage.url}/{assignment.checkpoint}: {exc}") from exc
        if trainer.resource < assignment.resource_to and not trainer.is_on_plateau:
            trainer.fit(
                assignment.resource_to,
                train=train,
                validation=self._open(Split.VALIDATION),
                objective=spec.objective,
                pulse=self._pulse,
                save=self._attempt.save_partial,
            )
        curve = tuple(trainer.curve)
        # An evaluation, or a trial that has been on its plateau since the rung below.
        metrics = curve[-1].metrics if curve else trainer.evaluate(self._open(assignment.split), self._pulse)
        return trainer.resource, curve, metrics, trainer.state() if curve else None

    def _run_function(self, function: Any) -> tuple[tuple[Measurement, ...], Any, Any]:
        spec, assignment = self._spec, self._assignment
        self._is_watched = False
        before: dict[str, Any] = {}  # what an earlier attempt has left
        self._attempt.resume(before.update)
        has_state = bool(before) or assignment.checkpoint is not None
        curve = tuple(Measurement(**measurement) for measurement in before.get("curve", ()))
        reached = curve[-1].resource if curve else assignment.resource_from if has_state else 0
        generators.seed(assignment.seed, reached or assignment.resource_from, self._world.rank)
        context = self._context = TrainContext(
            params=assignment.params,
            world=self._world,
            devices=self._devices,
            resource=ResourceRange(reached, assignment.resource_to),
            split=assignment.split,
            schema=self._table.schema if self._table is not None else None,
            open_loader=self._open,
            load_checkpoint=partial(self._load_function_state, before),
            seed=assignment.seed,
            trial_id=assignment.trial_id,
            pulse=self._pulse,
            save=self._save_function,
            curve=curve,
        )
        try:
            returned = function(context)
        except TrialPruned:
            self._is_pruned = True
            measured = tuple(context.measurements)
            return measured, measured[-1].metrics if measured else {}, None
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

    def _save_function(self, context: TrainContext) -> None:
        curve = [asdict(measurement) for measurement in context.measurements]
        self._attempt.save_partial({"function": context.checkpoint, "curve": curve})

    def _load_function_state(self, before: Mapping[str, Any]) -> Any:
        if before:
            return before["function"]
        if self._assignment.checkpoint is None:
            return None
        return checkpoint.load(self._spec.storage, self._assignment.checkpoint)["function"]

    def _open(self, split: Split, batch_size: int | None = None) -> Loader:
        if self._table is None:
            raise TrialError(f"ctx.batches({str(split)!r}): the study has no data section")
        is_training = split is Split.TRAIN
        settings = self._settings
        return Loader(
            self._table,
            split,
            rank=self._world.rank,
            world_size=self._world.size,
            batch_size=batch_size or (settings.batch_size if is_training else settings.evaluation_batch_size),
            seed=self._spec.seed,
            reader=self._spec.reader,
            shuffle_window=self._spec.shuffle_window if is_training else None,
            parts=self._spec.parts if is_training else 1,
            node_cache=self._spec.node_cache,
            moved=self._pulse.move,
        )

    def _save(self, curve: tuple[Measurement, ...], state: Mapping[str, Any] | None) -> str | None:
        if state is None:  # after more training, the old checkpoint would pass for the new model
            return None if curve else self._assignment.checkpoint
        return self._attempt.save(curve[-1].resource, state)


def _failure(exc: BaseException) -> Failure:
    lines = str(exc).strip().splitlines() or [""]
    message = lines[0] if isinstance(exc, (DataError, TrialError)) else f"{type(exc).__name__}: {lines[0]}"
    kind = _kind(exc)
    if kind is FailureKind.MEMORY:
        message = f"out of memory ({message}): a smaller batch_size, or more memory for each rank"
    return Failure(
        kind=kind, message=message, traceback=traceback.format_exc(), file=getattr(exc, "file", None)
    )


def _kind(exc: BaseException) -> FailureKind:
    if isinstance(exc, MemoryError | torch.OutOfMemoryError) or _says(exc, _OUT_OF_MEMORY):
        return FailureKind.MEMORY
    if isinstance(exc, StorageError) and not isinstance(exc, CheckpointError):
        return FailureKind.STORAGE
    # A peer that fails closes its connections: what this rank then sees is not the cause.
    if isinstance(exc, torch.distributed.DistError) or _says(exc, _LOST_PEER):
        return FailureKind.INFRASTRUCTURE
    return FailureKind.DATA if isinstance(exc, DataError) else FailureKind.TRIAL


def _says(exc: BaseException, signs: Sequence[str]) -> bool:
    return isinstance(exc, RuntimeError) and any(sign in str(exc) for sign in signs)
