"""How the ranks of a trial share its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spark_hpo.errors import TrialError
from spark_hpo.train import generators
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.compiled import is_compiled, stop_compiling
from spark_hpo.train.micro_batches import AUTO
from spark_hpo.train.rank_failure import is_out_of_memory
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.task import Batch
from spark_hpo.train.training_settings import StrategyKind, TrainingSettings

Backward = Callable[[nn.Module], Any]
"""Runs the forward and backward pass of a step through a `LossModule`, which may be wrapped."""


class LossModule(nn.Module):
    """A model with its task's loss.

    The ranks share this module instead of the model alone, so that a task may call any part of its model,
    and what the loss does not use counts as unused.
    """

    def __init__(self, model: nn.Module, task: CheckedTask) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the outputs, [rows, ...] and detached, and the loss, a scalar."""
        try:
            outputs, loss = self.task.outputs_and_loss(self.model, batch)
        except Exception as exc:  # a compiler may raise anything
            if not is_compiled(self.model) or is_out_of_memory(exc):
                raise
            stop_compiling(self.model, exc)
            outputs, loss = self.task.outputs_and_loss(self.model, batch)
        return outputs.detach(), loss


class Strategy:
    """How ranks share a model. A single rank trains it as it is.

    A trace of a step on one of two ranks:
        prepare(backward)  before the first step: finds out which parameters a step uses
        backward(trained)  for each part of the batch; the gradients are averaged over the ranks
        finish()           checks them
    """

    def __init__(self, model: LossModule, world: World) -> None:
        self._model = model
        self._world = world

    @property
    def trained(self) -> nn.Module:
        """The `LossModule` as it is trained."""
        return self._model

    @property
    def computes_alone(self) -> bool:
        """True if a rank may repeat its backward pass, because no other rank takes part in it."""
        return True

    def place(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of a checkpoint as this rank needs them: whole, or its shards.

        Args:
            like: the present values by name. A value of another shape stays whole.
        """
        return values

    def prepare(self, backward: Backward) -> None:
        """Prepare for the first step. Every rank must call it; later calls do nothing."""

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context for one part of a batch. Gradients may stay on the rank until the last part."""
        return nullcontext()

    def on_any_rank(self, flag: bool) -> bool:
        """True if the flag is set on any rank that waits for this one."""
        return flag

    def finish(self) -> None:
        """End the backward pass of a step.

        Raises:
            TrialError: the gradients of the ranks would differ.
        """


def share_model(model: LossModule, world: World, settings: TrainingSettings) -> Strategy:
    """Share a model between the ranks. The optimizer must be built afterwards.

    Raises:
        TrialError: the model cannot be sharded.
    """
    if not world.is_distributed or not any(p.requires_grad for p in model.parameters()):
        return Strategy(model, world)
    if settings.strategy is StrategyKind.FSDP:
        return FullySharded(model, world)
    if settings.micro_batch == AUTO:
        return ExchangeAfterBackward(model, world)
    return DataParallel(model, world)


class DataParallel(Strategy):
    """Every rank has the whole model. DDP averages the gradients over the ranks during the backward pass.

    A hyperparameter may turn a branch of the model off. DDP waits for the gradients of all parameters unless
    it searches the graph of every step, which costs time. So the first batch is tried out: only a trial that
    leaves parameters out pays for the search.
    """

    def __init__(self, model: LossModule, world: World) -> None:
        super().__init__(model, world)
        self._shared: DistributedDataParallel | None = None
        self._searches_graph = False

    @property
    def trained(self) -> nn.Module:
        assert self._shared is not None, "prepare comes before the first step"
        return self._shared

    @property
    def computes_alone(self) -> bool:
        return self._shared is None  # while the first batch is tried out

    def prepare(self, backward: Backward) -> None:
        if self._shared is not None:
            return
        unused = len(_unused_parameters(self._model, backward, self._world.device))
        (total,) = self._world.sum([unused])
        self._searches_graph = total > 0
        self._shared = DistributedDataParallel(
            self._model,
            device_ids=[self._world.device] if self._world.device.type == "cuda" else None,
            find_unused_parameters=self._searches_graph,
        )

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[None]:
        assert self._shared is not None
        context: AbstractContextManager[None] = nullcontext() if is_last else self._shared.no_sync()
        return context

    def finish(self) -> None:
        if self._searches_graph:
            return
        if (left_out := _without_gradient(self._model.model)) is not None:
            raise TrialError(
                f"a step did not use the parameter {left_out!r}, but the first step of this assignment used "
                "all parameters; with several ranks, let all steps of a trial use the same ones, for example "
                "by adding 0 * output.sum() for each part of the model that a step leaves out"
            )


class ExchangeAfterBackward(Strategy):
    """Every rank has the whole model. The gradients are averaged when all ranks have computed theirs.

    A rank that runs out of memory would leave its peers waiting in the backward pass of DDP. Here the ranks
    first agree that all have succeeded, and on the parameters that any of them has used.
    """

    def __init__(self, model: LossModule, world: World) -> None:
        super().__init__(model, world)
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def on_any_rank(self, flag: bool) -> bool:
        return self._world.sum([flag]) > [0.0]

    def finish(self) -> None:
        used = self._world.sum([p.grad is not None for p in self._parameters])
        gradients = []
        for parameter, ranks in zip(self._parameters, used, strict=True):
            if ranks and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        torch._foreach_div_(gradients, self._world.size)


class FullySharded(Strategy):
    """Every rank keeps a part of the parameters, gradients and optimizer state (FSDP2).

    The parameters become `DTensor`s. A module that the task names gets its whole parameters only while it
    computes. All ranks must use the same parameters in a step.
    """

    def __init__(self, model: LossModule, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # seconds, which other strategies need not wait

        super().__init__(model, world)
        mesh = init_device_mesh(world.device.type, (world.size,))
        try:
            for module in (*model.task.modules_to_shard(model.model), model):
                fully_shard(module, mesh=mesh)
        except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as exc:
            raise TrialError(
                f"training.strategy: fsdp cannot shard the model of {type(model.task.task).__name__}: {exc}; "
                "change the model or what modules_to_shard returns, or use training.strategy: ddp"
            ) from exc

    @property
    def computes_alone(self) -> bool:
        return False

    def place(self, values: Mapping[str, Any], like: Mapping[str, Any]) -> Mapping[str, Any]:
        from torch.distributed.tensor import DTensor, distribute_tensor

        def placed(value: Any, present: Any) -> Any:
            is_whole = isinstance(value, Tensor) and not isinstance(value, DTensor)
            if not (is_whole and isinstance(present, DTensor) and value.shape == present.shape):
                return value
            whole = value.to(present.device)
            return distribute_tensor(whole, present.device_mesh, present.placements, src_data_rank=None)

        return {name: placed(value, like.get(name)) for name, value in values.items()}


def _unused_parameters(model: nn.Module, backward: Backward, device: torch.device) -> list[str]:
    """Return the parameters that a step does not use. Leaves no trace in model and random generators."""
    states = generators.capture(device)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        backward(model)
        return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    finally:
        model.zero_grad(set_to_none=True)
        generators.restore(states, device)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _without_gradient(model: nn.Module) -> str | None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            return name
    return None
