"""The training loop of a task: one trial on one rank, from one resource to the next."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from spark_hpo.data.loader import Loader, Pass
from spark_hpo.errors import CheckpointError, TrialError
from spark_hpo.objective import NO_SCORE, Objective, Score
from spark_hpo.train import generators
from spark_hpo.train.inheritance import inherited
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.step_coordinator import StepCoordinator
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.train.training_settings import Precision, TrainingSettings
from spark_hpo.trial import Measurement

Save = Callable[[Mapping[str, Any]], None]

T = TypeVar("T")


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
        task, world, seed = self.task, self.world, self.seed
        generators.seed(seed)
        self.model = self._checked("build_model", task.build_model(), nn.Module).to(world.device)
        # From here on the ranks draw different numbers: their dropout masks must differ.
        generators.seed(seed, world.rank, 1)
        self._optimizer = self._checked("build_optimizer", task.build_optimizer(self.model), Optimizer)
        self._schedule = task.build_schedule(self._optimizer, total_steps=self.total_steps)
        self._built = copy.deepcopy(self._step_settings())
        self._autocast_type = _autocast_type(self.settings.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._autocast_type is torch.float16)
        self.resource = 0  # completed passes
        self.curve: list[Measurement] = []  # of this assignment, including earlier attempts
        self._since = _SinceMeasurement()
        self._began = time.perf_counter()
        self._best = NO_SCORE
        self._epochs_since_best = 0
        self._trained = (
            DistributedDataParallel(self.model, device_ids=_device_ids(world))
            if world.is_distributed and any(p.requires_grad for p in self.model.parameters())
            else self.model
        )

    def fit(
        self,
        stop: int,
        *,
        train: Loader,
        validation: Loader,
        objective: Objective,
        coordinator: StepCoordinator,
        save: Save = lambda state: None,
    ) -> None:
        """Train until `stop` passes are completed, or until the objective is on a plateau.

        Args:
            validation: measured after each pass, or only after the last one, depending on the settings.
            save: called with a state for `load_partial` whenever the coordinator decides to save.

        Raises:
            TrialError: the training has diverged, or the task does not report the objective.
            Stopped: the driver has asked for it; the state is saved.
        """
        self._began = time.perf_counter()
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

    def evaluate(self, loader: Loader, coordinator: StepCoordinator | None = None) -> dict[str, float]:
        """Return `loss` and the task's metrics, as means over all rows of all ranks.

        Raises:
            TrialError: a metric of the task does not have one value per row.
        """
        self.model.eval()
        sums: dict[str, Tensor] = {}
        batches = next(loader.passes(0, 1))
        with torch.inference_mode(), self._autocast():
            for batch in self._on_device(batches):
                outputs, loss = self._outputs_and_loss(self.model, batch)
                rows = outputs.shape[0]
                loss = loss.detach().double() * rows
                sums["loss"] = sums.get("loss", torch.zeros_like(loss)) + loss
                metrics = self._checked("metrics", self.task.metrics(outputs, batch), Mapping)
                for name, values in metrics.items():
                    if not isinstance(values, Tensor) or values.shape != (rows,):
                        raise TrialError(
                            f"{type(self.task).__name__}.metrics: {name!r} must be a tensor of shape "
                            f"({rows},), one value per row (got {_described(values)})"
                        )
                    total = values.double().sum()
                    sums[name] = sums.get(name, torch.zeros_like(total)) + total
                if coordinator is not None:
                    coordinator.note_progress()
        # The ranks agree on the order of `sums`, because the same code fills it everywhere.
        *totals, rows_read = self.world.sum([*(float(value) for value in sums.values()), batches.rows])
        return {name: total / rows_read for name, total in zip(sums, totals, strict=True)}

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint. Every rank must call this; only rank 0 needs to save it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict() if self._schedule else {},
            "scaler": self._scaler.state_dict(),
            "generators": self.world.gather(generators.capture(self.world.device)),
            "built": self._built,
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

    def load_partial(self, state: Mapping[str, Any]) -> None:
        """Restore what `partial_state` returned. Training then continues bit for bit.

        Raises:
            CheckpointError: the state is of another model, or of another number of ranks.
        """
        self.load_state(state)
        try:
            by_rank = state["since"]["rank_loss_sum"]
            if len(by_rank) != self.world.size:
                raise ValueError(f"it was saved by {len(by_rank)} ranks, not by {self.world.size}")
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
            self.model.load_state_dict(state["model"])
            now = {"groups": state["optimizer"]["param_groups"], "schedule": state["schedule"]}
            now = inherited(now, state.get("built"), self._built)
            self._optimizer.load_state_dict({**state["optimizer"], "param_groups": now["groups"]})
            if self._schedule:
                self._schedule.load_state_dict(now["schedule"])
            self._scaler.load_state_dict(state["scaler"])
            self.resource = state["resource"]
            plateau = state["plateau"]
            self._best = Score.of(plateau["best_loss"], plateau.get("best_violation", 0.0))
            self._epochs_since_best = plateau["epochs_since_best"]
            if len(state["generators"]) == self.world.size:
                generators.restore(state["generators"][self.world.rank], self.world.device)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as exc:
            raise CheckpointError(f"the checkpoint is not of this task and these parameters: {exc}") from exc

    def _step_settings(self) -> dict[str, Any]:
        return {
            "groups": self._optimizer.state_dict()["param_groups"],
            "schedule": self._schedule.state_dict() if self._schedule else {},
        }

    def _train_pass(self, batches: Pass, coordinator: StepCoordinator, save: Save) -> float:
        """Train one pass, or the rest of it, and return the mean loss over the rows of all ranks."""
        self._trained.train()
        first, before = self._since.step, self._since.rank_loss_sum
        total = torch.full((), before, dtype=torch.float64, device=self.world.device)

        def save_all() -> None:
            self._since = replace(self._since, step=step + 1, rank_loss_sum=float(total))
            save(self.partial_state())

        rest = itertools.islice(batches, first, None)  # reads and drops the steps of an earlier attempt
        for step, batch in enumerate(self._on_device(rest), first):
            with self._autocast():
                outputs, loss = self._outputs_and_loss(self._trained, batch)
            rows = outputs.shape[0]
            total += loss.detach().double() * rows
            # DDP averages the gradients over ranks; the weight turns that into the mean over rows.
            weight = rows * self.world.size / batches.global_rows(step)
            self._scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call] # missing in torch
            if self.settings.clip_norm is not None:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=True)
            if self._schedule is not None:
                self._schedule.step()
            coordinator.step(save_all)
        # Running statistics differ between ranks: use those of rank 0, which the checkpoint holds.
        self.world.broadcast(self.model.buffers())
        summed, rows_read = self.world.sum([float(total), batches.rows])
        return summed / rows_read

    def _outputs_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self._checked("forward", self.task.forward(model, batch), Tensor)
        loss = self._checked("loss", self.task.loss(outputs, batch), Tensor)
        if loss.ndim > 0:
            raise TrialError(
                f"{type(self.task).__name__}.loss must return a scalar, the mean over the rows of the batch "
                f"(got {_described(loss)})"
            )
        return outputs, loss

    def _checked(self, method: str, value: T, kind: type) -> T:
        """Return what a method of the task has returned, if it has the right type."""
        if not isinstance(value, kind):
            name = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
            raise TrialError(
                f"{type(self.task).__name__}.{method} must return a {name} (got {_described(value)})"
            )
        return value

    def _on_device(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.to(self.world.device, non_blocking=True) for name, tensor in batch.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=self._autocast_type)


def _checked_score(metrics: Mapping[str, float], objective: Objective, epoch: int) -> Score:
    if (missing := objective.missing(metrics)) is not None:
        raise TrialError(f"{missing}, but the task reports {', '.join(sorted(metrics))}")
    for name in (*objective.metrics, "train_loss"):
        if not math.isfinite(metrics[name]):
            raise TrialError(f"the training has diverged: {name} is {metrics[name]} after epoch {epoch}")
    return objective.score(metrics)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.60}"


def _autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    match precision:
        case Precision.BF16:
            return torch.bfloat16
        case Precision.FP16:
            return torch.float16
        case Precision.AUTO if device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.bfloat16
    return None


def _device_ids(world: World) -> list[torch.device] | None:
    return [world.device] if world.device.type == "cuda" else None
