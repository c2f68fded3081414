"""Runs a study for a command: a live line from its start to its end, and then the result."""

from __future__ import annotations

import logging
import shlex

from rich.console import Console

from spark_hpo.callbacks.progress_bar import TerminalLine
from spark_hpo.cli import heartbeat
from spark_hpo.cli.console import answers, diagnostics, say, say_json
from spark_hpo.config import StudyConfig
from spark_hpo.driver.provenance import command_line, program_of_environment
from spark_hpo.driver.result import Result
from spark_hpo.driver.run import run_study
from spark_hpo.driver.sync import sync_study
from spark_hpo.errors import StudyInterrupted, TrackingOutage, count
from spark_hpo.redact import redact
from spark_hpo.report import leaderboard
from spark_hpo.report.live_line import ProgressLine
from spark_hpo.search.space import Space
from spark_hpo.study.callback import RunningStudy
from spark_hpo.trial import in_words


class _Phases(logging.Handler):
    """Shows on the live line what is logged."""

    def __init__(self, line: ProgressLine) -> None:
        super().__init__(logging.INFO)
        self._line = line
        self._logger = logging.getLogger("spark_hpo")

    def __enter__(self) -> None:
        self._logger.addHandler(self)

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != heartbeat.__name__:  # its lines repeat what is announced
            self._line.announce(redact(record.getMessage()).partition("\n")[0])


class _Line(TerminalLine):
    """Shows phases before and after the search, and the status of the study during it."""

    def __init__(self, line: ProgressLine) -> None:
        super().__init__(line)
        self.phases = _Phases(line)

    def on_study_start(self, study: RunningStudy) -> None:
        self.phases.__exit__()
        self.show(study)

    def on_study_end(self, study: RunningStudy) -> None:
        self.line.announce("writing the results")
        self.phases.__enter__()


def drive(config: StudyConfig, *, resume: str, as_json: bool, space: Space | None = None) -> int:
    """Run a study to its end, print the result, and return the exit code.

    Args:
        resume: as for `run_study`.
        space: as for `run_study`.

    Raises:
        StudyInterrupted: by Ctrl-C or SIGTERM; the message ends with the command that resumes.
    """
    console = diagnostics()
    again = command_line() or "the same command"
    try:
        line = ProgressLine(config.name, config.objective.metric, console=console)
        line.announce("starting")
        shown = _Line(line)
        with line, heartbeat.Heartbeat(line), shown.phases:
            result = run_study(config, resume=resume, space=space, callbacks=[shown])
    except StudyInterrupted as exc:
        raise StudyInterrupted(f"{exc}:\n  {again}") from None
    except KeyboardInterrupt:
        raise StudyInterrupted(f"interrupted before the first new trial; restart with\n  {again}") from None
    _print(result, console if as_json else answers())
    if not result.is_tracked:
        say(f"MLflow is missing some results. When it is available again:\n  {again} --sync", console)
    if as_json:
        say_json(result.summary())
    return 0


def write_missing(config: StudyConfig, *, as_json: bool, space: Space | None = None) -> int:
    """Write to MLflow what it is missing, print how much that was, and return the exit code."""
    synced = sync_study(config, space=space)
    line = f"wrote {synced.written} of {count(synced.trials, 'trial')} to MLflow"
    line += "; none are missing now" if synced.is_complete else "; some are still missing"
    if synced.model is not None:
        line += f"; the model is {synced.model.uri}"
    say(line, diagnostics() if as_json else answers())
    if as_json:
        say_json({"study": config.name, "study_dir": config.study_dir, **synced.summary()})
    return 0 if synced.is_complete else TrackingOutage.exit_code


def _print(result: Result, console: Console) -> None:
    objective = result.config.objective.build()
    front = [trial.trial_id for trial in result.pareto_front]
    console.print(leaderboard.render(result.record.at_best, objective, front, best=result.best.trial_id))
    if objective.extra_objectives:
        shown = ", ".join(map(str, front)) or "none was trained to the end within the limits"
        console.print(f"Pareto front of {', '.join(objective.metrics)}: trials {shown}")
    best, metric = result.best, objective.metric
    amount = result.config.search.amount(best.resource)
    line = f"best: trial {best.trial_id} after {amount}, {metric} {best.metrics[metric]:.4g}"
    if metric in result.test:
        line += f" on validation, {result.test[metric]:.4g} on test"
    if result.model is not None:
        line += f"; registered as {result.model.uri}"
    console.print(line)
    console.print(f"parameters: {in_words(best.params)}")
    for warning in result.warnings:
        console.print(f"note: {warning}")
    if result.outlook is not None:
        console.print(result.outlook)
    for advice in result.usage_advice:
        console.print(advice)
    words = [program_of_environment("spark-hpo"), "report", result.config.study_dir, "--open"]
    say(f"for the full report: {shlex.join(words)}", console)
