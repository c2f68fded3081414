"""The objective, the space and the user's code that a configuration names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from spark_hpo.config import StudyConfig
from spark_hpo.data.schema import TableSchema
from spark_hpo.data.table import Table
from spark_hpo.driver.precheck import check_metrics, check_settings
from spark_hpo.errors import ConfigError, suggestion, within
from spark_hpo.objective import Objective
from spark_hpo.search.space import Space
from spark_hpo.train.label_statistics import label_statistics
from spark_hpo.train.metric_names import ALL_NAMES, find_metric, known_among
from spark_hpo.train.reference import Code, Trainable, is_task
from spark_hpo.train.task import LabelledTask, TrainTask
from spark_hpo.train.training_settings import LEARNED_BY_LOOP
from spark_hpo.trial import Split
from spark_hpo.user_code.source_file import SourceFile


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """A configuration and the objects that it names, found without Spark and without the table."""

    config: StudyConfig
    objective: Objective
    space: Space
    code: Code  # of the task
    transforms: Mapping[str, str]  # `module:function`, by column
    files: tuple[SourceFile, ...]  # of the task and the transforms, which executors lack
    objects: tuple[str, ...]  # "task", "space": what the caller passed as objects, instead of the settings

    @property
    def has_task(self) -> bool:
        """True if it trains a task class, not a training function."""
        return is_task(self.code.trainable)


def plan_study(config: StudyConfig, *, task: Trainable | None = None, space: object = None) -> StudyPlan:
    """Check a configuration, and import the code that it names.

    Args:
        config: the study.
        task: replaces the task of the configuration.
        space: replaces the space of the configuration; anything that `build_space` takes.

    Raises:
        ConfigError: a setting is wrong, or the code cannot be imported.
    """
    parsed = check_settings(config, space)
    code = load_code(config) if task is None else Code.of(task)
    references, files = load_transforms(config)
    if config.training.metrics and not is_task(code.trainable):
        raise ConfigError(
            "is for tasks, but a training function computes its metrics itself",
            key="training.metrics",
            value=list(config.training.metrics),
            cure="Remove it",
        )
    if config.backend == "driver" and is_task(code.trainable):
        raise ConfigError(
            "is for training functions that run Spark jobs, but the task is a task class",
            key="backend",
            value="driver",
            cure="Set backend: spark",
        )
    if config.data is None and is_task(code.trainable):
        raise ConfigError("is missing; only a training function can do without a table", key="data")
    if config.search.learn:
        with within("search"):
            _check_learned(config.search.learn, code.trainable)
    is_named = task is None or (not code.by_value and code.reference == config.task)
    return StudyPlan(
        config=config,
        objective=config.objective.build(),
        space=parsed,
        code=code,
        transforms=references,
        files=tuple(dict.fromkeys([*([code.source] if code.source else []), *files])),
        objects=(*(() if is_named else ("task",)), *(() if space is None else ("space",))),
    )


def check_table(plan: StudyPlan, table: Table | None) -> None:
    """Check the objective against the metrics of the task on this table, where they are known.

    Raises:
        ConfigError: there is no such metric.
    """
    task = plan.code.trainable
    if table is not None and isinstance(task, type) and issubclass(task, TrainTask):
        known = task.metric_names(table.schema)
        check_metrics(plan.config, known, table.schema)
        _check_probabilities(plan.config, task, table.schema)
        _check_loss(plan.config, task)
        _check_classes(plan.config, table)


def _check_loss(config: StudyConfig, task: type[TrainTask]) -> None:
    """Refuse settings of the training loss for a task that has its own."""
    training = config.training
    key = next(iter(training.loss_params), "class_weights" if training.class_weights else None)
    is_labelled = issubclass(task, LabelledTask) and task.loss is LabelledTask.loss
    if (
        key is not None
        and not is_labelled
        and task.training_loss
        in (
            TrainTask.training_loss,
            LabelledTask.training_loss,
        )
    ):
        raise ConfigError(
            f"has no effect, because {task.__name__} defines its own loss",
            key=f"training.{key}",
            value=getattr(training, key),
            cure="Remove the setting, or define training_loss, which finds the weights in "
            "self.schema.label.class_weights and the other settings in self.params",
        )


def _check_classes(config: StudyConfig, table: Table) -> None:
    """Refuse an objective that is not defined because the validation split has rows of one class only."""
    label, objective = table.schema.label, config.objective
    names = [name for name in objective.all_metrics if name in ALL_NAMES]
    curves = [name for name in names if find_metric(name).needs_two_classes]
    if not curves or config.search.has_folds or table.schema.extra_labels:
        return
    found = label_statistics(table, Split.VALIDATION)
    present = [name for name, weight in zip(label.classes, found.weights[label.name], strict=True) if weight]
    if len(present) == 1:
        raise ConfigError(
            f"is not defined on the validation split, because all of its {found.rows} rows are of class "
            f"{present[0]!r}",
            key="objective",
            value=curves[0],
            cure="Choose another metric, or split the table so that each split has rows of each class",
        )


def _check_probabilities(config: StudyConfig, task: type[TrainTask], schema: TableSchema) -> None:
    """Refuse metrics that need class probabilities of a task that returns its outputs as they are."""
    if schema.label.is_regression or task.metric_inputs is not TrainTask.metric_inputs:
        return
    settings = [("training.metrics", name) for name in config.training.metrics]
    if task.metrics is TrainTask.metrics:  # otherwise the task may report the objective itself
        settings += [("objective", name) for name in known_among(config.objective.all_metrics)]
    for key, name in settings:
        if task.predictions is TrainTask.predictions:
            raise ConfigError(
                f"needs class probabilities, but {task.__name__} does not define `predictions`",
                key=key,
                value=name,
                cure="Define it so that it returns 'probability', [rows, classes], or derive the task from "
                "LabelledTask",
            )


def _check_learned(names: Collection[str], trainable: Trainable) -> None:
    """Check that the task has the hyperparameters that its trials are to learn.

    Raises:
        ConfigError: it does not, or is a training function.
    """
    if not (isinstance(trainable, type) and issubclass(trainable, TrainTask)):
        raise ConfigError(
            "needs a task class, because a training function has a training loop of its own",
            key="learn",
            cure="Write a TrainTask, or choose another search.method",
        )
    known = (*LEARNED_BY_LOOP, *trainable.learnable)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise ConfigError(
                f"cannot be learned with {trainable.__name__}",
                key=f"learn.{name}",
                cure=f"{suggestion(name, known)}. A task of your own names more in `learnable`",
            )


def load_code(config: StudyConfig) -> Code:
    """Import the task of a configuration."""
    path, separator, name = config.task.rpartition(":")
    if separator and path.endswith(".py"):
        return Code.in_file(config.beside(path), name, value=config.task)
    return Code.named(config.task)


def load_transforms(config: StudyConfig) -> tuple[dict[str, str], list[SourceFile]]:
    """Import the files of `data.transforms`. Return importable references by column, and the files."""
    references: dict[str, str] = {}
    files: list[SourceFile] = []
    for column, reference in (config.data.transforms if config.data else {}).items():
        path, separator, name = reference.rpartition(":")
        references[column] = reference
        if separator and path.endswith(".py"):
            key = f"data.transforms.{column}"
            files.append(SourceFile.load(config.beside(path), key=key, value=reference))
            references[column] = f"{files[-1].module}:{name}"
    return references, files
