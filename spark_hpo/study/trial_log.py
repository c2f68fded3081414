"""The log lines of trials: one when an assignment starts, and one when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

from spark_hpo.trial import Assignment, HalvedBatches, Report, in_words

logger = logging.getLogger(__name__)


class TrialLog:
    """Writes lines such as `trial 12, epochs 2 to 3 of 27: accuracy 0.9312, 4.1 s`."""

    def __init__(self, metric: str, described: Callable[[Assignment], str]) -> None:
        """
        Args:
            described: says what an assignment trains: `trial 12, epochs 2 to 3 of 27`.
        """
        self._metric, self._described = metric, described

    def started(self, assignment: Assignment, parent: int | None) -> None:
        """Log the start of an assignment.

        Args:
            parent: the trial whose weights it starts from, if not its own.
        """
        where = self._described(assignment)
        if parent is None and assignment.resource_from:
            logger.info("%s: resumes", where)
            return
        origin = "" if parent is None else f", from the weights of trial {parent}"
        logger.info("%s: started with %s%s", where, in_words(assignment.params), origin)

    def ended(self, assignment: Assignment, report: Report) -> None:
        """Log the value that an assignment has reached, or why it has none."""
        where, failure = self._described(assignment), report.failure
        if failure is not None:
            logger.warning("%s: failed: %s\n%s", where, failure.message, failure.traceback)
        elif not report.scored_metrics:
            logger.info("%s: pruned, %.1f s", where, report.seconds)
        else:
            value = report.metrics[self._metric]
            logger.info("%s: %s %.4g, %.1f s", where, self._metric, value, report.seconds)
        if (halved := HalvedBatches.of(report.notes)) is not None:
            logger.warning(
                "%s: batches did not fit the device and were halved %d times, to %d rows per rank",
                where,
                halved.times,
                halved.rows,
            )
