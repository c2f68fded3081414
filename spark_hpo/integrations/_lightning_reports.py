"""Reports, checkpoints, ranks and the end of training of Lightning's `Trainer`.

The classes lack their bases, which come from `lightning` or from `pytorch-lightning`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from spark_hpo.errors import CheckpointError
from spark_hpo.integrations._shared import gathered
from spark_hpo.integrations._step_settings import inherit, step_settings
from spark_hpo.study_dir import layout
from spark_hpo.train import generators
from spark_hpo.train.context import TrainContext

_FILE = "lightning.ckpt"
_BUILT = "spark_hpo_built"  # the key of the step settings before the training
_GENERATORS = "spark_hpo_generators"  # the key, in a checkpoint, of the states of all ranks


class Ranks:
    """The ranks of a trial as Lightning's cluster environment. Their process group exists already.

    Each rank is the only process of a node of its own, wherever it runs, so its local rank is 0.
    """

    def __init__(self, ctx: TrainContext) -> None:
        super().__init__()
        self._ctx = ctx

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def world_size(self) -> int:
        return self._ctx.world_size

    def set_world_size(self, size: int) -> None:
        assert size == self._ctx.world_size

    def global_rank(self) -> int:
        return self._ctx.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self._ctx.rank

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return self._ctx.rank

    def teardown(self) -> None:
        pass


class LightningReports:
    """A callback that connects a `Trainer` with the context of its trial.

    A trace of an assignment from 1 to 3 epochs, with the checkpoint of epoch 1:
        on_fit_start          restores the random generators
        on_train_start        applies the settings of this trial, if another one has saved the checkpoint
        on_train_epoch_end    keeps the metrics, of training and of validation
        on_train_epoch_start  reports them: 2 epochs are completed
        on_train_epoch_end    stops the training, because 3 epochs are completed
        on_train_end          saves, and reports 3 epochs

    The reports wait for the next hook because Lightning steps the schedules after `on_train_epoch_end`.
    """

    def __init__(self, ctx: TrainContext, save_model: Callable[[Any, Path], None] | None = None) -> None:
        super().__init__()
        self._ctx = ctx
        self._save_model = save_model  # with a flavour of MLflow
        self._metrics: dict[str, float] | None = None  # of the epoch that has just ended
        self._generators: list[Mapping[str, Tensor]] = []  # to restore, by rank
        self._fresh: dict[str, Any] = {}  # the step settings of this trial
        self._built: dict[str, Any] | None = None  # those of the trial that has saved the checkpoint

    def restored(self) -> str | None:
        """Return the path of the last checkpoint; None: the trial starts from scratch."""
        saved = self._ctx.load_checkpoint()
        if saved is None:
            return None
        if not isinstance(saved, Path) or not (saved / _FILE).is_file():
            raise CheckpointError("the checkpoint of this trial is not one of Lightning's Trainer")
        return str(saved / _FILE)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        # The last hook before the iterator of the rows draws the seed of their order.
        if self._ctx.rank < len(self._generators):  # else the trial has more ranks than before
            generators.restore(self._generators[self._ctx.rank], self._ctx.device)
        self._fresh = step_settings(trainer.optimizers, _schedules(trainer))  # the checkpoint is loaded later

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self._built is not None:
            inherit(trainer.optimizers, _schedules(trainer), built=self._built, fresh=self._fresh)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if self._metrics is not None:
            self._ctx.report(self._metrics, checkpoint=lambda: self._save(trainer))
            self._metrics = None

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._ctx.step()

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._ctx.step()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self._metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        done = self._ctx.measurements[-1].resource if self._ctx.measurements else self._ctx.resource.start
        if done + 1 >= self._ctx.resource.stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if self._metrics is not None:
            folder = self._save(trainer)
            if self._save_model is not None and self._ctx.rank == 0:
                self._save_model(module, folder / layout.MLFLOW_MODEL)
            self._ctx.report(self._metrics, checkpoint=lambda: folder)  # nothing changes it, so no copy
            self._metrics = None

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        # Lightning has announced the next epoch, and would take it for completed.
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counts["ready"] = counts["completed"]
        checkpoint[_BUILT] = self._fresh
        checkpoint[_GENERATORS] = gathered(self._ctx, generators.capture(self._ctx.device))

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: Mapping[str, Any]) -> None:
        if not self._ctx.is_evaluation:
            self._generators = checkpoint.get(_GENERATORS, [])
            self._built = checkpoint.get(_BUILT)

    def _save(self, trainer: Any) -> Path:
        """Write the trainer's checkpoint to a folder; Lightning writes the file on rank 0."""
        folder = self._ctx.folder / "checkpoint"
        trainer.save_checkpoint(folder / _FILE)
        return folder


def _schedules(trainer: Any) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]
