"""Reports, checkpoints and the end of training of a Hugging Face `Trainer`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from spark_hpo.errors import CheckpointError
from spark_hpo.integrations._pipeline_model import save_pipeline
from spark_hpo.integrations._shared import gathered
from spark_hpo.integrations._step_settings import inherit, step_settings
from spark_hpo.study_dir import layout
from spark_hpo.train.context import TrainContext

_BUILT = "spark_hpo.pt"  # the settings of the optimizer and the schedule before the training
_PICKLED = "training_args.bin"  # not needed to resume, and may hold tokens
_NOT_METRICS = ("_runtime", "_per_second", "_time", "epoch")


class TrainerReports(TrainerCallback):
    """Connects a `Trainer` with the context of its trial.

    A trace of an assignment from 1 to 3 epochs of 10 steps:
        train()         loads the checkpoint of step 10
        on_step_end     steps 11 to 19: counts progress; saves if a checkpoint is due, or to stop
        on_epoch_end    step 20
        on_evaluate     keeps the metrics
        on_epoch_begin  reports them: 2 epochs are completed
        on_epoch_end    step 30: stops the training, because 3 epochs are completed
        on_evaluate
        on_train_end    saves, and reports 3 epochs
    """

    def __init__(self, ctx: TrainContext, trainer: Trainer, model_task: str | None = None) -> None:
        self._ctx = ctx
        self._trainer = trainer
        self._model_task = model_task  # of the pipeline to register; None: it is not registered
        self._metrics: dict[str, float] | None = None  # of the epoch that has just ended
        self._fresh: dict[str, Any] | None = None  # the step settings of this trial
        self._built: dict[str, Any] | None = None  # those of the trial that has saved the checkpoint

    def train(self) -> None:
        """Train until the assignment's resource is reached."""
        self._prepare()
        self._fresh = _fresh_settings(self._trainer)
        folder = self._restored()
        if folder is not None and (folder / _BUILT).exists():
            self._built = torch.load(folder / _BUILT, weights_only=True)
        self._trainer.train(resume_from_checkpoint=None if folder is None else str(folder))

    def evaluate(self, dataset: Any) -> dict[str, float]:
        """Return the metrics of the checkpoint on a dataset."""
        self._prepare()
        if (folder := self._restored()) is not None:
            self._trainer._load_from_checkpoint(str(folder))
        return _numbers(self._trainer.evaluate(dataset))

    def _prepare(self) -> None:
        self._trainer.remove_callback(PrinterCallback)
        self._trainer.add_callback(self)
        if _ignores_num_items(self._trainer):
            self._trainer.model_accepts_loss_kwargs = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self._built is not None and self._fresh is not None:
            optimizers, schedules = [self._trainer.optimizer], [self._trainer.lr_scheduler]
            inherit(optimizers, schedules, built=self._built, fresh=self._fresh)
        control.should_training_stop = False  # the checkpoint may have been saved by a rung that was stopped
        return control

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        if self._metrics is not None:
            self._ctx.report(self._metrics, checkpoint=self._save)
            self._metrics = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        # After the last step of an epoch the report saves: resuming from here would miss the evaluation.
        is_last = float(state.epoch or 0).is_integer()
        self._ctx.step(None if is_last else self._save)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self._ctx.step()

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self._ctx.step()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._metrics = {}
        done = self._ctx.measurements[-1].resource if self._ctx.measurements else self._ctx.resource.start
        if done + 1 >= self._ctx.resource.stop:
            control.should_training_stop = True
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if self._metrics is not None and "loss" in (logs or {}):
            self._metrics["train_loss"] = float((logs or {})["loss"])

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if self._metrics is not None:  # called once for each of several datasets
            self._metrics |= _numbers(metrics or {})

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._metrics is not None:
            folder = self._save()
            if self._model_task is not None and self._ctx.rank == 0:
                save_pipeline(self._trainer, self._model_task, folder / layout.MLFLOW_MODEL)
            self._ctx.report(self._metrics, checkpoint=lambda: folder)  # nothing changes it, so no copy

    def _save(self) -> Path:
        """Write the trainer's checkpoint folder; that of rank 0 has the files of all ranks."""
        parent = Path(str(self._trainer.args.output_dir))
        shutil.rmtree(parent, ignore_errors=True)
        self._trainer._save_checkpoint(self._trainer.model_wrapped, None)
        folder = parent / f"checkpoint-{self._trainer.state.global_step}"
        (folder / _PICKLED).unlink(missing_ok=True)
        self._gather_generators(folder)
        if self._fresh is not None:
            torch.save(self._fresh, folder / _BUILT)
        return folder

    def _gather_generators(self, folder: Path) -> None:
        """Copy the states of the random generators, which each rank has written on its own machine."""
        if self._ctx.world_size > 1:
            name = f"rng_state_{self._ctx.rank}.pth"
            for other, data in gathered(self._ctx, (name, (folder / name).read_bytes())):
                (folder / other).write_bytes(data)

    def _restored(self) -> Path | None:
        """Return the folder of the last checkpoint; None: the trial starts from scratch."""
        folder = self._ctx.load_checkpoint()
        if folder is not None and not isinstance(folder, Path):
            raise CheckpointError("the checkpoint of this trial is not one of a Trainer")
        return folder


def _fresh_settings(trainer: Trainer) -> dict[str, Any] | None:
    """Return the step settings as the Trainer will build them; None: the user has built the optimizer."""
    if trainer.optimizer is not None or trainer.model is None:
        return None
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    settings = step_settings([trainer.optimizer], [trainer.lr_scheduler])
    trainer.optimizer = trainer.lr_scheduler = None
    return settings


def _ignores_num_items(trainer: Trainer) -> bool:
    """Return True if the model's loss is a mean over its own batch, although it takes any keyword.

    A Trainer passes `num_items_in_batch` to models that take any keyword, and then multiplies their loss by
    the number of ranks. That is wrong for models that ignore it, such as BERT for classification: their loss
    and gradients would grow with the number of ranks.
    """
    accepts, args = getattr(trainer, "model_accepts_loss_kwargs", False), trainer.args
    if not accepts or trainer.compute_loss_func or args.world_size * args.gradient_accumulation_steps == 1:
        return False
    batch = next(iter(trainer.get_train_dataloader()))
    if "labels" not in batch:  # the Trainer then counts nothing
        return False
    model: Any = trainer.model
    device = next(model.parameters()).device
    batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    model.eval()
    with torch.no_grad():
        outputs = [model(**batch, num_items_in_batch=torch.tensor(n)) for n in (1, 2)]
    first, second = (getattr(output, "loss", None) for output in outputs)
    return torch.is_tensor(first) and torch.is_tensor(second) and torch.equal(first, second)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics without durations, which differ from run to run."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not name.endswith(_NOT_METRICS)
    }
