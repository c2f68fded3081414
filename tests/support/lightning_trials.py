"""Trials that train a LightningModule on two clouds of points."""

from __future__ import annotations

import inspect
import os
import resource
import signal
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from spark_hpo.integrations.lightning import fit


def points(rows: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(0, 2, (rows,), generator=generator)
    return TensorDataset(torch.randn(rows, 2, generator=generator) + side[:, None], side)


class Points(LightningDataModule):
    """Rows for one rank. A sampler may order them alike for any number of ranks; None: Lightning does."""

    def __init__(self, batch_size: int, sampler: Any) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sampler = sampler

    def train_dataloader(self) -> Any:
        rows = points(64, 1)
        return DataLoader(rows, self.batch_size, shuffle=self.sampler is None, sampler=self.sampler)

    def val_dataloader(self) -> Any:
        return DataLoader(points(64, 2), self.batch_size)


class TestedPoints(Points):
    def test_dataloader(self) -> Any:
        return DataLoader(points(64, 3), self.batch_size)


class Classifier(LightningModule):
    """With dropout and a schedule that is stepped after each epoch."""

    def __init__(self, rate: float, dropout: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs = self.layers(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]), sync_dist=True)
        self.log("val_accuracy", (outputs.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["rate"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class KillAt(Callback):
    """Kills the process at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def other_package(module: Classifier, data: Points) -> tuple[Any, Any]:
    """The same module and data, of the package `pytorch-lightning`."""
    import pytorch_lightning

    kinds = []
    for kind, base in ((Classifier, "LightningModule"), (TestedPoints, "LightningDataModule")):
        names = {name: value for name, value in vars(kind).items() if inspect.isfunction(value)}
        if kind is TestedPoints:
            names |= {name: value for name, value in vars(Points).items() if inspect.isfunction(value)}
        del names["__init__"]
        kinds.append(type(kind.__name__, (getattr(pytorch_lightning, base),), names))
    other, rows = kinds[0](), kinds[1]()
    other.layers, rows.batch_size, rows.sampler = module.layers, data.batch_size, data.sampler
    other.save_hyperparameters({"rate": module.hparams["rate"]})
    return other, rows


@dataclass(frozen=True)
class Fit:
    """A training function. `kill` is a rank and a step of the first attempt."""

    has_sampler: bool = False
    has_test: bool = True
    kill: tuple[int, int] | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    package: str = "lightning"

    def __call__(self, ctx: Any) -> None:
        ctx.note("resident_at_start", psutil.Process().memory_info().rss)
        if ctx.params.get("is_too_large"):
            torch.empty(2**60)
        rows = ctx.params["batch_size"] // ctx.world_size
        order = DistributedSampler(points(64, 1), ctx.world_size, ctx.rank) if self.has_sampler else None
        data = (TestedPoints if self.has_test else Points)(rows, order)
        callbacks: list[Any] = []
        if self.kill and ctx.rank == self.kill[0] and ctx._setup.assignment.attempt == 1:
            callbacks.append(KillAt(self.kill[1]))
        module: Any = Classifier(ctx.params["rate"], ctx.params.get("dropout", 0.2))
        if self.package == "pytorch_lightning":
            module, data = other_package(module, data)
        fit(ctx, module, data, callbacks=callbacks, **dict(self.settings))
        ctx.note("resident_at_most", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
