"""All checks in order, with the checks that each needs and its time limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_hpo.doctor import cluster, machine, study
from spark_hpo.doctor.context import Context
from spark_hpo.doctor.finding import Finding, Status, Verdict, fail, skip
from spark_hpo.errors import SparkHpoError
from spark_hpo.redact import one_line
from spark_hpo.timeout import call_within

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    name: str
    run: Callable[[Context], Verdict]
    needs: tuple[str, ...] = ()  # names of checks that must not have failed or been skipped
    limit_s: float = 30.0


CHECKS = (
    Check(name="study file", run=study.study_file),
    Check(name="java", run=machine.java, needs=("study file",)),
    Check(name="packages", run=machine.packages),
    Check(name="code", run=study.code, needs=("study file",), limit_s=120.0),
    Check(name="table", run=study.table, needs=("study file",), limit_s=300.0),
    Check(name="pitfalls", run=study.pitfalls, needs=("study file",), limit_s=120.0),
    Check(name="storage", run=study.storage, needs=("study file",), limit_s=60.0),
    Check(name="mlflow", run=study.mlflow, needs=("study file",), limit_s=60.0),
    Check(name="spark", run=cluster.session, needs=("study file", "java"), limit_s=180.0),
    Check(name="allocation", run=cluster.allocation, needs=("spark",)),
    Check(name="slots", run=cluster.slots, needs=("spark",), limit_s=90.0),
    Check(name="gpus", run=cluster.gpus, needs=("study file",), limit_s=120.0),
    Check(name="executors", run=cluster.executors, needs=("spark",), limit_s=120.0),
    Check(name="storage from executors", run=cluster.storage, needs=("spark", "storage"), limit_s=90.0),
    Check(name="shipment", run=study.shipment, needs=("code", "table"), limit_s=120.0),
    Check(name="one step", run=study.one_step, needs=("code", "table", "storage"), limit_s=300.0),
)


def examine(
    study_file: str,
    overrides: Sequence[str] = (),
    *,
    spark: SparkSession | None = None,
    checks: Sequence[Check] = CHECKS,
) -> Iterator[Finding]:
    """Check a study file and everything it names, and leave nothing behind.

    Args:
        overrides: as for `load_config`.
        spark: the session to use; None: start the study's own, and stop it at the end.
    """
    context = Context(study_file=study_file, overrides=overrides, spark=spark)
    found: dict[str, Status] = {}
    with context.cleanup:
        for check in checks:
            finding = _finding(check, context, found)
            found[check.name] = finding.status
            yield finding


def _finding(check: Check, context: Context, found: dict[str, Status]) -> Finding:
    began = time.monotonic()
    missing = [name for name in check.needs if found.get(name) in (Status.FAIL, Status.SKIP)]
    # Java is skipped if Spark does not need it here.
    missing = [name for name in missing if not (name == "java" and found[name] is Status.SKIP)]
    if missing:
        why = "failed" if found[missing[0]] is Status.FAIL else "was skipped"
        verdict = skip(f"{missing[0]!r} {why}")
    else:
        verdict = _verdict(check, context)
    return verdict.of(check.name, time.monotonic() - began)


def _verdict(check: Check, context: Context) -> Verdict:
    try:
        return call_within(check.limit_s, lambda: check.run(context))
    except SparkHpoError as exc:  # the message contains the cure
        return fail(str(exc).strip().replace("\n", "; "))
    except TimeoutError as exc:
        return fail(one_line(exc))
    except Exception as exc:  # of whatever is checked
        return fail(f"{type(exc).__name__}: {one_line(exc)}")
