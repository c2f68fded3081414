"""The training loop of a task: one trial on one rank, from one resource to the next."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spark_hpo.data.loader import Loader, Pass
from spark_hpo.errors import CheckpointError, TrialError
from spark_hpo.objective import NO_SCORE, Objective, Score
from spark_hpo.train import generators
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.device_batches import on_device, use_channels_last
from spark_hpo.train.evaluation import evaluate
from spark_hpo.train.learner import Learner
from spark_hpo.train.metric_names import ALL_NAMES
from spark_hpo.train.micro_batches import AUTO, MicroBatches
from spark_hpo.train.optimizer_step import OptimizerStep
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.task import TrainTask
from spark_hpo.train.training_settings import TrainingSettings
from spark_hpo.trial import Measurement

Save = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SinceMeasurement:
    """Training since the last measurement: the completed passes, and the pass in progress.

    A partial checkpoint holds it, so that an attempt that resumes in the middle of a pass reports the same
    `train_loss` as one that was never interrupted.

    A trace: 2 ranks, passes of 120 rows in 8 steps, measured after pass 3 only, killed in pass 2:
        attempt 1  pass 1 ends        rows=120 loss_sum=84.0 step=0 rank_loss_sum=0.0
                   saves after step 5 rows=120 loss_sum=84.0 step=5 rank_loss_sum=18.5 (rank 0), 19.5 (rank 1)
        attempt 2  loads that state, skips 5 batches of pass 2, trains the other 3 from 18.5 and 19.5
                   pass 2 ends        rows=240 loss_sum=144.0 step=0 rank_loss_sum=0.0
                   pass 3 ends        rows=360 loss_sum=198.0
                   measures           train_loss = 198.0 / 360; then all fields are 0 again
    """

    rows: int = 0  # of completed passes, over all ranks
    loss_sum: float = 0.0  # over these rows
    step: int = 0  # steps done in the pass in progress
    rank_loss_sum: float = 0.0  # over this rank's rows in these steps
    seconds: float = 0.0  # spent by earlier attempts


@dataclass(eq=False)
class Trainer:
    """Trains one trial on one rank. All ranks have the same weights after every step.

    A trace: load_state(state of epoch 1); fit(3); state() -> the checkpoint of epoch 3;
    curve -> the measurements of epochs 2 and 3
    """

    task: TrainTask
    world: World
    settings: TrainingSettings
    _: KW_ONLY
    seed: int  # of the trial; equal on all ranks, so that they start from the same weights
    total_steps: int  # optimizer steps up to the maximum resource, for the schedule

    def __post_init__(self) -> None:
        world = self.world
        self._checked_task = CheckedTask(self.task)
        generators.seed(self.seed)
        self.model = use_channels_last(self._checked_task.build_model().to(world.device), world.device)
        # From here on the ranks draw different numbers: their dropout masks must differ.
        generators.seed(self.seed, world.rank, 1)
        learning = self.settings.learning
        self._learner = learning and Learner(
            learning, self._checked_task, self.model, world, total_steps=self.total_steps
        )
        self._step = OptimizerStep(
            self._learner.task if self._learner else self._checked_task,
            self.model,
            world=world,
            settings=self.settings,
            total_steps=self.total_steps,
        )
        if self._learner:
            self._learner.follow(self._step.optimizer)
        # Measuring needs less memory than training, and cutting its batches changes no result.
        self._evaluation_parts = MicroBatches(AUTO if self._step.micro_batches.is_auto else None)
        self._built = copy.deepcopy(self._step.settings_state())
        self.resource = 0  # completed passes
        self.curve: list[Measurement] = []  # of this assignment, including earlier attempts
        self._since = _SinceMeasurement()
        self._began = time.perf_counter()
        self._best = NO_SCORE
        self._epochs_since_best = 0

    def fit(
        self,
        stop: int,
        *,
        train: Loader,
        validation: Loader,
        objective: Objective,
        coordinator: StepCoordinator,
        save: Save = lambda state: None,
        outer: Loader | None = None,
    ) -> None:
        """Train until `stop` passes are completed, or until the objective is on a plateau.

        Args:
            validation: measured after each pass, or only after the last one, depending on the settings.
            save: called with a state for `load_partial` whenever the coordinator decides to save.
            outer: the rows that drive outer steps, if hyperparameters are learned.

        Raises:
            TrialError: the training has diverged, or the task does not report the objective.
            Stopped: the driver has asked for it; the state is saved.
        """
        self._began = time.perf_counter()
        if self._learner:
            self._learner.use(outer)
        for done, batches in enumerate(train.passes(self.resource, stop), self.resource + 1):
            pass_loss = self._train_pass(batches, coordinator, save)
            rows = self._since.rows + batches.total_rows
            loss_sum = self._since.loss_sum + pass_loss * batches.total_rows
            self._since = replace(self._since, rows=rows, loss_sum=loss_sum, step=0, rank_loss_sum=0.0)
            self.resource = done
            if done == stop or self.settings.evaluate_each_pass:
                self._measure(validation, objective, coordinator)
            if done == stop or self.is_on_plateau:
                return
            coordinator.end_of_pass(done, lambda: save(self.partial_state()))

    def _measure(self, validation: Loader, objective: Objective, coordinator: StepCoordinator) -> None:
        metrics = {
            **self.evaluate(validation, coordinator),
            **self.learned_values(),
            "train_loss": self._since.loss_sum / self._since.rows,
        }
        score = _checked_score(metrics, objective, self.resource)
        violation, loss = self._best
        if score < (violation, loss - self.settings.min_improvement):
            self._best, self._epochs_since_best = score, 0
        else:
            self._epochs_since_best += 1
        now = time.perf_counter()
        self.curve.append(
            Measurement(
                resource=self.resource,
                metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
                time=time.time(),
                seconds=self._since.seconds + now - self._began,
                rows=self._since.rows,
            )
        )
        self._since, self._began = _SinceMeasurement(), now

    @property
    def is_on_plateau(self) -> bool:
        """True if the objective has not improved for `patience` measurements. Equal on all ranks."""
        return self.settings.patience is not None and self._epochs_since_best >= self.settings.patience

    @property
    def notes(self) -> dict[str, Any]:
        """What the report says about the training: `micro_batch`, if batches had to be halved."""
        return self._step.micro_batches.notes()

    def evaluate(self, loader: Loader, coordinator: StepCoordinator | None = None) -> dict[str, float]:
        """Return `loss` and all metrics over all rows of all ranks.

        Raises:
            TrialError: a metric of the task does not have one value per row.
        """
        return evaluate(
            self._checked_task,
            self._step.loss_module,
            next(loader.passes(0, 1)),
            world=self.world,
            precision=self.settings.precision,
            names=self.settings.metrics,
            parts=self._evaluation_parts,
            on_progress=(lambda: None) if coordinator is None else coordinator.note_progress,
        )

    def learned_values(self) -> dict[str, float]:
        """Return the current values of the learned hyperparameters, as metrics."""
        return self._learner.values() if self._learner else {}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint. Every rank must call this; only rank 0 needs to save it."""
        return {
            "model": self.model.state_dict(),
            **self._step.state(),
            "generators": self.world.gather(generators.capture(self.world.device)),
            "built": self._built,
            **({"learned": self._learner.state()} if self._learner else {}),
            "resource": self.resource,
            "plateau": {
                "best_loss": self._best.loss,
                "best_violation": self._best.violation,
                "epochs_since_best": self._epochs_since_best,
            },
        }

    def partial_state(self) -> dict[str, Any]:
        """Return `state` and the progress within this assignment. Every rank must call this."""
        since = replace(self._since, seconds=self._since.seconds + time.perf_counter() - self._began)
        sums = self.world.gather({"loss": torch.tensor(since.rank_loss_sum, dtype=torch.float64)})
        return {
            **self.state(),
            "since": {**asdict(since), "rank_loss_sum": [float(rank["loss"]) for rank in sums]},
            "curve": [asdict(measurement) for measurement in self.curve],
        }

    def tensor_like(self, key: str) -> Tensor | None:
        """Return the parameter or buffer whose shards a tensor of a checkpoint must have, by its key."""
        kind, _, name = key.partition("/")
        if kind == "model":
            found: Tensor | None = self.model.state_dict().get(name)
            return found
        return self._step.tensor_like(name.removeprefix("state/")) if kind == "optimizer" else None

    def load_partial(self, state: Mapping[str, Any]) -> None:
        """Restore what `partial_state` returned. Training then continues bit for bit.

        Ranks of another number continue at the same step. They share the rows of a pass in another way, so
        some rows of the pass in progress are read twice and others not.

        Raises:
            CheckpointError: the state is of another model.
        """
        self.load_state(state)
        try:
            by_rank = state["since"]["rank_loss_sum"]
            if len(by_rank) != self.world.size:  # only the sum over the ranks counts
                by_rank = [sum(by_rank), *[0.0] * (self.world.size - 1)]
            self._since = _SinceMeasurement(**{**state["since"], "rank_loss_sum": by_rank[self.world.rank]})
            self.curve = [Measurement(**measurement) for measurement in state["curve"]]
        except (KeyError, TypeError, ValueError) as exc:
            raise CheckpointError(f"the checkpoint cannot resume this assignment: {exc}") from exc

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        With another number of ranks the random generators keep their seeds. A state of another trial leaves
        optimizer and schedule with the settings of this one: see `inherited`.

        Raises:
            CheckpointError: the state is of another model.
        """
        try:
            placed = self._step.strategy.place(state["model"], self.model.state_dict())
            self.model.load_state_dict(placed)
            self._step.load_state(state, built=state.get("built"), fresh=self._built)
            if self._learner:
                self._learner.load_state(state["learned"])
            self.resource = state["resource"]
            plateau = state["plateau"]
            self._best = Score.of(plateau["best_loss"], plateau.get("best_violation", 0.0))
            self._epochs_since_best = plateau["epochs_since_best"]
            if len(state["generators"]) == self.world.size:
                generators.restore(state["generators"][self.world.rank], self.world.device)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as exc:
            raise CheckpointError(f"the checkpoint is not of this task and these parameters: {exc}") from exc

    def _train_pass(self, batches: Pass, coordinator: StepCoordinator, save: Save) -> float:
        """Train one pass, or the rest of it, and return the mean loss over the rows of all ranks."""
        self.model.train()
        first, before = self._since.step, self._since.rank_loss_sum
        total = torch.full((), before, dtype=torch.float64, device=self.world.device)

        def save_all() -> None:
            self._since = replace(self._since, step=step + 1, rank_loss_sum=float(total))
            save(self.partial_state())

        rest = itertools.islice(batches, first, None)  # reads and drops the steps of an earlier attempt
        for step, batch in enumerate(batches.timed(on_device(rest, self.world.device)), first):
            rows, loss = self._step(batch, global_rows=batches.global_rows(step))
            if self._learner:
                self._learner.after_step(batch, global_rows=batches.global_rows(step))
            total += loss.double() * rows
            coordinator.step(save_all)
        # Running statistics differ between ranks: use those of rank 0, which the checkpoint holds.
        self.world.broadcast(self.model.buffers())
        summed, rows_read = self.world.sum([float(total), batches.rows])
        return summed / rows_read


def _checked_score(metrics: Mapping[str, float], objective: Objective, epoch: int) -> Score:
    if (missing := objective.missing(metrics)) is not None:
        raise TrialError(f"{missing}, but the task reports {', '.join(sorted(metrics))}")
    for name in ("train_loss", *objective.metrics):
        if math.isnan(metrics[name]) and name in ALL_NAMES and math.isfinite(metrics["loss"]):
            raise TrialError(
                f"{name} is not defined on the validation split: its rows are too few, or all of one class"
            )
        if not math.isfinite(metrics[name]):
            raise TrialError(f"the training has diverged: {name} is {metrics[name]} after epoch {epoch}")
    return objective.score(metrics)
