"""The training loop: one trial on one rank, from one resource to the next."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spark_hpo.data.loader import Loader, Pass
from spark_hpo.errors import CheckpointError, TrialError
from spark_hpo.train import generators
from spark_hpo.train.inheritance import inherited
from spark_hpo.train.settings import Precision, TrainingSettings
from spark_hpo.train.task import Batch, TrainTask
from spark_hpo.train.world import World
from spark_hpo.trial import Measurement, Objective


class Trainer:
    """One trial on one rank. All ranks hold the same weights after every step.

    A trace: load_state(...); for measurement in fit(1, 3): ...; state() -> what the checkpoint holds
    """

    def __init__(
        self, task: TrainTask, world: World, settings: TrainingSettings, *, seed: int, total_steps: int
    ) -> None:
        """Build model, optimizer and schedule.

        Args:
            seed: of the trial. Equal on all ranks, so that they start from the same weights.
            total_steps: optimizer steps of a training to the maximum resource, for the schedule.
        """
        self._task = task
        self._world = world
        self._settings = settings
        generators.seed(seed)
        self.model: nn.Module = task.build_model().to(world.device)
        # From here on ranks differ: their dropout masks must.
        generators.seed(seed, world.rank, 1)
        self._optimizer = task.build_optimizer(self.model)
        self._schedule = task.build_schedule(self._optimizer, total_steps=total_steps)
        self._built = copy.deepcopy(self._settings_of_steps())
        self._autocast_type = _autocast_type(settings.precision, world.device)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._autocast_type is torch.float16)
        self.resource = 0  # passes completed
        self._best_loss = math.inf
        self._epochs_since_best = 0
        self._trained = (
            DistributedDataParallel(self.model, device_ids=_device_ids(world))
            if world.is_distributed and any(p.requires_grad for p in self.model.parameters())
            else self.model
        )

    def fit(
        self, start: int, stop: int, *, train: Loader, validation: Loader, objective: Objective
    ) -> Iterator[Measurement]:
        """Train the passes start+1 .. stop and measure after each, or after the last; fewer on a plateau.

        Raises:
            TrialError: the training has diverged, or the task does not report the objective.
        """
        rows, loss_sum, began = 0, 0.0, time.perf_counter()
        for done, batches in enumerate(train.passes(start, stop), start + 1):
            loss_sum += self._train_pass(batches) * batches.total_rows
            rows += batches.total_rows
            self.resource = done
            if done < stop and not self._settings.evaluate_each_pass:
                continue
            metrics = {**self.evaluate(validation), "train_loss": loss_sum / rows}
            loss = _checked_loss(metrics, objective, done)
            if loss < self._best_loss - self._settings.min_improvement:
                self._best_loss, self._epochs_since_best = loss, 0
            else:
                self._epochs_since_best += 1
            yield Measurement(
                resource=done,
                metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
                time=time.time(),
                seconds=time.perf_counter() - began,
                rows=rows,
            )
            if self.is_on_plateau:
                return
            rows, loss_sum, began = 0, 0.0, time.perf_counter()

    @property
    def is_on_plateau(self) -> bool:
        """Whether the objective has not improved for `patience` epochs. The same on all ranks."""
        return self._settings.patience is not None and self._epochs_since_best >= self._settings.patience

    def evaluate(self, loader: Loader) -> dict[str, float]:
        """`loss` and the task's metrics over all rows of all ranks, each row counted once."""
        self.model.eval()
        sums: dict[str, Tensor] = {}
        everything = next(loader.passes(0, 1))
        with torch.inference_mode(), self._autocast():
            for batch in self._on_device(everything):
                outputs = self._task.forward(self.model, batch)
                rows = outputs.shape[0]
                loss = self._task.loss(outputs, batch).detach().double() * rows
                sums["loss"] = sums.get("loss", torch.zeros_like(loss)) + loss
                for name, values in self._task.metrics(outputs, batch).items():
                    if values.shape != (rows,):
                        raise TrialError(
                            f"{type(self._task).__name__}.metrics: {name!r} has shape {tuple(values.shape)}; "
                            f"it must have one value a row, ({rows},)"
                        )
                    total = values.double().sum()
                    sums[name] = sums.get(name, torch.zeros_like(total)) + total
        # In the same order on all ranks: the dictionaries are filled by the same code.
        *totals, rows_read = self._world.sum([*(float(value) for value in sums.values()), everything.rows])
        return {name: total / rows_read for name, total in zip(sums, totals, strict=True)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds. Every rank must call it; rank 0 alone needs to save it."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict() if self._schedule else {},
            "scaler": self._scaler.state_dict(),
            "generators": self._world.gather(generators.capture(self._world.device)),
            "built": self._built,
            "resource": self.resource,
            "plateau": {"best_loss": self._best_loss, "epochs_since_best": self._epochs_since_best},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` stood. With another number of ranks the generators start afresh.

        Where it is another trial's, optimizer and schedule keep the settings that this one has built.

        Raises:
            CheckpointError: it is the checkpoint of another model.
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
            self._best_loss = state["plateau"]["best_loss"]
            self._epochs_since_best = state["plateau"]["epochs_since_best"]
        except (KeyError, RuntimeError, ValueError) as exc:
            raise CheckpointError(f"the checkpoint is not of this task and these parameters: {exc}") from exc
        if len(state["generators"]) == self._world.size:
            generators.restore(state["generators"][self._world.rank], self._world.device)

    def _settings_of_steps(self) -> dict[str, Any]:
        return {
            "groups": self._optimizer.state_dict()["param_groups"],
            "schedule": self._schedule.state_dict() if self._schedule else {},
        }

    def _train_pass(self, batches: Pass) -> float:
        """Train one pass and return the mean loss over the rows of all ranks."""
        self._trained.train()
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        for step, batch in enumerate(self._on_device(batches)):
            with self._autocast():
                outputs = self._task.forward(self._trained, batch)
                loss = self._task.loss(outputs, batch)
            rows = outputs.shape[0]
            total += loss.detach().double() * rows
            # DDP takes the mean over ranks; this makes it the mean over rows.
            share = rows * self._world.size / batches.global_rows(step)
            self._scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call] # torch's gap
            if self._settings.clip_norm is not None:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.clip_norm)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad(set_to_none=True)
            if self._schedule is not None:
                self._schedule.step()
        # Running statistics differ between ranks; the checkpoint has rank 0's, and they are what counts.
        self._world.broadcast(self.model.buffers())
        summed, rows_read = self._world.sum([float(total), batches.rows])
        return summed / rows_read

    def _on_device(self, batches: Pass) -> Iterator[Batch]:
        for batch in batches:
            yield {name: tensor.to(self._world.device, non_blocking=True) for name, tensor in batch.items()}

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast_type is None:
            return contextlib.nullcontext()
        return torch.autocast(self._world.device.type, dtype=self._autocast_type)


def run_epochs(
    trainer: Trainer,
    start: int,
    stop: int,
    *,
    train: Callable[[], Loader],
    validation: Callable[[], Loader],
    objective: Objective,
) -> tuple[Measurement, ...]:
    """All measurements of an assignment. No table is opened when there is nothing to train."""
    if start == stop or trainer.is_on_plateau:
        return ()
    return tuple(trainer.fit(start, stop, train=train(), validation=validation(), objective=objective))


def _checked_loss(metrics: Mapping[str, float], objective: Objective, epoch: int) -> float:
    if (missing := objective.missing(metrics)) is not None:
        raise TrialError(f"{missing}, but the task reports {', '.join(sorted(metrics))}")
    for name in (*objective.metrics, "train_loss"):
        if not math.isfinite(metrics[name]):
            raise TrialError(f"the training has diverged: {name} is {metrics[name]} after epoch {epoch}")
    return objective.loss(metrics)


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
