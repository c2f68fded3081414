"""Checks of the study: file, code, table, storage, MLflow, and one training step."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spark_hpo.config import DataConfig, load_config
from spark_hpo.data import files
from spark_hpo.data.profile import profile
from spark_hpo.data.table import SCHEMA_FILE
from spark_hpo.doctor import cluster
from spark_hpo.doctor.context import Context
from spark_hpo.doctor.finding import Verdict, fail, ok, skip, warn
from spark_hpo.driver.backend_choice import with_backend
from spark_hpo.driver.build import build_table
from spark_hpo.driver.build_search import build_search
from spark_hpo.driver.plan import load_transforms, plan_study
from spark_hpo.driver.precheck import check_parameters
from spark_hpo.driver.rehearsal import (
    each_option,
    measure_shipment,
    predict_wait,
    run_first_step,
)
from spark_hpo.driver.table_snapshot import check_frame
from spark_hpo.driver.table_source import check_source, is_ready, schema_folder
from spark_hpo.errors import ConfigError, DataError, StorageError, located
from spark_hpo.pitfalls import find_pitfalls, find_pitfalls_of_rows
from spark_hpo.report.usage import MIN_WAITED_S, WAIT_SHARE, gpu_advice, in_bytes, memory_advice, summary
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.server_check import check_server
from spark_hpo.trial import Report, Split

if TYPE_CHECKING:
    import pyarrow as pa

_STEP_LIMIT_S = 240.0
_MAX_ASSIGNMENT_BYTES = 10 * 2**20  # Spark sends them with every task
_MAX_FILE_BYTES = 100 * 2**20
_FEW_ROWS = 100  # of validation


def study_file(context: Context) -> Verdict:
    """Read the study file."""
    context.config = config = with_backend(load_config(context.study_file, context.overrides))
    context.cleanup.callback(_remove_empty_folders, _missing_folders(config.study_dir))
    budget = config.budget.model_dump(exclude_none=True, exclude={"finish"})
    return ok(f"{context.study_file}: {config.name}, {', '.join(f'{k} {v:g}' for k, v in budget.items())}")


def code(context: Context) -> Verdict:
    """Import the task, and build sampler and scheduler."""
    with located(context.study_file):
        context.plan = plan_study(context.config)
        context.search = build_search(context.config, context.plan.space)
        unread = check_parameters(
            context.plan.code.reference, context.plan.space, Storage(context.config.study_dir)
        )
    search = context.config.search
    message = f"task {context.config.task}, method {search.method}, {len(context.config.space)} parameters"
    warnings = [warning for warning in (context.search.warning, unread) if warning is not None]
    return warn("; ".join([message, *warnings])) if warnings else ok(message)


def table(context: Context) -> Verdict:
    """Read the table's footers against its schema, and plan its rows for the ranks."""
    config = context.config
    if config.data is None:
        return skip("the study has no table")
    data, known = config.data, None
    with contextlib.suppress(StorageError):  # the check of the storage names it
        known = Definition.load(Storage(config.study_dir))
    with located(context.study_file):
        check_source(config, known)
        if data.prepare is not None and not files.exists(files.join(schema_folder(config), SCHEMA_FILE)):
            from spark_hpo.prepare.sources import find, key_of_study, with_keys

            assert data.path is not None, "the configuration has checked it"
            with with_keys(key_of_study):
                find(data.prepare.source, data.path, data.prepare.options())
            return skip(f"{data.path} does not exist yet; run creates it (data.prepare)")
        if data.prepare is None and not is_ready(config, known):
            if data.is_snapshot:
                return _source(context, data)
            return skip(f"{data.place} is not prepared; run derives the encoding of its columns")
        table = build_table(config, load_transforms(config)[0])
    assert table is not None, "there is a data section"
    context.table = table
    rows = {split: table.manifest(split).rows for split in Split}
    labels = [
        f"label {label.name!r} ({'a number' if label.is_regression else f'{len(label.classes)} classes'})"
        for label in table.schema.labels
    ]
    message = (
        f"{', '.join(f'{split} {count:,}' for split, count in rows.items())} rows, "
        f"{len(table.schema.features)} features, {', '.join(labels)}"
    )
    if rows[Split.VALIDATION] < _FEW_ROWS:
        return warn(
            f"{message}; a metric of {rows[Split.VALIDATION]} rows is noisy",
            "cross-validate (data.folds), or use more rows for validation (--fractions of prepare)",
        )
    return ok(message)


def pitfalls(context: Context) -> Verdict:
    """Look for what spoils the result: columns that give the label away, splits that share rows."""
    data = context.config.data
    if context.table is not None:
        found = find_pitfalls(context.table)
    elif data is None or data.prepare is not None or data.label is None:
        return skip("there is no table yet")
    else:
        try:
            rows = profile(data.path).sample if data.path is not None else _sample(context, data)
        except (DataError, ConfigError):
            return skip("'table' failed")
        if rows is None:
            return skip("Spark is needed for a sample of the rows")
        split = data.split
        found = find_pitfalls_of_rows(
            rows.select([name for name in rows.column_names if name not in (*data.drop, *data.extra_labels)]),
            data.label,
            at_random=not (split.group or split.time or split.column),
        )
    if found:
        return warn(" | ".join(map(str, found)))
    return ok("nothing in a sample of the rows spoils the result")


def _sample(context: Context, data: DataConfig) -> pa.Table | None:
    """Read some rows of a catalog table or a query with Spark. None: there is no Spark, or no table yet."""
    if context.spark is None or data.dataframe:
        return None
    from spark_hpo.prepare.catalog import open_frame
    from spark_hpo.prepare.catalog_profile import sample_rows

    frame = open_frame(context.spark, table=data.table, query=data.query, version=data.version)
    return sample_rows(frame)


def _source(context: Context, data: DataConfig) -> Verdict:
    """Look at a catalog table or a query, whose rows the study will write to a snapshot."""
    if data.dataframe:
        return skip("the study reads a DataFrame, which is passed to tune")
    cluster.session(context)
    if context.spark is None:
        return skip("backend: inline does not use Spark; run writes a snapshot")
    changing = check_frame(data, context.spark)
    message = f"Spark reads {data.place}; run writes its rows to a snapshot"
    if changing:
        return warn(
            f"{message}, which no other study shares, because {changing}", "nothing, or change the query"
        )
    return ok(message)


def storage(context: Context) -> Verdict:
    """Write a file to the study directory, read it, delete it."""
    folder = Storage(context.config.study_dir)
    name, content = f"doctor-{uuid.uuid4().hex[:12]}", b"written by spark-hpo doctor"
    try:
        folder.write(name, content)
        read = folder.read(name)
        folder.delete(name)
    except StorageError as exc:
        return fail(str(exc), "use a study_dir that this user may write to, or set credentials")
    if read != content or folder.read(name) is not None:
        return fail(f"{folder.url} does not return what was written", "use another study_dir")
    if Definition.load(folder) is not None:
        return ok(f"{folder.url} holds a study, which run resumes")
    return ok(f"{folder.url}: a file was written, read and deleted")


def mlflow(context: Context) -> Verdict:
    """Ask MLflow, without leaving anything there."""
    found = check_server(context.config.mlflow.tracking_uri)
    return warn("; ".join((found.message, *found.warnings))) if found.warnings else ok(found.message)


def shipment(context: Context) -> Verdict:
    """Measure what is sent to executors."""
    if context.config.backend == "driver":
        return skip("nothing is sent, because trials run in the driver")
    sent = measure_shipment(context.plan, context.table)
    files = ", ".join(f"{name} ({size:,} bytes)" for name, size in sent.file_bytes.items())
    message = f"{sent.assignment_bytes:,} bytes with each assignment; files: {files or 'none'}"
    if sent.assignment_bytes > _MAX_ASSIGNMENT_BYTES:
        return warn(message, "use fewer and larger files, and keep data out of the task's closure")
    if sum(sent.file_bytes.values()) > _MAX_FILE_BYTES:
        return warn(message, "read data from the table or from storage instead of sending it")
    return ok(message)


def one_step(context: Context) -> Verdict:
    """Train one batch of the first trial, and of others until each option of each choice has been tried."""
    config = context.config
    if config.needs_spark and context.spark is None:
        return skip("'spark' failed")
    if config.data is not None and context.table is None:
        return skip("there is no table yet")
    started = time.monotonic()
    configurations = each_option(context.plan.space, context.search, config.seed)
    reports: list[Report] = []
    for trial, params in configurations.items():
        left = _STEP_LIMIT_S - (time.monotonic() - started)
        if reports and left < reports[0].seconds:
            break
        report = run_first_step(
            context.plan, context.search, context.table, spark=context.spark, timeout_s=left, params=params
        )
        if report is None:
            return skip("a training function cannot be run for one step only")
        if report.failure is not None:
            return fail(f"{trial} fails: {report.failure.message}", "fix the task, or its parameters")
        reports.append(report)
    metric, ranks = config.objective.metric, config.resources.most_ranks
    message = (
        f"{ranks} rank{'s' * (ranks > 1)}, one batch, {metric} {reports[0].metrics[metric]:.4g}, "
        f"{reports[0].seconds:.1f} s"
    )
    left = _STEP_LIMIT_S - (time.monotonic() - started)
    predicted, cures = _predicted_use(context, reports[0], timeout_s=left)
    message = "; ".join([message, *predicted])
    if len(reports) < len(configurations):
        untried = len(configurations) - len(reports)
        return warn(f"{message}; no time for {untried} other configurations", "try them in a short study")
    others = len(reports) - 1
    message = f"{message}; {others} more for all options of the choices" if others else message
    return warn(message, "; ".join(cures)) if cures else ok(message)


def _predicted_use(context: Context, first: Report, *, timeout_s: float) -> tuple[list[str], list[str]]:
    """Return what the ranks of a study will use, in words, and what to change."""
    assert context.table is not None, "the step has trained on it"
    config, usage, cures = context.config, summary(first.usage), []
    if usage is None:
        return [], []
    found = []
    wait = predict_wait(
        context.plan, context.search, context.table, first, spark=context.spark, timeout_s=timeout_s
    )
    if wait is not None:
        found.append(
            f"a trial waits about {wait.seconds:.2g} s for data, {wait.share:.0%} of its steps' time"
        )
        if wait.share >= WAIT_SHARE and wait.seconds >= MIN_WAITED_S:
            is_off = config.data is not None and not config.data.cache.enabled
            cures.append("set data.cache.enabled: true" if is_off else "give data.cache.folder a faster disk")
    if usage.most_memory_bytes is not None:
        part = "" if usage.memory_share is None else f", {usage.memory_share:.0%} of its memory overhead"
        found.append(f"a rank uses {in_bytes(usage.most_memory_bytes)} of memory{part}")
    if usage.gpu_memory_share is not None:
        found.append(f"{usage.gpu_memory_share:.0%} of a GPU's memory")
    return found, [*cures, *gpu_advice(usage, config.resources.gpus_per_rank), *memory_advice(usage)]


def _missing_folders(url: str) -> list[Path]:
    """The local folders that a study directory needs and that do not exist, the innermost first."""
    if "://" in url and not url.startswith("file://"):
        return []
    folder = Path(os.path.abspath(url.removeprefix("file://")))
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty_folders(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # another process may have written to it
            folder.rmdir()
