"""Builds the parts of a study from its plan: table, ranks and tracker.

`prepare_table`, `start_spark` and `open_tracker` have effects outside; the others only read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from spark_hpo.backend.base import RanksByRung, Share
from spark_hpo.config import StudyConfig
from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.plan.shards import plan_shards
from spark_hpo.data.table import Table, open_table
from spark_hpo.driver.plan import StudyPlan
from spark_hpo.driver.provenance import git_commit
from spark_hpo.driver.table_source import describe, schema_folder
from spark_hpo.driver.weights import with_fold_weights, with_weights
from spark_hpo.errors import ConfigError
from spark_hpo.snapshots.frames import is_pandas
from spark_hpo.study import Budget
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.failures import FailurePolicy
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.mlflow import MlflowTracker
from spark_hpo.tracking.study_runs import InputTable, StudyCard
from spark_hpo.train.metric_names import known_among
from spark_hpo.train.rank import CrossValidation, RankSpec
from spark_hpo.train.training_settings import (
    LearnedParameter,
    Learning,
    Precision,
    StrategyKind,
    TrainingSettings,
)
from spark_hpo.trial import Split

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_hpo.snapshots.frames import Frame

logger = logging.getLogger(__name__)

_RETRY_DELAY_S = 1.0
_IN_THIS_PROCESS = ("inline", "driver")  # backends whose ranks cannot be killed when they stall


def start_spark(config: StudyConfig, spark: SparkSession | None = None) -> SparkSession:
    """Return the running session, or start one with the study's settings.

    Args:
        config: the study.
        spark: the caller's session, which is used as it is.
    """
    from spark_hpo.backend.spark.session import start_session

    if spark is None:
        logger.info("starting Spark")
    settings = dict(config.spark)
    if config.backend == "driver":
        return start_session(config.name, settings, spark=spark, trains_on_executors=False)
    if training_settings(config).metrics:
        # Ranks are forked from a process that has imported it, which takes seconds.
        settings.setdefault("spark.executorEnv.SPARK_HPO_PRELOAD", "torchmetrics")
    return start_session(config.name, settings, timeout_s=config.resources.slot_timeout_s, spark=spark)


def prepare_table(
    config: StudyConfig, spark: SparkSession | None = None, frame: Frame | None = None
) -> SparkSession | None:
    """Create the table with `data.prepare` if it does not exist, or describe a table that is not prepared.

    A study on Spark does so with Spark, except for a pandas DataFrame. Others do so in this process, unless
    only Spark can.

    Args:
        config: the study, with a table.
        spark: the caller's session.
        frame: the DataFrame that was passed to `tune`.

    Returns:
        The Spark session if one was needed that the study goes on using.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the input is.
    """
    data = config.data
    assert data is not None, "the caller has checked that the study has a table"
    from spark_hpo.prepare.sources import key_of_study, own_session, prepare, with_keys

    on_spark = config.needs_spark
    with ExitStack() as stack:
        sessions: list[SparkSession] = []

        def start() -> SparkSession:
            if sessions:
                return sessions[0]
            logger.info("%s: preparing the table", data.place)
            if on_spark:
                sessions.append(start_spark(config, spark))
            else:
                sessions.append(spark or stack.enter_context(own_session()))
            return sessions[0]

        if data.prepare is None:
            # This process holds a pandas DataFrame already, and Spark would need seconds for each step.
            describe(config, start, frame, on_spark=on_spark and not is_pandas(frame))
        else:
            assert data.path is not None, "the configuration has checked it"
            with with_keys(key_of_study):
                options = data.prepare.options()
                prepared = prepare(data.prepare.source, data.path, options, start, on_spark=on_spark)
            if prepared.fresh:
                logger.info("%s: prepared %d rows", data.path, sum(prepared.rows.values()))
        return sessions[0] if sessions and on_spark else None


def build_table(config: StudyConfig, transforms: Mapping[str, str]) -> Table | None:
    """Read the table's schema and the footers of its files. None: the study has no table.

    Args:
        config: the study.
        transforms: `module:function` by column, as `load_transforms` returns them.

    Raises:
        ConfigError: there are more folds than rows.
        DataError: the table is missing or malformed, or a split has fewer rows than there are ranks.
    """
    data = config.data
    if data is None:
        return None
    table = open_table(
        schema_folder(config),
        where=data.where,
        nulls=data.nulls,
        truncate=data.truncate,
        transforms=transforms,
        trust_petastorm_metadata=data.trust_petastorm_metadata,
    )
    table = with_weights(table, config)
    for split in Split:
        plan_shards(table.manifest(split), config.resources.most_ranks, seed=None)
    if config.search.has_folds:
        table = _with_folds(table, config.search.max_resource, config.resources.most_ranks)
        table = with_fold_weights(table, config)
    return table


def _with_folds(table: Table, folds: int, world_size: int) -> Table:
    """Divide a table into folds, so that each rank gets a row of each of them.

    Raises:
        ConfigError: there are too many folds.
    """
    table = table.divided(folds)
    rows = table.manifest(Split.TRAIN).rows + table.manifest(Split.VALIDATION).rows
    if rows // folds < world_size:
        ranks = f" and {world_size} ranks" if world_size > 1 else ""
        raise ConfigError(
            f"must be at most {rows // world_size} folds, because there are {rows} training and validation "
            f"rows{ranks}",
            key="search.max_resource",
            value=folds,
        )
    for manifests in table.folds:
        for manifest in manifests:
            plan_shards(manifest, world_size, seed=None)
    return table


def open_tracker(plan: StudyPlan, definition: Definition) -> MlflowTracker:
    """Find or create the study's run in MLflow.

    Raises:
        TrackingError: the server cannot be reached, or refuses.
    """
    config = plan.config
    table = None
    if definition.source is not None and definition.table is not None:
        table = InputTable(digest=definition.table, **definition.source)
    card = StudyCard(
        study_id=definition.study_id,
        name=config.name,
        objective=plan.objective,
        config=config.model_dump(mode="json"),
        space=plan.space.to_json(),
        git_commit=git_commit(),
        table=table,
    )
    return MlflowTracker(
        config.mlflow.tracking_uri, config.experiment, card, registry_uri=config.registry_uri
    )


def build_rank_spec(plan: StudyPlan, table: Table | None, storage: Storage, study_id: str) -> RankSpec:
    """Describe what every rank of every assignment needs."""
    config = plan.config
    data, search = config.data, config.search
    return RankSpec(
        study_id=study_id,
        storage=storage,
        trainable=plan.code.shipped,
        table=table,
        objective=plan.objective,
        settings=training_settings(config),
        max_resource=search.max_resource,
        seed=config.seed,
        reader=data.reader if data else "auto",
        shuffle_window=data.shuffle_window if data else 1,
        parts=search.parts,
        folds=CrossValidation(folds=search.max_resource, epochs=search.epochs) if search.has_folds else None,
        node_cache=node_cache(config),
        rank_timeout_s=None if config.backend in _IN_THIS_PROCESS else config.resources.rank_timeout_s,
    )


def build_budget(config: StudyConfig, definition: Definition) -> Budget:
    """Convert the section `budget`.

    A study of a version without `budget.finish` ends as it did, unless the setting is added.
    """
    budget = config.budget
    has_reserve = "finish" in budget.model_fields_set or "finish" in definition.config.get("budget", {})
    return Budget(
        trials=budget.trials,
        resource=budget.resource,
        seconds=budget.seconds,
        finish=budget.finish if has_reserve else 0,
    )


def build_dispatch_policy(
    config: StudyConfig,
    storage: Storage,
    table: Table | None,
    share: Share,
    interrupted: Callable[[], bool],
) -> DispatchPolicy:
    """Convert the settings about waiting, failures and retries.

    Args:
        config: the study.
        storage: of its directory, where ranks leave their heartbeats.
        table: from which damaged files may be left out.
        share: of the slots.
        interrupted: whether the study was asked to end.
    """
    resources, stopping, data = config.resources, config.stopping, config.data
    supervisor = None
    if config.backend not in _IN_THIS_PROCESS:
        supervisor = Supervisor(
            storage, rank_timeout_s=resources.rank_timeout_s, start_timeout_s=resources.slot_timeout_s
        )
    may_skip = data is not None and data.on_bad_file == "skip"
    return DispatchPolicy(
        ranks=RanksByRung.of(resources.world_size),
        max_concurrent=resources.max_concurrent,
        share=share,
        trial_timeout_s=resources.trial_timeout_s,
        slot_timeout_s=resources.slot_timeout_s,
        failures=FailurePolicy(
            max_infra_retries=resources.max_infra_retries,
            retry_delay_s=_RETRY_DELAY_S,
            max_trial_failures=stopping.max_trial_failures,
            max_failed_share=stopping.max_failed_share,
            on_bad_files=partial(_leave_out, table) if table is not None and may_skip else None,
        ),
        supervisor=supervisor,
        interrupted=interrupted,
        grace_s=resources.grace_s,
    )


def training_settings(config: StudyConfig) -> TrainingSettings:
    """Convert the section `training`."""
    converted = {"checkpoint_every", "metrics", "class_weights", "loss", "focal_gamma", "label_smoothing"}
    fields = config.training.model_dump(exclude=converted)
    return TrainingSettings(
        loss_params=config.training.loss_params,
        metrics=known_among((*config.training.metrics, *config.objective.all_metrics)),
        **{
            **fields,
            "precision": Precision(config.training.precision),
            "strategy": StrategyKind(config.training.strategy),
        },
        checkpoint_epochs=config.training.checkpoint_every.epochs,
        checkpoint_seconds=config.training.checkpoint_every.seconds,
        learning=_learning(config),
        evaluate_each_pass=config.search.resource == "epochs",  # with folds, only the last one counts
    )


def _learning(config: StudyConfig) -> Learning | None:
    """Convert `search.learn`; None: all hyperparameters are constant while a trial trains."""
    search = config.search
    if not search.learn:
        return None
    parameters = (LearnedParameter(name=name, **p.model_dump()) for name, p in search.learn.items())
    return Learning(parameters=tuple(parameters), **search.hypergradient.model_dump())


def node_cache(config: StudyConfig) -> CacheSettings | None:
    """Convert the section `data.cache`; None: nothing is cached."""
    if config.data is None or not config.data.cache.enabled:
        return None
    cache = config.data.cache
    return CacheSettings(
        folder=cache.folder, max_bytes=None if cache.max_gb is None else int(cache.max_gb * 1e9)
    )


def _leave_out(table: Table, files: Collection[str]) -> None:
    lost = table.rows - table.without(files).rows
    logger.warning(
        "%s: continuing without %d of %d rows, because these files are damaged: %s",
        table.url,
        lost,
        table.rows,
        ", ".join(files),
    )
