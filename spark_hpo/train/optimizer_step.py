"""One step of the optimizer: a batch forward and backward, then new weights on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spark_hpo.train.autocast import autocast, autocast_type
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.compiled import is_compiled, stop_compiling
from spark_hpo.train.inheritance import inherited
from spark_hpo.train.micro_batches import MicroBatches, free_memory
from spark_hpo.train.rank_failure import is_out_of_memory
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.strategy import LossModule, share_model
from spark_hpo.train.task import Batch
from spark_hpo.train.training_settings import TrainingSettings


@dataclass(eq=False)
class OptimizerStep:
    """The optimizer of a trial, its learning-rate schedule, and the scaler of its gradients.

    A trace: step = OptimizerStep(task, model, ...); step(batch, global_rows=128) -> (64, the mean
    loss of this rank's 64 rows before the step); the weights of all ranks have changed alike
    """

    task: CheckedTask
    model: nn.Module
    _: KW_ONLY
    world: World
    settings: TrainingSettings
    total_steps: int  # up to the maximum resource, for the schedule

    def __post_init__(self) -> None:
        self.micro_batches = MicroBatches(self.settings.micro_batch, world_size=self.world.size)
        if self.settings.compile:
            self.model.compile()  # in place: in its first forward pass, with the names that it has
        self.loss_module = LossModule(self.model, self.task)
        self.strategy = share_model(self.loss_module, self.world, self.settings)
        self._optimizer = self.task.build_optimizer(self.model)
        self._schedule = self.task.build_schedule(self._optimizer, total_steps=self.total_steps)
        uses_fp16 = autocast_type(self.settings.precision, self.world.device) is torch.float16
        self._may_undo = self.micro_batches.is_auto  # the first update
        self._scaler = torch.amp.GradScaler(self.world.device.type, enabled=uses_fp16)

    def __call__(self, batch: Batch, *, global_rows: int) -> tuple[int, Tensor]:
        """Train on a global batch. Every rank must call it.

        Args:
            batch: this rank's share, on its device.
            global_rows: rows of the batch over all ranks.

        Returns:
            This rank's rows, and its mean loss, [].
        """
        while True:
            parts = self.micro_batches.cut(batch, global_rows)
            error: Exception | None = None
            try:
                rows, loss = self._accumulate(parts, global_rows)
            except Exception as exc:  # a driver of a device and a compiler have their own types
                if self._continues_uncompiled(exc):
                    continue
                error = self.micro_batches.caught(exc)
            if not self._did_not_fit(error, global_rows) and self._update(global_rows):
                break
        self._optimizer.zero_grad(set_to_none=True)
        if self._schedule is not None:
            self._schedule.step()
        return rows, loss

    def _continues_uncompiled(self, exc: Exception) -> bool:
        """Stop compiling the model if its backward pass has failed; False: the exception is another one."""
        may_repeat = is_compiled(self.model) and self.strategy.computes_alone
        if not may_repeat or is_out_of_memory(exc):
            return False
        stop_compiling(self.model, exc)
        self._optimizer.zero_grad(set_to_none=True)
        return True

    def _did_not_fit(self, error: Exception | None, global_rows: int) -> bool:
        """Halve the parts of batches if a rank has run out of memory. Every rank must call it."""
        if not (self.micro_batches.is_auto and self.strategy.on_any_rank(error is not None)):
            return False
        self._optimizer.zero_grad(set_to_none=True)
        free_memory()
        self.micro_batches.halve(global_rows, error or MemoryError("on another rank"))
        return True

    def _update(self, global_rows: int) -> bool:
        """Change the weights by the gradients; False: the batch must be tried again, because of memory.

        The first update allocates the state of the optimizer. With `auto` it can be undone.
        """
        is_undoable = self._may_undo and not self._optimizer.state
        before = [p.detach().to("cpu", copy=True) for p in self._parameters()] if is_undoable else []
        error: Exception | None = None
        try:
            self.strategy.finish()
            if self.settings.clip_norm is not None:
                self._scaler.unscale_(self._optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            self._scaler.step(self._optimizer)
        except Exception as exc:  # as above
            if not is_undoable:
                raise
            error = self.micro_batches.caught(exc)
        self._scaler.update()
        if not is_undoable or not self._did_not_fit(error, global_rows):
            self._may_undo = False
            return True
        self._optimizer.state.clear()
        with torch.no_grad():
            for parameter, weights in zip(self._parameters(), before, strict=True):
                parameter.copy_(weights)
        return False

    @property
    def optimizer(self) -> Optimizer:
        """The task's optimizer."""
        return self._optimizer

    def _accumulate(self, parts: Sequence[Batch], global_rows: int) -> tuple[int, Tensor]:
        """Add up the gradients of the parts. Returns this rank's rows, and its mean loss."""

        def backward(module: nn.Module, part: Batch) -> tuple[int, Tensor]:
            with autocast(self.settings.precision, self.world.device):
                outputs, loss = module(part)
            rows = outputs.shape[0]
            # The ranks' gradients are averaged; the weight turns that into the mean over rows.
            weight = rows * self.world.size / global_rows
            self._scaler.scale(loss * weight).backward()
            return rows, loss.detach()

        self.strategy.prepare(lambda module: backward(module, parts[0]))
        done = []
        for number, part in enumerate(parts, 1):
            with self.strategy.accumulating(is_last=number == len(parts)):
                done.append(backward(self.strategy.trained, part))
        if len(done) == 1:
            return done[0]
        rows = sum(rows for rows, _ in done)
        return rows, torch.stack([loss * (count / rows) for count, loss in done]).sum()

    def settings_state(self) -> dict[str, Any]:
        """Return what the parameters of the trial decide: the optimizer's groups, and the schedule."""
        return {
            "groups": self._optimizer.state_dict()["param_groups"],
            "schedule": self._schedule.state_dict() if self._schedule else {},
        }

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict() if self._schedule else {},
            "scaler": self._scaler.state_dict(),
            **self.micro_batches.notes(),
        }

    def tensor_like(self, key: str) -> Tensor | None:
        """Return the parameter that a tensor of the optimizer's state belongs to, by `<index>/<name>`."""
        index, parameters = key.partition("/")[0], self._parameters()
        return parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None

    def _parameters(self) -> list[Tensor]:
        """The parameters by their index in the optimizer's state."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def load_state(self, state: Mapping[str, Any], *, built: Any, fresh: Any) -> None:
        """Restore what `state` returned, with the settings of this trial: see `inherited`.

        Args:
            built: `settings_state` of the checkpoint's trial before it was trained.
            fresh: that of this trial.
        """
        now = {"groups": state["optimizer"]["param_groups"], "schedule": state["schedule"]}
        now = inherited(now, built, fresh)
        parameters = self._parameters()
        place = self.strategy.place
        by_parameter = {
            # An optimizer may keep more than the state of its parameters, under names.
            index: place(values, dict.fromkeys(values, parameters[index]))
            if isinstance(index, int)
            else values
            for index, values in state["optimizer"]["state"].items()
        }
        self._optimizer.load_state_dict(
            {**state["optimizer"], "state": by_parameter, "param_groups": now["groups"]}
        )
        if self._schedule:
            self._schedule.load_state_dict(now["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.micro_batches.load_notes(state)
