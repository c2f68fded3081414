"""The study itself: its file, its code, its table, and the first step of its first trial."""

from __future__ import annotations

from spark_hpo.config import load_config
from spark_hpo.data import files
from spark_hpo.data.table import SCHEMA_FILE
from spark_hpo.doctor.case import Case
from spark_hpo.doctor.finding import Verdict, fail, ok, skip, warn
from spark_hpo.driver.build import build_table
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.plan import load_transforms, plan_study
from spark_hpo.driver.rehearsal import measure_shipment, run_first_step
from spark_hpo.errors import located
from spark_hpo.trial import Split

_STEP_LIMIT_S = 240.0
_MUCH_BYTES = 10 * 2**20  # of each assignment: Spark sends it with each task
_MUCH_FILE_BYTES = 100 * 2**20
_FEW_ROWS = 100  # of validation


def study_file(case: Case) -> Verdict:
    """Read the study file."""
    case.config = load_config(case.place, case.overrides)
    config = case.config
    budget = config.budget.model_dump(exclude_none=True)
    return ok(f"{case.place}: {config.name}, {', '.join(f'{k} {v:g}' for k, v in budget.items())}")


def code(case: Case) -> Verdict:
    """Import the task, and build what searches."""
    with located(case.place):
        plan = plan_study(case.config)
        case.planned(plan, build_search(case.config, plan.space))
    search = case.config.search
    return ok(f"task {case.config.task}, method {search.method}, {len(case.config.space)} parameters")


def table(case: Case) -> Verdict:
    """Read the table's footers against its schema, and plan its rows for the ranks."""
    config = case.config
    if config.data is None:
        return skip("the study has none")
    schema_file = files.join(files.absolute(config.data.path), SCHEMA_FILE)
    if config.data.prepare is not None and not files.exists(schema_file):
        from spark_hpo.prepare.sources import find, key_of_study, with_keys

        with located(case.place), with_keys(key_of_study):
            find(config.data.prepare.source, config.data.path, config.data.prepare.options())
        return skip(f"{config.data.path} is not there yet: run prepares it first (data.prepare)")
    with located(case.place):
        table = build_table(config, load_transforms(config)[0])
    assert table is not None, "there is a data section"
    case.table = table
    rows = {split: table.manifest(split).rows for split in Split}
    label = table.schema.label
    says = (
        f"{', '.join(f'{split} {count:,}' for split, count in rows.items())} rows, "
        f"{len(table.schema.features)} features, label {label.name!r} "
        f"({'a number' if label.is_regression else f'{len(label.classes)} classes'})"
    )
    if rows[Split.VALIDATION] < _FEW_ROWS:
        return warn(
            f"{says}; a metric of {rows[Split.VALIDATION]} rows moves by chance",
            "more rows for validation (--fractions of prepare)",
        )
    return ok(says)


def shipment(case: Case) -> Verdict:
    """How much goes to the executors."""
    sent = measure_shipment(case.plan, case.table)
    files = ", ".join(f"{name} ({size:,} bytes)" for name, size in sent.file_bytes.items())
    says = f"{sent.assignment_bytes:,} bytes with each assignment; files: {files or 'none'}"
    if sent.assignment_bytes > _MUCH_BYTES:
        return warn(says, "fewer and larger files in the table, or no data in the closure of the task")
    if sum(sent.file_bytes.values()) > _MUCH_FILE_BYTES:
        return warn(says, "read data from the table or from storage, instead of shipping it")
    return ok(says)


def one_step(case: Case) -> Verdict:
    """Train one batch of the first trial, as it will be trained."""
    if case.config.backend == "spark" and case.spark is None:
        return skip("'spark' failed")
    report = run_first_step(case.plan, case.search, case.table, spark=case.spark, timeout_s=_STEP_LIMIT_S)
    if report is None:
        return skip("a training function says itself what a step is: its first trial will show")
    if report.failure is not None:
        return fail(f"the first trial fails: {report.failure.message}", "mend the task, or its parameters")
    metric = case.config.objective.metric
    ranks = case.config.resources.world_size
    value = report.metrics[metric]
    return ok(f"{ranks} rank{'s' * (ranks > 1)}, one batch, {metric} {value:.4g}, {report.seconds:.1f} s")
