"""TrainContext: the argument of a training function, `def train(ctx)`, that has a loop of its own."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import nn

from spark_hpo.backend.base import DriverContext
from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import TrialError
from spark_hpo.train.rank import RankSetup
from spark_hpo.train.step_coordinator import Stopped
from spark_hpo.train.task import Batch
from spark_hpo.trial import Measurement, Split

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

T = TypeVar("T")


class ResourceRange(NamedTuple):
    """The epochs to train: `for epoch in range(*ctx.resource)`."""

    start: int  # epochs completed by the checkpoint
    stop: int  # epochs completed at the end


class TrainContext:
    """One rank of one assignment, for a training function. The function may train anything, not only torch.

        def train(ctx):
            model = make_model(ctx.params)
            if (checkpoint := ctx.load_checkpoint()) is not None:
                model.load_state_dict(checkpoint)
            if ctx.is_evaluation:
                ctx.report(measure(model, ctx.batches(ctx.split)))
            for epoch in range(*ctx.resource):
                train_one_epoch(model, ctx.batches("train"))
                ctx.report(measure(model, ctx.batches(ctx.split)), checkpoint=model.state_dict())

    With several ranks, torch's default process group is initialized before the function is called, and
    `report` averages the metrics over the ranks. A function may `raise TrialPruned`, on all ranks, to give a
    trial up: the trial ends as stopped. A function that chooses parameters itself assigns them to
    `ctx.params`, and the trial is recorded with these.

    Attributes:
        params: the trial's parameters by name.
        rank: of this process, 0 to `world_size` - 1.
        world_size: the number of ranks of the trial.
        device: the device of this rank, `cpu` or `cuda:N`.
        devices: all devices of this rank; `device` is the first.
        resource: the epochs to train, `(start, stop)`; equal in an evaluation.
        max_resource: epochs of a fully trained trial. It does not depend on the rung, so a learning-rate
            schedule of this length continues when the trial is promoted.
        split: the split on which to measure: validation, or test in the final evaluation.
        fold: of a cross-validation, 1 to `num_folds`: "validation" is the fold, and "train" the other rows.
            None: there are no folds, or this is the final model, whose "train" is all of these rows.
        num_folds: None: there are no folds.
        schema: the columns of the table; None: the study has no table.
        seed: of the trial. torch, numpy and random are seeded from it before the function is called, except
            with `backend: driver`, where the trials that run share these generators.
        trial_id: of the trial.
        spark: with `backend: driver`, the session, whose jobs belong to this trial if this thread starts
            them. None: the function runs on an executor, which has no session.
        num_slots: with `backend: driver`, the task slots that are reserved for this trial
            (`resources.slots_per_trial`): the most tasks that a barrier job, such as a training of XGBoost,
            should ask for. Otherwise 1.
        has_checkpoint: `load_checkpoint` will return a checkpoint, which has not been read yet.
        measurements: what was reported so far, including by earlier attempts.
        checkpoint: the one passed to the last `report`, or None.
        notes: what `note` has recorded, by name.
    """

    def __init__(
        self,
        setup: RankSetup,
        resource: ResourceRange,
        *,
        has_checkpoint: bool,
        load_checkpoint: Callable[[], Any],
        save: Callable[[TrainContext, Any], None],
        curve: Sequence[Measurement] = (),
    ) -> None:
        assignment, world = setup.assignment, setup.world
        self.params = assignment.params
        self.rank = world.rank
        self.world_size = world.size
        self.device: torch.device = world.device
        self.devices = tuple(setup.devices)
        self.resource = resource
        self.max_resource = setup.max_passes
        self.split = setup.measured_split
        self.fold = assignment.fold
        self.num_folds = None if setup.spec.folds is None else setup.spec.folds.folds
        self.schema: TableSchema | None = None if setup.table is None else setup.table.schema
        self.seed = assignment.seed
        self.trial_id = assignment.trial_id
        self.spark: SparkSession | None = None if setup.driver is None else setup.driver.spark
        self.num_slots = 1 if setup.driver is None else setup.driver.num_slots
        self._setup = setup
        self.has_checkpoint = has_checkpoint
        self._load_checkpoint = load_checkpoint
        self._save = save
        self._loaders: dict[tuple[Split, int | None], Loader] = {}
        self._began = time.perf_counter()
        self._rows_trained = 0
        self._folder: Path | None = None
        self.measurements = list(curve)
        self.checkpoint: Any = None
        self.notes: dict[str, Any] = {}
        self.trace: tuple[Measurement, ...] = ()
        """A learning curve in the function's own steps, recorded instead of `measurements`."""

    @property
    def is_evaluation(self) -> bool:
        """True if the function must not train, but load the checkpoint and report its metrics on `split`."""
        return self.resource.start == self.resource.stop

    @property
    def folder(self) -> Path:
        """A temporary folder of this rank, which is deleted at the end of the assignment."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="spark-hpo-"))
        return self._folder

    def close(self) -> None:
        """Delete the temporary folder. Idempotent."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def batches(self, split: Split | str, *, batch_size: int | None = None) -> Iterator[Batch]:
        """Return this rank's batches of one epoch. Every rank gets the same number of batches.

        The epoch is the one after the last report.

        Args:
            split: "train" is shuffled, differently in each epoch; the other splits come in order.
            batch_size: rows per step over all ranks; None: the parameter `batch_size`, else
                `training.batch_size`; for other splits `training.evaluation_batch_size`.

        Returns:
            Mappings of one tensor per column, on the CPU: `[rows]` for scalars (int64 or float32),
            `[rows, *shape]` for arrays (float32).

        Raises:
            TrialError: the study has no table.
            DataError: the table cannot be read.
        """
        key = Split(split), batch_size
        if key not in self._loaders:
            self._loaders[key] = self._setup.open_loader(*key)
        loader = self._loaders[key]
        done = self.measurements[-1].resource if self.measurements else self.resource.start
        batches = next(loader.passes(done, done + 1))
        if key[0] is Split.TRAIN:
            self._rows_trained += batches.total_rows
        return self._counted(batches)

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches of a reader of your own, and measure how long the function waits for each.

        Not needed for `ctx.batches` and for torch's DataLoader, which are always measured.
        """
        return self._setup.waits.timed(batches)

    def frame(self, name: str, make: Callable[[], DataFrame]) -> DataFrame:
        """Return a DataFrame that all trials share, with `backend: driver`.

        It is made by the first trial that asks for it, cached, and released when the study ends.

            rows = ctx.frame("rows", lambda: ctx.spark.read.parquet("s3://bucket/rows"))

        Args:
            name: of the DataFrame in this study.
            make: called at most once in each run of the driver, unless it raises.

        Raises:
            TrialError: the function does not run in the driver.
        """
        return self._driver("frame").frames.get(name, make)

    def fold_frames(self, frame: DataFrame) -> tuple[DataFrame, DataFrame]:
        """Return the training rows and the validation rows of this trial's fold, with `backend: driver`.

        The rows are divided as pyspark.ml's CrossValidator divides them with the study's seed, cached once
        for all folds and trials, and released when the study ends. For the final model both are all rows.

        Args:
            frame: all rows. The same object in all trials: from `ctx.frame`, or defined outside of the
                function.

        Raises:
            TrialError: the function does not run in the driver, or the study has no folds.
        """
        driver = self._driver("fold_frames")
        if self.num_folds is None:
            raise TrialError("ctx.fold_frames: the study has no folds. Set search.resource: folds")
        return driver.frames.fold(frame, self.fold, self.num_folds, seed=self._setup.spec.seed)

    def _driver(self, method: str) -> DriverContext:
        if self._setup.driver is None:
            raise TrialError(f"ctx.{method}: there is no Spark session on an executor. Set backend: driver")
        return self._setup.driver

    def _check_cancelled(self) -> None:
        if self._setup.driver is not None and self._setup.driver.is_cancelled():
            raise Stopped

    def step(self, checkpoint: Callable[[], Any] | None = None) -> None:
        """Signal progress. Not needed by a function that reads its batches from `ctx.batches`.

        A function that does neither is not watched for stalls. Once it has done so, a rank that signals no
        progress for `resources.rank_timeout_s` is killed, and its trial is retried.

        Args:
            checkpoint: returns a checkpoint, as for `report`, from which the function can resume in the
                middle of an epoch. It is called, on all ranks at the same step, when a checkpoint is due, or
                when the driver asks the ranks to stop. All ranks must then make the same number of steps.
                None: the function resumes from its last report.

        Raises:
            StorageError: the checkpoint cannot be saved.
        """
        self._check_cancelled()
        if checkpoint is None:
            self._setup.coordinator.note_progress()
        else:
            self._setup.coordinator.step(partial(self._save_this, checkpoint))

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._setup.coordinator.note_progress()

    def load_checkpoint(self) -> Any:
        """Return the last reported checkpoint; None for a trial that starts from scratch.

        Tensors are on the CPU. A folder is the Path of a local copy, which belongs to the function and is
        deleted at the end of the assignment. `ctx.has_checkpoint` tells if there is one without reading it.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            StorageError: the study directory cannot be read.
        """
        return self._load_checkpoint()

    def report(
        self,
        metrics: Mapping[str, float],
        *,
        resource: int | None = None,
        checkpoint: Any = None,
        rows: float = 1.0,
    ) -> None:
        """Report the metrics of the model after an epoch. Every rank must call it, with the same names.

        Args:
            metrics: numbers by name, as means over this rank's rows. The means over all ranks are recorded.
            resource: completed epochs; None: one more than in the last report.
            checkpoint: bytes, or tensors and plain values in mappings and lists, or the Path of a folder,
                which is copied, so it may change or be deleted after this call. That of rank 0 is saved at
                the end of the assignment, and may be saved before, so that a lost attempt can be resumed.
                Without one, a trial that is promoted or retried starts from scratch. Or a function that
                returns one: it is called on all ranks, and only if the checkpoint is saved.
            rows: the weight of this rank's metrics in the means.

        Raises:
            TrialError: a metric is not a number, or the resource is not above that of the last report, or is
                above `ctx.resource.stop`; or the checkpoint holds what cannot be saved, such as an object
                or, in a folder, a link to a file outside of it.
            StorageError: the checkpoint, or the one before, cannot be saved.
        """
        self._check_cancelled()
        last = self.measurements[-1].resource if self.measurements else self.resource.start
        reached = self.resource.stop if self.is_evaluation else last + 1 if resource is None else resource
        if not self.is_evaluation and not last < reached <= self.resource.stop:
            raise TrialError(
                f"ctx.report: resource must be above {last} and at most {self.resource.stop} "
                f"(got {reached}; ctx.resource is {tuple(self.resource)})"
            )
        try:
            values = [float(value) * rows for value in metrics.values()]
        except (AttributeError, TypeError, ValueError) as exc:
            raise TrialError(f"ctx.report: metrics must be numbers by name (got {metrics!r:.100})") from exc
        *sums, weight = self._setup.world.sum([*values, rows])
        means = {name: value / weight for name, value in zip(metrics, sums, strict=True)}
        now = time.perf_counter()
        self.measurements.append(
            Measurement(
                resource=reached,
                metrics={name: value for name, value in means.items() if math.isfinite(value)},
                time=time.time(),
                seconds=now - self._began,
                rows=self._rows_trained,
            )
        )
        self._began, self._rows_trained = now, 0
        if isinstance(checkpoint, Path) and not self.is_evaluation:
            checkpoint = self._setup.checkpoints.hold(checkpoint)
        self.checkpoint = checkpoint
        if not self.is_evaluation and reached < self.resource.stop:
            save = partial(self._save_this, checkpoint)
            self._setup.coordinator.step(save)
            self._setup.coordinator.end_of_pass(reached, save)

    def note(self, name: str, value: Any) -> None:
        """Record a JSON value with the trial, in `trial.notes` and in the journal. That of rank 0 is kept.

        Raises:
            TrialError: the value cannot be written as JSON.
        """
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise TrialError(f"ctx.note: {name} is not a JSON value: {exc}") from exc
        self.notes[name] = value

    def _save_this(self, checkpoint: Any) -> None:
        value = checkpoint_value(checkpoint)
        if value is not None:  # an attempt cannot resume without one
            self._save(self, value)


def checkpoint_value(checkpoint: Any) -> Any:
    """Return the checkpoint that a function has reported, or that the function it has reported returns."""
    # A module is callable too. Saving it fails, with a message that asks for its state_dict.
    return checkpoint() if callable(checkpoint) and not isinstance(checkpoint, nn.Module) else checkpoint
