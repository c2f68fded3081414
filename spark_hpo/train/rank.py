"""RankSpec and RankSetup: the inputs and the tools of a rank, for tasks and for training functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from spark_hpo.backend.base import DriverContext
from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table
from spark_hpo.errors import TrialError
from spark_hpo.objective import Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checkpoints.attempt_checkpoints import AttemptCheckpoints
from spark_hpo.train.reference import Trainable
from spark_hpo.train.rendezvous.world import Rendezvous, World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.train.usage.waits import DataWaits
from spark_hpo.trial import Assignment, Split

# Training batches per outer batch: about as much memory as the second derivatives of one need.
_OUTER_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossValidation:
    """The folds whose number the resource counts."""

    folds: int
    epochs: int  # of training, in each fold and for the final model


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """The inputs that all assignments of a study share. Sent to the executors with each assignment."""

    study_id: str
    storage: Storage  # of the study directory
    trainable: str | Trainable
    table: Table | None  # None: the function reads its own data
    objective: Objective
    settings: TrainingSettings
    max_resource: int
    seed: int  # of the study
    reader: str
    shuffle_window: int  # rows
    parts: int = 1  # passes that make an epoch of the training split
    folds: CrossValidation | None = None  # None: the resource counts passes
    node_cache: CacheSettings | None = None
    rendezvous: Rendezvous | None = None  # None: every assignment has one rank
    rank_timeout_s: float | None = None  # for a step; None: not watched, as in the driver's own process


@dataclass(eq=False)
class RankSetup:
    """One rank of one assignment: its peers, its data, its settings and its checkpoints."""

    spec: RankSpec
    assignment: Assignment
    world: World
    devices: Sequence[torch.device]
    driver: DriverContext | None = None  # None: the rank has a process of its own
    waits: DataWaits = field(default_factory=DataWaits)

    def __post_init__(self) -> None:
        spec, assignment = self.spec, self.assignment
        batch_size = assignment.params.get("batch_size", spec.settings.batch_size)
        self.settings = replace(spec.settings, batch_size=int(batch_size))
        self.table = spec.table
        if spec.table is not None and assignment.excluded_files:
            self.table = spec.table.without(assignment.excluded_files)
        if self.table is not None and spec.folds is not None:
            if assignment.fold is not None:
                self.table = self.table.fold(assignment.fold, spec.folds.folds, spec.seed)
            else:
                self.table = self.table.for_final()
        self._outer_table: Table | None = None
        learning = spec.settings.learning
        if self.table is not None and learning is not None and learning.needs_validation:
            self.table, self._outer_table = self.table.halved(spec.seed)
        self.coordinator = StepCoordinator(
            self.world,
            spec.storage,
            epochs=spec.settings.checkpoint_epochs,
            seconds=spec.settings.checkpoint_seconds,
            is_saving=lambda: self.checkpoints.is_saving,
        )
        # A rank that waits for an upload is at work as long as the upload makes progress.
        storage = spec.storage.with_progress(self.coordinator.note_progress)
        self.checkpoints = AttemptCheckpoints(storage, assignment, self.world)

    @property
    def passes(self) -> tuple[int, int]:
        """Passes that are completed at the begin and at the end of the assignment."""
        assignment, folds = self.assignment, self.spec.folds
        if folds is None:
            return assignment.resource_from, assignment.resource_to
        return (folds.epochs if assignment.is_evaluation else 0), folds.epochs

    @property
    def max_passes(self) -> int:
        """Passes of a fully trained model."""
        return self.spec.max_resource if self.spec.folds is None else self.spec.folds.epochs

    @property
    def measured_split(self) -> Split:
        """The split on which the assignment measures. A final model is measured on rows that it has seen."""
        return Split.VALIDATION if self.assignment.is_final else self.assignment.split

    def resource_after(self, passes: int) -> int:
        """Return the resource that is completed after these passes."""
        return passes if self.spec.folds is None else self.assignment.resource_to

    def save(self, passes: int, state: Mapping[str, Any]) -> str | None:
        """Save a trained model, and return its path; None: nobody needs the model of a fold."""
        if self.assignment.fold is None:
            return self.checkpoints.save(passes, state)
        self.checkpoints.delete_partial()
        return None

    def open_outer_loader(self) -> Loader | None:
        """This rank's share of the validation rows that drive outer steps, shuffled; None: there are none.

        These rows are not in the validation split that `open_loader` reads.
        """
        if self._outer_table is None:
            return None
        rows = min(_OUTER_BATCHES * self.settings.batch_size, self.settings.evaluation_batch_size)
        return self._loader(self._outer_table, Split.VALIDATION, rows, self.spec.shuffle_window, parts=1)

    def open_loader(self, split: Split, batch_size: int | None = None) -> Loader:
        """This rank's share of a split.

        Args:
            batch_size: rows per step over all ranks; None: the setting for this split.

        Raises:
            TrialError: the study has no table.
        """
        if self.table is None:
            raise TrialError(f"ctx.batches({str(split)!r}): the study has no data section")
        is_training = split is Split.TRAIN
        default = self.settings.batch_size if is_training else self.settings.evaluation_batch_size
        return self._loader(
            self.table,
            split,
            batch_size or default,
            self.spec.shuffle_window if is_training else None,
            parts=self.spec.parts if is_training else 1,
        )

    def _loader(
        self, table: Table, split: Split, batch_size: int, shuffle_window: int | None, *, parts: int
    ) -> Loader:
        return Loader(
            table,
            split,
            rank=self.world.rank,
            world_size=self.world.size,
            batch_size=batch_size,
            seed=self.spec.seed,
            reader=self.spec.reader,
            shuffle_window=shuffle_window,
            parts=parts,
            node_cache=self.spec.node_cache,
            on_progress=self.coordinator.note_progress,
            timed=self.waits.timed,
        )

    def checked_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The finite metrics. An empty mapping passes: an evaluation may report nothing.

        Raises:
            TrialError: an objective is missing or is not finite.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        objective, split = self.spec.objective, self.assignment.split
        # On the test split only the first objective counts: others, such as a latency, may not apply to it.
        required = objective.metrics if split is Split.VALIDATION else (objective.metric,)
        for name in required:
            if metrics and name not in finite:
                raise TrialError(f"{name} is {metrics.get(name, 'not reported')} on {split}")
        return finite
