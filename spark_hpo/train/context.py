"""What a training function gets: `def train(ctx)`, for those who have their own loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from spark_hpo.data.loader import Loader
from spark_hpo.data.schema import TableSchema
from spark_hpo.errors import TrialError
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.task import Batch
from spark_hpo.trial import Measurement, Params, Split


class ResourceRange(NamedTuple):
    """From which resource to which: `for epoch in range(*ctx.resource)`."""

    start: int  # epochs completed by the checkpoint
    stop: int  # epochs completed at the end


class TrainContext:
    """One rank's view of one assignment. May train anything, not only torch.

        def train(ctx):
            model = make_model(ctx.params)
            if (checkpoint := ctx.load_checkpoint()) is not None:
                model.load_state_dict(checkpoint)
            if ctx.is_evaluation:
                ctx.report(measure(model, ctx.batches(ctx.split)))
            for epoch in range(*ctx.resource):
                train_one_epoch(model, ctx.batches("train"))
                ctx.report(measure(model, ctx.batches(ctx.split)), checkpoint=model.state_dict())

    With several ranks a process group is there already; `report` takes the means over the ranks. A function
    that sees that a trial leads nowhere may `raise TrialPruned` (on all ranks): it ends as stopped.

    A function that chooses parameters itself sets `ctx.params` to what it has used: the trial has those then.
    """

    def __init__(
        self,
        *,
        params: Params,
        world: World,
        devices: Sequence[torch.device],
        resource: ResourceRange,
        split: Split,
        schema: TableSchema | None,
        open_loader: Callable[[Split, int | None], Loader],
        load_checkpoint: Callable[[], Any],
        seed: int,
        trial_id: int,
        coordinator: StepCoordinator,
        save: Callable[[TrainContext], None],
        curve: Sequence[Measurement] = (),
    ) -> None:
        self.params = params
        self.rank = world.rank
        self.world_size = world.size
        self.device: torch.device = world.device
        self.devices = tuple(devices)  # all of this rank's; `device` is the first
        self.resource = resource
        self.split = split  # where metrics are to be taken: validation, or test in an evaluation
        self.schema = schema
        self.seed = seed
        self.trial_id = trial_id
        self._world = world
        self._open_loader = open_loader
        self._load_checkpoint = load_checkpoint
        self._loaders: dict[tuple[Split, int | None], Loader] = {}
        self._began = time.perf_counter()
        self._rows_trained = 0
        self._coordinator = coordinator
        self._save = save
        self.measurements = list(curve)  # by earlier attempts too
        self.checkpoint: Any = None  # the last one that was reported
        self.notes: dict[str, Any] = {}
        self.trace: tuple[Measurement, ...] = ()
        """A learning curve in steps of the function's own, in the place of what was reported."""

    @property
    def is_evaluation(self) -> bool:
        """Whether nothing is to be trained: load the checkpoint and report the metrics on `split`."""
        return self.resource.start == self.resource.stop

    def batches(self, split: Split | str, *, batch_size: int | None = None) -> Iterator[Batch]:
        """This rank's batches of one epoch. Every rank gets the same number of them.

        Args:
            split: "train" is shuffled, anew in each epoch; the others come in order.
            batch_size: rows a step over all ranks; None: `training.batch_size`, or the parameter
                `batch_size`.
        """
        key = Split(split), batch_size
        if key not in self._loaders:
            self._loaders[key] = self._open_loader(*key)
        loader = self._loaders[key]
        done = self.measurements[-1].resource if self.measurements else self.resource.start
        batches = next(loader.passes(done, done + 1))
        if key[0] is Split.TRAIN:
            self._rows_trained += batches.total_rows
        return self._counted(batches)

    def step(self) -> None:
        """Show that the training moves. Not needed where batches come from `ctx.batches`.

        A function that calls neither is watched by nobody; one that does must go on doing so, at least once
        in `resources.rank_timeout_s`.
        """
        self._coordinator.note_progress()

    def _counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch
            self._coordinator.note_progress()

    def load_checkpoint(self) -> Any:
        """What was given to `report` last, on the CPU; None for a trial that starts from scratch."""
        return self._load_checkpoint()

    def report(
        self,
        metrics: Mapping[str, float],
        *,
        resource: int | None = None,
        checkpoint: Any = None,
        rows: float = 1.0,
    ) -> None:
        """Say how good the model is now. Every rank must call it, with the same names.

        What is given as checkpoint may be saved, for another attempt if this one is lost.

        Args:
            metrics: numbers by name; their means over the ranks are kept, weighted by `rows`.
            resource: epochs completed; None: one more than at the last report.
            checkpoint: bytes, or tensors and plain values in mappings and lists. Rank 0's is kept. Without
                one, a promoted trial starts from scratch.
            rows: the weight of this rank's metrics.

        Raises:
            TrialError: a metric is no number, or the resource does not grow or goes past the end.
        """
        last = self.measurements[-1].resource if self.measurements else self.resource.start
        reached = self.resource.stop if self.is_evaluation else last + 1 if resource is None else resource
        if not self.is_evaluation and not last < reached <= self.resource.stop:
            raise TrialError(
                f"ctx.report: resource is {reached}; it must be above {last} and at most "
                f"{self.resource.stop} (ctx.resource is {tuple(self.resource)})"
            )
        try:
            values = [float(value) * rows for value in metrics.values()]
        except (TypeError, ValueError) as exc:
            raise TrialError(f"ctx.report: metrics must be numbers, not {dict(metrics)!r}") from exc
        *sums, weight = self._world.sum([*values, rows])
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
        self.checkpoint = checkpoint
        if not self.is_evaluation and reached < self.resource.stop:
            self._coordinator.step(self._save_this)
            self._coordinator.end_of_pass(reached, self._save_this)

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON value with the trial: in the journal, and in `trial.notes`. Rank 0's counts.

        Raises:
            TrialError: it is none.
        """
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise TrialError(f"ctx.note: {name} is no JSON value: {exc}") from exc
        self.notes[name] = value

    def _save_this(self) -> None:
        if self.checkpoint is not None:  # without one the next attempt has nothing to go on from
            self._save(self)
