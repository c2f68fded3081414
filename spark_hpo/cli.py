"""The command line of a study: arguments, logging, signals, the live line, the JSON at the end."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from spark_hpo.app import run_study, sync_study
from spark_hpo.assembly import objective_of
from spark_hpo.callbacks.progress import TerminalLine
from spark_hpo.config import StudyConfig, load_config
from spark_hpo.errors import ConfigError, SparkHpoError, StudyInterrupted, TrackingOutage
from spark_hpo.redact import redact
from spark_hpo.report import leaderboard
from spark_hpo.report.progress import ProgressLine
from spark_hpo.result import Result

_LOG_WIDTH = 120  # columns, where there is no terminal to ask
_SUBMIT_CLASS = "org.apache.spark.deploy.SparkSubmit"
_UNDER_SPARK_SUBMIT = "PYSPARK_GATEWAY_PORT" in os.environ


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a study file and exit: 0 done, 2 configuration, 3 data, 4 no trial succeeded, 130 interrupted."""
    options = _parser().parse_args(arguments)
    console = _console()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _set_up_logging(console, options.log_file)
        config = load_config(options.config, options.overrides)
        if options.sync:
            _sync(config, options.config, console)
        line = ProgressLine(config.name, config.objective.metric, console=console)
        result = run_study(
            config, place=options.config, resume=options.resume, callbacks=[TerminalLine(line)]
        )
    except StudyInterrupted as exc:
        print(f"{exc}:\n  {_command()}", file=console.file)
        sys.exit(exc.exit_code)
    except SparkHpoError as exc:
        print(exc, file=console.file)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        print(f"interrupted before the first trial; start again with\n  {_command()}", file=console.file)
        sys.exit(130)
    except Exception:  # a mistake of ours, or of a library: told in full, but for the credentials in it
        print(redact(traceback.format_exc()), file=console.file)
        sys.exit(1)
    _print(result, console)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description="Search for the best model of a table. The last line of standard output is JSON.",
        epilog="examples: tune.py --config conf/quickstart.yaml budget.trials=60   "
        "tune.py --config conf/adult.yaml resources.world_size=1 study_dir=studies/adult-1",
    )
    parser.add_argument("--config", required=True, help="the study file, YAML")
    parser.add_argument(
        "--resume",
        choices=("auto", "must", "never"),
        default="auto",
        help="auto: go on with the study in study_dir if there is one; must: or refuse; never: refuse if so",
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="write what MLflow lacks of the study in study_dir, the registered model too, and train nothing",
    )
    parser.add_argument("--log-file", help="write one line an event to this file, too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    return parser


def _sync(config: StudyConfig, place: str, console: Console) -> NoReturn:
    synced = sync_study(config, place=place)
    line = f"MLflow lacked {synced.written} of {synced.trials} trials"
    line += ", and has them now" if synced.is_complete else ", and lacks some still"
    if synced.model is not None:
        line += f"; the model is {synced.model.uri}"
    console.print(line, highlight=False)
    summary = {"study": config.name, "study_dir": config.study_dir, **synced.summary()}
    print(json.dumps(summary), flush=True)
    sys.exit(0 if synced.is_complete else TrackingOutage.exit_code)


def _print(result: Result, console: Console) -> None:
    objective = objective_of(result.config)
    front = [trial.trial_id for trial in result.pareto_front]
    console.print(leaderboard.render(result.journal.trials.values(), objective, front))
    if objective.also:
        shown = ", ".join(map(str, front)) or "none is trained to the end within the limits"
        console.print(f"Pareto front of {', '.join(objective.metrics)}: trials {shown}", highlight=False)
    best, metric = result.best, objective.metric
    line = f"best: trial {best.trial_id} after {best.resource} epochs, {metric} {best.metrics[metric]:.5g}"
    if metric in result.test:
        line += f" on validation, {result.test[metric]:.5g} on test"
    if result.model is not None:
        line += f"; registered as {result.model.uri}"
    console.print(line, highlight=False)
    if not result.is_tracked:
        console.print("MLflow lacks a part of this. When it answers again:", highlight=False)
        print(f"  {_command()} --sync", file=console.file)  # in one line, to be copied
    print(redact(json.dumps(result.summary())), flush=True)


def _console() -> Console:
    """Where the live line and the leaderboard go: the terminal, or standard error as it is."""
    if _UNDER_SPARK_SUBMIT:
        # Standard error is a pipe to the JVM that started us; its own may be a terminal.
        with suppress(OSError):
            terminal = os.readlink(f"/proc/{os.getppid()}/fd/2")
            if terminal.startswith(("/dev/pts/", "/dev/tty")):
                return Console(file=open(terminal, "w"))
    return Console(stderr=True, width=None if sys.stderr.isatty() else _LOG_WIDTH)


def _command() -> str:
    """The command that this process was started with, but for the credentials in it."""
    if not _UNDER_SPARK_SUBMIT:
        return redact(shlex.join([sys.executable, *sys.argv]))
    # With the master and all else that spark-submit was given.
    with suppress(OSError, ValueError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text().rstrip("\0").split("\0")
        return redact(shlex.join(["spark-submit", *words[words.index(_SUBMIT_CLASS) + 1 :]]))
    return redact(shlex.join(["spark-submit", *sys.argv]))


class _Formatter(logging.Formatter):
    """A record as one line and, where there is one, its traceback; without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _set_up_logging(console: Console, log_file: str | None) -> None:
    """One line an event: to a file, and to the console unless the live line is there."""
    formatter = _Formatter("%(asctime)s %(levelname)s %(message)s")
    shown = logging.StreamHandler(console.file)
    shown.setLevel(logging.WARNING if console.is_terminal else logging.INFO)
    handlers: list[logging.Handler] = [shown]
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file))
        except OSError as exc:
            raise ConfigError(f"--log-file {log_file}: {exc.strerror}; choose a place to write to") from exc
    logger = logging.getLogger("spark_hpo")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
