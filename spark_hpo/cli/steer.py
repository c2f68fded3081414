"""`spark-hpo pause | stop | add | drop | extend | narrow`: requests to the driver of a running study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from spark_hpo.cli.command import Command, json_option, study_argument
from spark_hpo.cli.console import say, say_json
from spark_hpo.config.study_file import override
from spark_hpo.errors import ConfigError
from spark_hpo.report.steering import ask
from spark_hpo.study_dir.requests import TIMEOUT_S, Answer, Reply, Verb

limit_option = click.option(
    "--limit",
    type=click.FloatRange(min=0),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for the answer. A request that is not answered is kept.",
)


def steer(study: str, verb: Verb, arguments: Mapping[str, Any], *, limit_s: float, as_json: bool) -> None:
    """Send a request and print the answer.

    Raises:
        ConfigError: the request was refused.
    """
    print_answer(ask(study, verb, arguments, timeout_s=limit_s), as_json=as_json)


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print an answer.

    Raises:
        ConfigError: it is a refusal, and not for a program.
    """
    if as_json:
        say_json(answer.to_json())
    elif answer.reply is not Reply.REFUSED:
        say(answer.message)
    if answer.reply is Reply.REFUSED:
        raise ConfigError(f"{answer.verb}: refused: {answer.message}")


def _command(verb: Verb, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Declare a command that sends a request."""

    def declare(function: Callable[..., None]) -> click.Command:
        shared = study_argument
        for option in (json_option, limit_option):
            function = option(function)
        return click.command(str(verb), cls=Command, examples=examples)(shared(function))

    return declare


@_command(Verb.PAUSE, "spark-hpo pause studies/adult", "spark-hpo pause s3://bucket/studies/adult --json")
def pause(study: str, limit: float, as_json: bool) -> None:
    """Save the running trials of a study, and leave its slots to others.

    DIR is the study directory. The driver keeps running and waits for `spark-hpo resume DIR`. Trials have
    `resources.grace_s` to save, and resume from there. Time in which the study is paused does not count
    towards budget.seconds.
    """
    steer(study, Verb.PAUSE, {}, limit_s=limit, as_json=as_json)


@_command(Verb.STOP, "spark-hpo stop studies/adult", "spark-hpo stop studies/adult --now")
@click.option("--now", is_flag=True, help="Cancel the running trials; what they had reported before counts.")
def stop(study: str, now: bool, limit: float, as_json: bool) -> None:
    """End the search of a study, and evaluate and register its best model.

    DIR is the study directory. Running trials finish the rung that they are in, unless you pass --now.
    `spark-hpo resume DIR` continues the search, also after its end.
    """
    steer(study, Verb.STOP, {"now": now}, limit_s=limit, as_json=as_json)


@_command(
    Verb.ADD,
    "spark-hpo add studies/adult learning_rate=0.003",
    "spark-hpo add studies/adult learning_rate=0.003 optimizer.momentum=0.95 --like 17",
)
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--like", type=int, metavar="TRIAL", help="Take the other values from this trial.")
def add(study: str, values: tuple[str, ...], like: int | None, limit: float, as_json: bool) -> None:
    """Add a trial with parameters of your choice to a running study.

    DIR is the study directory. KEY=VALUE is a parameter; the value is YAML. Parameters that you leave out
    have the values of the best trial so far. The trial counts towards budget.trials and competes like all
    others.
    """
    params: dict[str, Any] = {}
    for text in values:
        override(params, text)
    steer(study, Verb.ADD, {"params": params, "like": like}, limit_s=limit, as_json=as_json)


@_command(Verb.DROP, "spark-hpo drop studies/adult 17")
@click.argument("trial", type=int, metavar="TRIAL")
def drop(study: str, trial: int, limit: float, as_json: bool) -> None:
    """Train a trial of a running study no further.

    DIR is the study directory, TRIAL the number of the trial. If the trial runs, it is cancelled. What it has
    reported before stays, and can still be the best result.
    """
    steer(study, Verb.DROP, {"trial": trial}, limit_s=limit, as_json=as_json)


@_command(
    Verb.EXTEND,
    "spark-hpo extend studies/adult budget.trials=+50",
    "spark-hpo extend studies/adult budget.seconds=+3600 budget.resource=2000",
)
@click.argument("limits", nargs=-1, required=True, metavar="KEY=[+]NUMBER...")
def extend(study: str, limits: tuple[str, ...], limit: float, as_json: bool) -> None:
    """Raise limits of the budget of a study.

    DIR is the study directory. KEY is budget.trials, budget.resource or budget.seconds. +NUMBER is added to
    the present limit. The new limit holds for later drivers too, until you change the number in the study
    file.
    """
    steer(study, Verb.EXTEND, {"budget": _pairs(limits)}, limit_s=limit, as_json=as_json)


@_command(
    Verb.NARROW,
    "spark-hpo narrow studies/adult 'learning_rate=[1e-4,1e-2]'",
    "spark-hpo narrow studies/adult 'optimizer=[adamw,sgd]' 'optimizer.momentum=[0.8,0.99]'",
)
@click.argument("ranges", nargs=-1, required=True, metavar="KEY=[LOW,HIGH]...")
def narrow(study: str, ranges: tuple[str, ...], limit: float, as_json: bool) -> None:
    """Change the ranges of parameters for the new trials of a study.

    DIR is the study directory. KEY=[LOW,HIGH] is the new range of a number, narrower or wider; KEY=[A,B]
    keeps these options of a choice. Earlier trials keep their parameters, and the sampler what it has
    learned.
    """
    space: dict[str, Any] = {}
    for text in ranges:
        key, _, value = text.partition("=")
        record: dict[str, Any] = {}
        override(record, f"range={value}")
        space[key] = record["range"]
    steer(study, Verb.NARROW, {"space": space}, limit_s=limit, as_json=as_json)


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    """Return `{"budget.trials": "+50"}`. YAML would read +50 as 50."""
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError("must be key=number, for example budget.trials=+50", value=text)
        pairs[key] = value
    return pairs
