"""`spark-hpo doctor`."""

from __future__ import annotations

import logging

import click

from spark_hpo.cli.command import Command, config_argument, json_option, overrides_argument, verbose_option
from spark_hpo.cli.console import answers, diagnostics, say, say_json
from spark_hpo.cli.logs import set_up_logging
from spark_hpo.doctor import Status, examine
from spark_hpo.errors import ConfigError


@click.command(
    "doctor",
    cls=Command,
    examples=[
        "spark-hpo doctor my_study.yaml",
        "spark-hpo doctor my_study.yaml resources.world_size=4",
        "spark-hpo doctor my_study.yaml --json | jq '.checks[] | select(.status == \"FAIL\")'",
        "spark-submit --master yarn jobs/tune.py doctor my_study.yaml",
    ],
)
@config_argument
@overrides_argument
@json_option
@verbose_option
def command(config: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check the requirements of a study, without training.

    Checks Java, Spark, package versions, slots, GPUs, executors, storage, MLflow, the table against the task,
    the size of what is sent to executors, and a training step of the first trials. Each line begins with OK,
    WARN, FAIL or SKIP; WARN and FAIL end with a fix. Exit codes: 0 the study can run, 2 a check fails.
    """
    set_up_logging(diagnostics(), shown=logging.ERROR)
    people = diagnostics() if as_json else answers()
    findings = []
    for finding in examine(config, overrides):
        say(str(finding), people)
        findings.append(finding)
    failed = [finding.check for finding in findings if finding.status is Status.FAIL]
    if as_json:
        say_json({"config": config, "ok": not failed, "checks": [f.to_json() for f in findings]})
    say(
        f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}"
        if failed
        else "no check failed",
        people,
    )
    return ConfigError.exit_code if failed else 0
