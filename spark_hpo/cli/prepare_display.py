"""Shows the phases of a preparation: a bar on a terminal, a line per phase elsewhere."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from spark_hpo.cli.console import say
from spark_hpo.redact import redact

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PHASES = "spark_hpo.prepare.phases"


class PrepareDisplay(logging.Handler):
    """Follows the phases that are logged while it is entered.

    Args:
        console: None: show nothing.
    """

    def __init__(self, console: Console | None) -> None:
        super().__init__(logging.INFO)
        self._console = console
        self._spark: SparkSession | None = None
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[tasks]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, tasks="")

    def __enter__(self) -> PrepareDisplay:
        logger = logging.getLogger(_PHASES)
        self._before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        logger = logging.getLogger(_PHASES)
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before
        if self._bar is not None:
            self._bar.stop()

    def watch(self, spark: SparkSession) -> SparkSession:
        """Count the tasks of a session in the bar."""
        self._spark = spark
        return spark

    def emit(self, record: logging.LogRecord) -> None:
        phase = redact(record.getMessage())
        if self._bar is not None:
            self._bar.reset(self._task, total=None, description=phase, tasks="")
        elif self._console is not None:
            say(phase, self._console)

    def refresh(self) -> None:
        """Fill the bar with the share of the running stages' tasks that have ended."""
        if self._bar is None or self._spark is None:
            return
        tracker = self._spark.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        total = sum(stage.numTasks for stage in stages if stage)
        done = sum(stage.numCompletedTasks for stage in stages if stage)
        if total > 1:
            self._bar.update(self._task, total=total, completed=done, tasks=f"{done} of {total} tasks")
