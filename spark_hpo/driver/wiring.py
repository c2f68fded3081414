"""What parts of a study are told, from the sections of its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial

from spark_hpo.config import StudyConfig
from spark_hpo.data.cache.cache_folder import CacheSettings
from spark_hpo.data.table import Table
from spark_hpo.study.dispatch import DispatchPolicy
from spark_hpo.study.failures import FailurePolicy
from spark_hpo.study.supervision import Supervisor
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.training_settings import Precision, TrainingSettings

logger = logging.getLogger(__name__)

_RETRY_DELAY_S = 1.0


def dispatch_policy(
    config: StudyConfig, storage: Storage, table: Table | None, interrupted: Callable[[], bool]
) -> DispatchPolicy:
    """How long the study waits, and what it bears."""
    resources, stopping, data = config.resources, config.stopping, config.data
    supervisor = None
    if config.backend == "spark":
        supervisor = Supervisor(
            storage, rank_timeout_s=resources.rank_timeout_s, start_timeout_s=resources.slot_timeout_s
        )
    may_skip = data is not None and data.on_bad_file == "skip"
    return DispatchPolicy(
        max_concurrent=resources.max_concurrent,
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
    """How a task is trained."""
    fields = config.training.model_dump(exclude={"checkpoint_every"})
    return TrainingSettings(
        **{**fields, "precision": Precision(config.training.precision)},
        checkpoint_epochs=config.training.checkpoint_every.epochs,
        checkpoint_seconds=config.training.checkpoint_every.seconds,
        evaluate_each_pass=config.search.resource == "epochs",
    )


def node_cache(config: StudyConfig) -> CacheSettings | None:
    """Where decoded columns are kept; None: nowhere."""
    if config.data is None or not config.data.cache.enabled:
        return None
    cache = config.data.cache
    return CacheSettings(
        folder=cache.folder, max_bytes=None if cache.max_gb is None else int(cache.max_gb * 1e9)
    )


def _leave_out(table: Table, files: Collection[str]) -> None:
    lost = table.rows - table.without(files).rows
    logger.warning(
        "%s: %d of %d rows are not read, because these files are damaged: %s",
        table.url,
        lost,
        table.rows,
        ", ".join(files),
    )
