"""A `LightningModule` and its `LightningDataModule` as a trial, in a training function.

    def train(ctx):
        module = Classifier(rate=ctx.params["rate"])
        fit(ctx, module, Rows(batch_size=64 // ctx.world_size))

The search decides how many epochs are trained, the metrics that the module logs are reports, and the study
keeps the checkpoints. With several ranks, Lightning uses the process group that the ranks have formed. The
module may come from the package `lightning` or from `pytorch-lightning`.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from spark_hpo.errors import TrialError
from spark_hpo.integrations._lightning_reports import LightningReports, Ranks
from spark_hpo.integrations._shared import check_settings, needs, note_overruled
from spark_hpo.train.context import TrainContext
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule

_OVERRULED = "overruled_trainer_arguments"  # the note of the trial
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def fit(
    ctx: TrainContext,
    module: LightningModule,
    datamodule: LightningDataModule | None = None,
    /,
    *,
    save_model: Callable[[LightningModule, Path], None] | None = None,
    **settings: Any,
) -> None:
    """Train a trial with Lightning's `Trainer` as far as the search wants it, or evaluate it.

    Each epoch ends with the validation. All numbers that the module has logged for the epoch are reported
    under their names, as means over the ranks. A trial that is promoted or interrupted continues with the
    weights, the optimizers, the schedules and the random generators of its last reported epoch.

    If several of these give an argument of the `Trainer`, the first one wins:

    1. spark_hpo, for what the search and the study decide: the number of epochs, when to validate, the
       checkpoints, the logger and the devices. The log and the note `overruled_trainer_arguments` of the
       trial name the settings that lose.
    2. the parameters of the trial that are arguments of the `Trainer`, such as `gradient_clip_val`.
    3. `settings`.

    At the end of the study, the best trial is validated on `test_dataloader()`, with the `validation_step`,
    so its test metrics have the names of the validation metrics. Without this method it is not tested.

    Args:
        ctx: the argument of the training function.
        module: the model.
        datamodule: its data; None: the module has its own dataloaders.
        save_model: saves the trained module to a path that does not exist yet, with a flavour of MLflow, such
            as `mlflow.pytorch.save_model(module.network, path)`. Rank 0 calls it at the end of each rung, and
            the model of the best trial is registered. None: no model is registered.
        settings: arguments of the `Trainer`.

    Raises:
        ConfigError: Lightning is not installed.
        TrialError: a setting does not exist, or the space has a parameter that spark_hpo sets.
        CheckpointError: the checkpoint is missing or damaged.
        StorageError: the checkpoint cannot be saved.
    """
    package = _package_of(module)
    logging.getLogger(package.__name__).setLevel(logging.WARNING)  # else each trial lists devices and hints
    callbacks, plugins = settings.pop("callbacks", None) or [], settings.pop("plugins", None) or []
    reports: Any = type("SparkHpoReports", (LightningReports, package.callbacks.Checkpoint), {})(
        ctx, save_model
    )
    environments = importlib.import_module(f"{package.__name__}.plugins.environments")
    ranks = type("SparkHpoRanks", (Ranks, environments.LightningEnvironment), {})(ctx)
    trainer = package.Trainer(
        **_arguments(ctx, package.Trainer, settings),
        callbacks=[*(callbacks if isinstance(callbacks, list) else [callbacks]), reports],
        plugins=[*(plugins if isinstance(plugins, list) else [plugins]), ranks],
    )
    path = reports.restored()
    if not ctx.is_evaluation:
        trainer.fit(module, datamodule=datamodule, ckpt_path=path, weights_only=True)
    elif (loaders := _loaders(ctx, package, module, datamodule)) is not None:
        found = trainer.validate(module, loaders, ckpt_path=path, weights_only=True, verbose=False)
        ctx.report({name: float(value) for metrics in found for name, value in metrics.items()})


def _package_of(module: Any) -> ModuleType:
    """Return the package of the module's class: both may be installed, and do not mix."""
    homes = [kind.__module__ for kind in type(module).__mro__ if kind.__name__ == "LightningModule"]
    for name in _PACKAGES:
        if any(home.startswith(f"{name}.") for home in homes):
            return importlib.import_module(name)
    if not any(importlib.util.find_spec(name.partition(".")[0]) for name in _PACKAGES):
        with needs("lightning", extra="lightning"):
            importlib.import_module("lightning")
    raise TrialError(f"fit: the module must be a LightningModule (got a {type(module).__name__})")


def _arguments(ctx: TrainContext, trainer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the Trainer, except for callbacks and plugins."""
    known = inspect.signature(trainer).parameters
    ours = _ours(ctx)
    check_settings(ctx, "fit", "Lightning's Trainer", settings, known=known, ours=ours)
    note_overruled(ctx, "fit", _OVERRULED, settings, ours)
    defaults = {"enable_model_summary": False, "strategy": "ddp" if ctx.world_size > 1 else "auto"}
    of_trial = {name: value for name, value in ctx.params.items() if name in known}
    return defaults | settings | of_trial | ours


def _ours(ctx: TrainContext) -> dict[str, Any]:
    """Return the arguments of the Trainer that a trial must have."""
    is_gpu = ctx.device.type == "cuda"
    return {
        "accelerator": "gpu" if is_gpu else "cpu",
        "devices": [ctx.device.index] if is_gpu else 1,
        "num_nodes": ctx.world_size,  # each rank is a node with one device, wherever it runs
        "max_epochs": ctx.max_resource,  # the length of the schedules; the reports stop the training
        "max_steps": -1,
        "check_val_every_n_epoch": 1,
        "num_sanity_val_steps": 0,
        "fast_dev_run": False,
        "logger": False,
        "enable_checkpointing": True,
        "enable_progress_bar": False,
        "default_root_dir": str(ctx.folder),
    }


def _loaders(ctx: TrainContext, package: Any, module: Any, datamodule: Any) -> Any:
    """Return the dataloaders of the split to measure; None: there are none for the test."""
    source, base = module, package.LightningModule
    if datamodule is not None:
        source, base = datamodule, package.LightningDataModule
    is_test = ctx.split is Split.TEST
    name = "test_dataloader" if is_test else "val_dataloader"
    if getattr(type(source), name) is getattr(base, name):
        return None
    source.prepare_data()
    source.setup("test" if is_test else "validate")
    return getattr(source, name)()
