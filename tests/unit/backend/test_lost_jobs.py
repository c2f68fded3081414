"""Reports of failed Spark jobs: the one line of a long Java stack trace that names the cause."""

from __future__ import annotations

import pytest

from spark_hpo.backend.spark.backend import _lost
from spark_hpo.trial import Assignment

BEGIN = "An error occurred while calling o877.collectToPython.\n: org.apache.spark.SparkException: "
FRAMES = "\tat org.apache.spark.sql.execution.QueryExecution$.withInternalError(QueryExecution.scala:654)\n"

ASSIGNMENT = Assignment(
    trial_id=0,
    attempt=1,
    params={},
    bracket=0,
    rung=0,
    resource_from=0,
    resource_to=1,
    checkpoint=None,
    seed=0,
)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            f"{BEGIN}Job aborted: Lost task 0.0: ExecutorLostFailure (executor 0 exited) Reason: code 137\n"
            f"Driver stacktrace:\n{FRAMES}",
            "ExecutorLostFailure (executor 0 exited) Reason: code 137",
        ),
        (
            f"{BEGIN}Job aborted: a failed barrier\norg.apache.spark.SparkException: Python worker exited\n"
            f"{FRAMES}Caused by: java.io.EOFException\n\t... 21 more\n",
            "org.apache.spark.SparkException: Python worker exited",
        ),
        (
            f"{BEGIN}Job aborted\norg.apache.spark.api.python.PythonException: Traceback (most recent):\n"
            f'  File "x.py", line 1\nKeyError: 7\n{FRAMES}',
            "KeyError: 7",
        ),
    ],
)
def test_lost_job_reports_the_cause_and_no_java_frame(text: str, cause: str) -> None:
    failure = _lost(ASSIGNMENT, RuntimeError(text)).failure
    assert failure is not None
    assert failure.message.partition(" (if this ")[0].endswith(cause)
    assert failure.traceback == text


def test_lost_job_reports_the_type_of_an_error_without_message() -> None:
    failure = _lost(ASSIGNMENT, ConnectionResetError()).failure
    assert failure is not None
    assert failure.message == "the Spark job failed: ConnectionResetError"
