"""Hugging Face's `Trainer` as a trial, in a training function.

    def train(ctx):
        model = AutoModelForSequenceClassification.from_pretrained(...)
        trainer = Trainer(model, training_arguments(ctx), train_dataset=..., eval_dataset=...)
        run_trainer(ctx, trainer)

The parameters of the trial go to `TrainingArguments` by name. The search decides how many epochs are trained,
each evaluation is a report, and the study keeps the checkpoints. With several ranks, the `Trainer` uses the
process group that the ranks have formed.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import torch

from spark_hpo.errors import TrialError
from spark_hpo.integrations._shared import check_settings, needs, note_overruled
from spark_hpo.train.context import TrainContext
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

_BATCH_SIZE = "batch_size"  # rows of an optimizer step over all ranks; not a field of TrainingArguments
_OVERRULED = "overruled_training_arguments"  # the note of the trial


def training_arguments(
    ctx: TrainContext, base: TrainingArguments | None = None, /, **settings: Any
) -> TrainingArguments:
    """Return the `TrainingArguments` of a trial.

    If several of these give a value, the first one wins:

    1. spark_hpo, for what the search and the study decide: the number of epochs, when to evaluate and to
       save, where to write, and the device. The log and the note `overruled_training_arguments` of the trial
       name the settings that lose.
    2. the parameters of the trial that are fields of `TrainingArguments`, such as `learning_rate`.
    3. `settings`.
    4. `base`.

    Call it before you create the model on a GPU, because it chooses the device.

    Args:
        ctx: the argument of the training function.
        base: arguments to start from, of `TrainingArguments` or a subclass such as `SFTConfig`.
        settings: fields of `TrainingArguments`; also `batch_size`, the rows of one optimizer step over all
            ranks, which the trial may have as a parameter. The default of `seed` is the trial's.

    Raises:
        ConfigError: transformers or accelerate is not installed.
        TrialError: a setting does not exist, the space has a parameter that spark_hpo sets, or `batch_size`
            cannot be divided among the ranks.
    """
    with needs("transformers", "accelerate", extra="transformers"):
        from transformers import TrainingArguments
        from transformers.utils import logging as transformers_logging
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # of each checkpoint that is written
    kind = TrainingArguments if base is None else type(base)
    defaults = {field.name: field.default for field in dataclasses.fields(kind) if field.init}
    ours = _ours(ctx)
    known = (*defaults, _BATCH_SIZE)
    check_settings(ctx, "training_arguments", kind.__name__, settings, known=known, ours=ours)
    of_base = {} if base is None else {name: getattr(base, name, None) for name in ours}
    of_base = {name: value for name, value in of_base.items() if value and value != defaults.get(name)}
    note_overruled(ctx, "training_arguments", _OVERRULED, of_base | settings, ours)
    values: dict[str, Any] = {}
    if base is None:
        values = {"seed": ctx.seed % 2**32, "logging_strategy": "epoch"}
    values |= settings
    values |= {name: value for name, value in ctx.params.items() if name in known}
    values |= {name: value for name, value in ours.items() if name in defaults}
    if (rows := values.pop(_BATCH_SIZE, None)) is not None:
        accumulated = values.get(
            "gradient_accumulation_steps", getattr(base, "gradient_accumulation_steps", 1)
        )
        values["per_device_train_batch_size"] = _rows_per_device(ctx, int(rows), int(accumulated))
    _announce_ranks(ctx)
    made = kind(**values) if base is None else dataclasses.replace(base, **values)
    if ctx.device.type == "cuda" and ctx.world_size == 1:
        # By itself the Trainer takes the first GPU, and splits batches over all that it sees.
        made._n_gpu = 1
        made.__dict__["_setup_devices"] = ctx.device
        torch.cuda.set_device(ctx.device)
    return made


def run_trainer(
    ctx: TrainContext, trainer: Trainer, *, test_dataset: Any = None, model_task: str | None = None
) -> None:
    """Train a trial with a `Trainer` as far as the search wants it, or evaluate it.

    Each epoch ends with an evaluation, whose metrics are reported under their names (`eval_loss`, ...) with
    the mean `train_loss` of the epoch. A trial that is promoted continues with the weights, the optimizer,
    the schedule and the random generators of its last epoch; an interrupted one may also continue in the
    middle of an epoch.

    Args:
        ctx: the argument of the training function.
        trainer: with `args` from `training_arguments(ctx, ...)` and an `eval_dataset`.
        test_dataset: for the evaluation of the best trial at the end of the study. None: it is not tested.
        model_task: a task of transformers' pipelines, such as `text-classification`. The best trial's model
            is then registered in MLflow as such a pipeline, with the trainer's `processing_class`. None: it
            is not registered.

    Raises:
        TrialError: the arguments of the trainer were not made by `training_arguments`, or `model_task` is set
            and the trainer has no `processing_class`.
        CheckpointError: the checkpoint is missing or damaged.
        StorageError: the checkpoint cannot be saved.
    """
    from spark_hpo.integrations._trainer_reports import TrainerReports

    _check(ctx, trainer)
    if model_task is not None and trainer.processing_class is None:
        raise TrialError(
            f"run_trainer: model_task={model_task!r} needs the tokenizer: pass it to the Trainer, "
            "processing_class=tokenizer"
        )
    reports = TrainerReports(ctx, trainer, model_task)
    if not ctx.is_evaluation:
        reports.train()
        return
    dataset = test_dataset if ctx.split is Split.TEST else trainer.eval_dataset
    if dataset is not None:
        ctx.report(reports.evaluate(dataset))


def _ours(ctx: TrainContext) -> dict[str, Any]:
    """Return the fields of TrainingArguments that a trial must have."""
    return {
        "output_dir": str(ctx.folder / "trainer"),
        "num_train_epochs": ctx.max_resource,  # the length of the schedule; the reports stop the training
        "max_steps": -1,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "save_only_model": False,
        "load_best_model_at_end": False,
        "auto_find_batch_size": False,
        "ignore_data_skip": False,
        "push_to_hub": False,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": ctx.device.type == "cpu",
    }


def _rows_per_device(ctx: TrainContext, rows: int, accumulated: int) -> int:
    per_device, rest = divmod(rows, ctx.world_size * accumulated)
    if rest or not per_device:
        raise TrialError(
            f"training_arguments: batch_size must be a multiple of {ctx.world_size * accumulated}, the "
            f"number of ranks times gradient_accumulation_steps (got {rows})"
        )
    return per_device


def _announce_ranks(ctx: TrainContext) -> None:
    """Describe the ranks in the variables that torchrun would set; accelerate reads them.

    The process group exists, so no address is needed. Each rank counts as the only one of its machine, except
    that LOCAL_RANK is the number of its GPU.
    """
    if ctx.world_size > 1:
        local = ctx.rank if ctx.device.type == "cpu" else ctx.device.index
        os.environ["RANK"] = str(ctx.rank)
        os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(ctx.world_size)
        os.environ["LOCAL_RANK"] = str(local)
        # Without it accelerate takes all cores of the machine for this rank.
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    elif ctx.device.type == "cuda":
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(ctx.device)


def _check(ctx: TrainContext, trainer: Trainer) -> None:
    """Raise unless the arguments of the trainer are those of `training_arguments`."""
    checked = {name: value for name, value in _ours(ctx).items() if name != "report_to"}
    wrong = [
        f"{name} is {getattr(trainer.args, name)} instead of {value}"
        for name, value in checked.items()
        if getattr(trainer.args, name, value) != value
    ]
    if wrong:
        raise TrialError(
            f"run_trainer: {'; '.join(wrong)}: make the arguments with training_arguments(ctx, ...), or pass "
            "yours through it, training_arguments(ctx, args)"
        )
