"""All checks, in order: each with what it needs and how long it may take. One that fails hides no other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_hpo.doctor import cluster, machine, places, trial
from spark_hpo.doctor.case import Case
from spark_hpo.doctor.finding import Finding, Status, Verdict, fail, skip
from spark_hpo.errors import SparkHpoError
from spark_hpo.redact import one_line
from spark_hpo.timeout import call_within

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A look at one thing."""

    name: str
    look: Callable[[Case], Verdict]
    needs: tuple[str, ...] = ()  # checks that must not have failed, or been skipped
    limit_s: float = 30.0


CHECKS = (
    Check(name="study file", look=trial.study_file),
    Check(name="java", look=machine.java, needs=("study file",)),
    Check(name="packages", look=machine.packages),
    Check(name="code", look=trial.code, needs=("study file",), limit_s=120.0),
    Check(name="table", look=trial.table, needs=("study file",), limit_s=300.0),
    Check(name="storage", look=places.storage, needs=("study file",), limit_s=60.0),
    Check(name="mlflow", look=places.mlflow, needs=("study file",), limit_s=60.0),
    Check(name="spark", look=cluster.session, needs=("study file", "java"), limit_s=180.0),
    Check(name="allocation", look=cluster.allocation, needs=("spark",)),
    Check(name="slots", look=cluster.slots, needs=("spark",), limit_s=90.0),
    Check(name="gpus", look=cluster.gpus, needs=("study file",), limit_s=120.0),
    Check(name="executors", look=cluster.executors, needs=("spark",), limit_s=120.0),
    Check(name="storage from executors", look=cluster.storage, needs=("spark", "storage"), limit_s=90.0),
    Check(name="shipment", look=trial.shipment, needs=("code", "table"), limit_s=120.0),
    Check(name="one step", look=trial.one_step, needs=("code", "table", "storage"), limit_s=300.0),
)


def examine(
    place: str,
    overrides: Sequence[str] = (),
    *,
    spark: SparkSession | None = None,
    checks: Sequence[Check] = CHECKS,
) -> Iterator[Finding]:
    """Look at a study file and all that it names. Nothing is trained, and nothing is left behind.

    Args:
        place: the study file.
        overrides: as for `load_config`.
        spark: the session to be used; None: the study's own is started, and stopped.
    """
    case = Case(place=place, overrides=overrides, spark=spark)
    found: dict[str, Status] = {}
    with contextlib.closing(case):
        for check in checks:
            finding = _finding(check, case, found)
            found[check.name] = finding.status
            yield finding


def _finding(check: Check, case: Case, found: dict[str, Status]) -> Finding:
    began = time.monotonic()
    missing = [name for name in check.needs if found.get(name) in (Status.FAIL, Status.SKIP)]
    # Java is not looked for where Spark needs none here.
    missing = [name for name in missing if not (name == "java" and found[name] is Status.SKIP)]
    if missing:
        why = "failed" if found[missing[0]] is Status.FAIL else "was skipped"
        verdict = skip(f"{missing[0]!r} {why}")
    else:
        verdict = _verdict(check, case)
    return verdict.of(check.name, time.monotonic() - began)


def _verdict(check: Check, case: Case) -> Verdict:
    try:
        return call_within(check.limit_s, lambda: check.look(case))
    except SparkHpoError as exc:  # the message contains the cure
        return fail(str(exc).strip().replace("\n", "; "))
    except TimeoutError as exc:
        return fail(one_line(exc))
    except Exception as exc:  # of whatever is checked
        return fail(f"{type(exc).__name__}: {one_line(exc)}")
