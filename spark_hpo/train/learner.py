"""The outer loop of a trial: it learns hyperparameters while the inner loop trains the weights.

After every `Learning.every` optimizer steps, an outer step moves the learned hyperparameters against the
gradient of the validation loss (`hypergradient`). The loss of the inner loop depends on them: through the
task, which reads `TrainTask.learned`, and through the penalty of a learned weight decay, which is added here.
The learning rate is learned from the steps themselves (`learned_rate`).

The implicit function theorem assumes that the weights minimise the training loss, penalty included. Early in
the training they do not, and the gradient asks for too little regularisation, so outer steps begin after
`Learning.warmup` steps. Later they do so approximately, whatever the optimizer: SGD with momentum and AdamW
have the same minima. A decoupled weight decay moves the weights away from them, so the optimizer's own is
switched off where weight decay is learned.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from spark_hpo.data.loader import Loader
from spark_hpo.errors import TrialError
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.hypergradient import gradient, implicit_gradient
from spark_hpo.train.learned_rate import LearnedRate
from spark_hpo.train.learned_values import LayerDecay, LearnedValue
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import Batch
from spark_hpo.train.training_settings import LEARNING_RATE, WEIGHT_DECAY, Learning


@dataclass(frozen=True, slots=True)
class LearningTask(CheckedTask):
    """A task whose loss depends on the learned hyperparameters while the model is in training mode."""

    values: Mapping[str, LearnedValue]
    decay: LayerDecay | None

    def outputs_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs, [rows, ...], and the loss, a scalar: in training with the penalty of decay."""
        if not model.training:  # the validation loss must not depend on hyperparameters
            return CheckedTask.outputs_and_loss(self, model, batch)
        positions = {name: value.position for name, value in self.values.items()}
        return self.outputs_and_loss_at(positions, model, batch)

    def outputs_and_loss_at(
        self, positions: Mapping[str, Tensor], model: nn.Module, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the same with the hyperparameters at other positions, or at ones that require gradients."""
        dtype = next(model.parameters()).dtype
        learned = {name: self.values[name].value(at).to(dtype) for name, at in positions.items()}
        self.task.learned = learned
        try:
            outputs, loss = CheckedTask.outputs_and_loss(self, model, batch)
        finally:
            self.task.learned = {}
        if self.decay is not None:
            loss = loss + self.decay.penalty(learned[WEIGHT_DECAY])
        return outputs, loss


class Learner:
    """Learns the hyperparameters of one trial on one rank. They are equal on all ranks.

    A trace: Learner(...); an optimizer for `task` is built; follow(optimizer); after each of its steps
    after_step(batch, ...), of which every 20th is followed by an outer step; values() -> the numbers so far
    """

    def __init__(
        self, learning: Learning, task: CheckedTask, model: nn.Module, world: World, *, total_steps: int
    ) -> None:
        """
        Args:
            model: not wrapped, because wrappers cannot be differentiated twice.
            total_steps: optimizer steps up to the maximum resource.

        Raises:
            TrialError: the model has no layer whose weights could decay.
        """
        self._learning, self._world, self._model = learning, world, model
        self._warmup, self._outer_rate = learning.first_step(total_steps), learning.outer_rate(total_steps)
        params = task.task.params
        named = {parameter.name: parameter for parameter in learning.parameters}
        self._rate_parameter = named.pop(LEARNING_RATE, None)
        self._decay = LayerDecay(model) if WEIGHT_DECAY in named else None
        layers = 0 if self._decay is None else len(self._decay.names)
        self._values = {
            name: LearnedValue.starting_at(p, params.get(name, p.start), layers, world.device)
            for name, p in named.items()
        }
        self.task = LearningTask(task.task, self._values, self._decay)
        """The task that the inner loop has to train."""
        self._outer_optimizer = torch.optim.Adam(
            [value.position for value in self._values.values()] or [torch.zeros(())], lr=self._outer_rate
        )
        self._rate: LearnedRate | None = None
        self._steps = 0
        self._outer_batches: _OuterBatches | None = None

    def follow(self, optimizer: Optimizer) -> None:
        """Take over the learning rate and the weight decay of the optimizer, where they are learned."""
        if self._decay is not None:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
        if self._rate_parameter is not None:
            step = self._outer_rate / self._learning.every
            self._rate = LearnedRate(self._rate_parameter, optimizer, rate=step)

    def use(self, loader: Loader | None) -> None:
        """Set the rows that drive outer steps; None: no outer step is needed."""
        self._outer_batches = None if loader is None else _OuterBatches(loader)

    def after_step(self, batch: Batch, *, global_rows: int) -> None:
        """Count a step of the optimizer, and make the outer step that is due. Every rank must call this.

        Args:
            batch: this rank's share of the rows that the step has trained on, on its device.
            global_rows: rows of the batch over all ranks.

        Raises:
            TrialError: the loss does not depend on a hyperparameter, or cannot be differentiated twice.
        """
        self._steps += 1
        if not self._values:
            return
        if self._steps == 1:
            self._check_dependence(batch)
        if self._steps > self._warmup and self._steps % self._learning.every == 0:
            self._outer_step(batch, global_rows)

    def values(self) -> dict[str, float]:
        """Return the current values as metrics: `learned.<name>`, or `learned.<name>.<layer>`."""
        found: dict[str, float] = {}
        for name, value in self._values.items():
            numbers = value.value(value.position)
            if value.parameter.by_layer:
                assert self._decay is not None, "only weight decay has a value for each layer"
                layers = zip(self._decay.names, numbers.tolist(), strict=True)
                found |= {f"learned.{name}.{layer}": number for layer, number in layers}
            else:
                found[f"learned.{name}"] = float(numbers)
        if self._rate is not None:
            found[f"learned.{LEARNING_RATE}"] = float(self._rate.value.value(self._rate.value.position))
        return found

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "positions": {name: value.position.clone() for name, value in self._values.items()},
            "optimizer": self._outer_optimizer.state_dict(),
            "rate": None if self._rate is None else self._rate.state(),
            "steps": self._steps,
            "values": self.values(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it is of other hyperparameters or of another model.
        """
        for name, value in self._values.items():
            value.position.copy_(state["positions"][name])
        self._outer_optimizer.load_state_dict(state["optimizer"])
        if self._rate is not None:
            self._rate.load_state(state["rate"])
        self._steps = state["steps"]

    def _check_dependence(self, batch: Batch) -> None:
        positions = self._positions()
        with _twice_differentiable(self._model):
            _, loss = self.task.outputs_and_loss_at(positions, self._model, batch)
            slopes: tuple[Tensor | None, ...] = (None,) * len(positions)
            if loss.requires_grad:
                slopes = torch.autograd.grad(loss, list(positions.values()), allow_unused=True)
        for name, slope in zip(positions, slopes, strict=True):
            if slope is None:
                raise TrialError(
                    f"{name} cannot be learned, because the loss of {type(self.task.task).__name__} does not "
                    f"depend on it: use self.learned[{name!r}] in forward or loss, without detaching it, or "
                    "remove it from search.learn"
                )

    def _outer_step(self, batch: Batch, global_rows: int) -> None:
        assert self._outer_batches is not None, "the rank opens the rows of outer steps"
        world, model = self._world, self._model
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        number = self._steps // self._learning.every - 1
        outer, outer_rows = self._outer_batches.batch(number, world.device)
        positions = self._positions()
        try:
            with _twice_differentiable(model):
                model.eval()
                outputs, loss = self.task.outputs_and_loss(model, outer)
                slopes = gradient(loss * (outputs.shape[0] / outer_rows), weights, world.total)
                model.train()
                outputs, loss = self.task.outputs_and_loss_at(positions, model, batch)
                found = implicit_gradient(
                    loss * (outputs.shape[0] / global_rows),
                    slopes,
                    weights,
                    list(positions.values()),
                    terms=self._learning.terms,
                    total=world.total,
                )
        except RuntimeError as exc:
            if "derivative" not in str(exc) and "double backward" not in str(exc):
                raise
            raise TrialError(
                f"the loss of {type(self.task.task).__name__} cannot be differentiated twice, which "
                f"method: hypergradient needs: {exc}"
            ) from exc
        if not all(torch.isfinite(slope).all() for slope in found):
            return  # the weights have diverged, which the next measurement reports
        for value, slope in zip(self._values.values(), found, strict=True):
            value.position.grad = slope
        self._outer_optimizer.step()
        for value in self._values.values():
            value.position.clamp_(0, 1)
            value.position.grad = None

    def _positions(self) -> dict[str, Tensor]:
        return {name: value.position.clone().requires_grad_() for name, value in self._values.items()}


class _OuterBatches:
    """The batches of outer steps, by number: passes over a loader, one after another."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._steps = loader.num_steps(0, 1)  # of a pass
        self._next = -1
        self._batches: Iterator[Batch] = iter(())

    def batch(self, number: int, device: torch.device) -> tuple[Batch, int]:
        """Return this rank's share of a batch, and its rows over all ranks."""
        number_of_pass, step = divmod(number, self._steps)
        rows = next(self._loader.passes(number_of_pass, number_of_pass + 1))
        if number != self._next or step == 0:
            self._batches = itertools.islice(rows, step, None)
        self._next = number + 1
        batch = {name: tensor.to(device) for name, tensor in next(self._batches).items()}
        return batch, rows.global_rows(step)


@contextlib.contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Choose kernels that have second derivatives, and leave the running statistics as they are."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    has_recurrence = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if has_recurrence:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
