"""SparkTrials: runs hyperopt's `fmin` as a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperopt import Trials
from hyperopt.base import (
    JOB_STATE_CANCEL,
    JOB_STATE_DONE,
    JOB_STATE_ERROR,
    validate_loss_threshold,
    validate_timeout,
)

from spark_hpo.errors import ConfigError
from spark_hpo.porting.fmin import fmin

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SparkTrials(Trials):  # type: ignore[misc]  # hyperopt has no types
    """A drop-in replacement for hyperopt's SparkTrials, also as `trials` of hyperopt's own `fmin`.

    Args:
        parallelism: the largest number of trials at a time; None: as many as the cluster has slots for.
        timeout: seconds after which no new trial starts; running trials are finished.
        loss_threshold: the search ends when a trial has a loss below this.
        spark_session: None: the active session, or a new one.
        resource_profile: not supported; use the argument `resources` of `fmin`.

    Raises:
        ConfigError: `resource_profile` is set.
    """

    def __init__(
        self,
        parallelism: int | None = None,
        timeout: float | None = None,
        loss_threshold: float | None = None,
        spark_session: SparkSession | None = None,
        resource_profile: object = None,
    ) -> None:
        super().__init__(exp_key=None, refresh=False)
        validate_timeout(timeout)
        validate_loss_threshold(loss_threshold)
        if resource_profile is not None:
            raise ConfigError(
                "SparkTrials: resource_profile is not supported; pass the resources of a trial to fmin: "
                "resources={'gpus_per_rank': 1}"
            )
        self.parallelism = parallelism
        self.timeout = timeout
        self.loss_threshold = loss_threshold
        self.spark_session = spark_session
        self.refresh()

    def count_successful_trials(self) -> int:
        """The number of trials whose objective returned, with any status."""
        return int(self.count_by_state_unsynced(JOB_STATE_DONE))

    def count_failed_trials(self) -> int:
        """The number of trials whose objective raised."""
        return int(self.count_by_state_unsynced(JOB_STATE_ERROR))

    def count_cancelled_trials(self) -> int:
        """The number of trials that were cancelled."""
        return int(self.count_by_state_unsynced(JOB_STATE_CANCEL))

    def count_total_trials(self) -> int:
        """The number of trials that have ended."""
        states = [JOB_STATE_DONE, JOB_STATE_ERROR, JOB_STATE_CANCEL]
        return int(self.count_by_state_unsynced(states))

    def fmin(self, fn: Any, space: Any, **arguments: Any) -> Any:
        """Run the search; hyperopt's `fmin` calls this for its `trials`."""
        return fmin(fn, space, trials=self, **arguments)
