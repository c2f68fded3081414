"""Runs a command line and returns its exit code."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

import spark_hpo
from spark_hpo.cli.command import Command, write_examples
from spark_hpo.cli.console import complain
from spark_hpo.errors import SparkHpoError

COMMANDS = {
    "prepare": "Prepare a table for studies from CSV, Parquet, Delta or Iceberg.",
    "init": "Write a study file for a table, with a search space that fits it.",
    "import": "Make a study file of a W&B sweep or a Determined experiment.",
    "doctor": "Check the requirements of a study, without training.",
    "run": "Run a study file to the end of its budget.",
    "resume": "Resume a study that was paused or interrupted, or whose driver died.",
    "pause": "Save the running trials of a study, and leave its slots to others.",
    "stop": "End the search of a study, and evaluate and register its best model.",
    "add": "Add a trial with parameters of your choice to a running study.",
    "drop": "Train a trial of a running study no further.",
    "extend": "Raise limits of the budget of a study.",
    "narrow": "Change the ranges of parameters for the new trials of a study.",
    "status": "Print the state of a study.",
    "watch": "Follow a running study from another terminal.",
    "serve": "Show studies on a web page that follows them as they run.",
    "report": "Write report.html, a page with the results and plots of a study.",
    "zoom": "Write the study file of a narrower search around the best trials of a study.",
    "predict": "Predict for each row of a table on Spark.",
    "export": "Export trials, parameters, the model or the journal of a study.",
    "gc": "Delete files that studies no longer need.",
}

_STEERING = ("pause", "stop", "add", "drop", "extend", "narrow")

_EXIT_CODES = (
    "Exit codes: 0 done, 2 configuration, 3 data, 4 no trial succeeded, 130 interrupted, 1 anything else."
)
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`spark-hpo`: run a command and exit."""
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments, "spark-hpo"))


def tune(arguments: Sequence[str] | None = None) -> NoReturn:
    """`jobs/tune.py`: the same, but `--config FILE ...` means `run FILE ...`, and --json is the default."""
    words = _with_command(list(sys.argv[1:] if arguments is None else arguments))
    sys.exit(_run(words, "tune.py", {name: {"as_json": True} for name in ("run", "resume")}))


def prepare_data(arguments: Sequence[str] | None = None) -> NoReturn:
    """`jobs/prepare_data.py`: the same as `spark-hpo prepare`."""
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(_run(words, "prepare_data.py", command=load_command("prepare")))


def load_command(name: str) -> click.Command:
    """Import the module of a command."""
    if name in _STEERING:
        command = getattr(importlib.import_module("spark_hpo.cli.steer"), name)
    else:
        module = "import_study" if name == "import" else name  # a keyword is not a name of a module
        command = importlib.import_module(f"spark_hpo.cli.{module}").command
    assert isinstance(command, Command)
    return command


class _Group(click.Group):
    """All commands by name. Listing them loads none, because some import torch and Spark."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(
            formatter,
            [
                "spark-hpo run conf/quickstart.yaml budget.trials=20",
                "spark-hpo watch studies/quickstart",
                "spark-hpo report studies/quickstart --open",
            ],
        )
        formatter.write_paragraph()
        formatter.write_text(_EXIT_CODES)


@click.group(cls=_Group, invoke_without_command=True)
@click.version_option(spark_hpo.__version__, prog_name="spark_hpo")
@click.pass_context
def _commands(ctx: click.Context) -> None:
    """Search for the best PyTorch model of a Parquet table on Spark.

    `spark-hpo COMMAND --help` describes a command.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _run(
    arguments: Sequence[str],
    program: str,
    defaults: Mapping[str, Any] | None = None,
    command: click.Command = _commands,
) -> int:
    signal.signal(signal.SIGTERM, _interrupt)  # as for Ctrl-C: cluster managers end jobs with SIGTERM
    try:
        code = command.main(
            list(arguments), prog_name=program, standalone_mode=False, default_map=dict(defaults or {})
        )
    except click.UsageError as exc:
        usage = exc.ctx.get_usage() + "\n" if exc.ctx else ""
        hint = f"\nsee {exc.ctx.command_path} --help" if exc.ctx else ""
        complain(f"{usage}error: {exc.format_message()}{hint}")
        return exc.exit_code
    except click.ClickException as exc:
        complain(f"error: {exc.format_message()}")
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return _INTERRUPTED
    except SparkHpoError as exc:
        complain(str(exc))
        return exc.exit_code
    except Exception:  # a bug here or in a library: print all but credentials
        complain(traceback.format_exc())
        return 1
    return code if isinstance(code, int) else 0


def _with_command(words: list[str]) -> list[str]:
    """Add the command to `--config FILE ...`, the form of the time before commands."""
    for i, word in enumerate(words):
        if word in COMMANDS:
            break
        name, separator, file = word.partition("=")
        if name == "--config" and (separator or i + 1 < len(words)):
            rest = words[:i] + words[i + (1 if separator else 2) :]
            return ["run", file if separator else words[i + 1], *rest]
    return words


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
