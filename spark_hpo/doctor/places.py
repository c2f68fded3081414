"""Where results go: the study directory and MLflow."""

from __future__ import annotations

import uuid

from spark_hpo.doctor.case import Case
from spark_hpo.doctor.finding import Verdict, fail, ok, warn
from spark_hpo.errors import StorageError
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.storage import Storage
from spark_hpo.tracking.server_check import check_server


def storage(case: Case) -> Verdict:
    """Write a file to the study directory, read it, delete it."""
    place = Storage(case.config.study_dir)
    name, content = f"doctor-{uuid.uuid4().hex[:12]}", b"written by spark-hpo doctor, and deleted again"
    try:
        place.write(name, content)
        seen = place.read(name)
        place.delete(name)
    except StorageError as exc:
        return fail(str(exc), "a study_dir that this user may write to, with its keys in the environment")
    if seen != content or place.read(name) is not None:
        return fail(f"{place.url}: what is written there is not what is read", "another study_dir")
    if Definition.load(place) is not None:
        return ok(f"{place.url}: holds a study already, which run goes on with")
    return ok(f"{place.url}: a file was written, read and deleted")


def mlflow(case: Case) -> Verdict:
    """Ask MLflow, without leaving anything there."""
    found = check_server(case.config.mlflow.tracking_uri)
    if found.warnings:
        return warn(f"{found.message}; {'; '.join(found.warnings)}")
    return ok(found.message)
