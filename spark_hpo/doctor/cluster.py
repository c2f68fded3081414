"""Spark: whether it starts, what it offers, and what its executors have."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from spark_hpo.backend.spark.cluster import is_dynamic, is_local
from spark_hpo.backend.spark.gpus import gpu_profile
from spark_hpo.backend.spark.probe import ask
from spark_hpo.backend.spark.session import (
    check_resources,
    cluster_of,
    is_connect,
    running_session,
    start_session,
)
from spark_hpo.doctor import questions
from spark_hpo.doctor.case import Case
from spark_hpo.doctor.finding import Verdict, fail, ok, skip, warn
from spark_hpo.doctor.machine import SHOWN
from spark_hpo.errors import StorageError
from spark_hpo.study_dir.storage import Storage

_START_LIMIT_S = 150.0
_SLOTS_LIMIT_S = 60.0  # executors come one by one
_ASK_LIMIT_S = 90.0
_MOST_EXECUTORS = 256
_POLL_S = 0.5
_IDLE_S = 60  # of an executor, below which daemons load torch again and again


def session(case: Case) -> Verdict:
    """Start Spark as the study would, or take the session that runs."""
    config = case.config
    if config.backend == "inline":
        return skip("backend: inline runs without Spark")
    before = case.spark or running_session()
    spark = start_session(config.name, config.spark, timeout_s=_START_LIMIT_S, spark=case.spark)
    if before is None:
        case.afterwards(spark.stop)
    case.spark, case.cluster = spark, cluster_of(spark)
    master = "Spark Connect" if is_connect(spark) else case.cluster.setting("spark.master")
    says = f"Spark {spark.version}, {master}{'' if before is None else ', in the session that runs'}"
    installed = _pyspark_version()
    if spark.version.split(".")[:2] != installed.split(".")[:2]:
        return fail(
            f"{says}, but pyspark is {installed}: their calls differ",
            f"pip install pyspark=={spark.version}, or take SPARK_HOME away",
        )
    return ok(says)


def allocation(case: Case) -> Verdict:
    """Whether executors come and go."""
    cluster = case.cluster
    check_resources(cluster, world_size=case.config.resources.world_size)
    if not is_dynamic(cluster):
        return ok("a fixed number of executors")
    idle = cluster.setting("spark.dynamicAllocation.executorIdleTimeout", "60s").rstrip("s")
    if idle.isdecimal() and int(idle) < _IDLE_S:
        return warn(
            f"dynamic, with an executorIdleTimeout of {idle} s: new executors load torch again and again",
            f"spark.dynamicAllocation.executorIdleTimeout={_IDLE_S}s, or more",
        )
    return ok("dynamic: executors come and go with the trials")


def slots(case: Case) -> Verdict:
    """How many trials fit."""
    cluster, resources, budget = case.cluster, case.config.resources, case.config.budget
    deadline = time.monotonic() + (0 if is_local(cluster) else _SLOTS_LIMIT_S)
    while (tasks := cluster.num_task_slots(None)) < resources.world_size and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    trials = tasks // resources.world_size
    says = f"{tasks} tasks at once: {trials} trials of {resources.world_size} ranks"
    if not trials:
        return fail(
            f"{says}: resources.world_size is {resources.world_size}",
            "use fewer ranks, more executors or cores, or a smaller spark.task.cpus",
        )
    at_once = min(trials, resources.max_concurrent or trials)
    if budget.trials is not None and at_once > max(1, budget.trials // 4):
        return warn(
            f"{says}, more than a quarter of budget.trials ({budget.trials}): proposals see few results",
            f"resources.max_concurrent: {max(1, budget.trials // 4)}",
        )
    return ok(says)


def gpus(case: Case) -> Verdict:
    """Whether ranks get the GPUs that they are promised, and whether some lie idle."""
    asked, config = case.config.resources.gpus_per_rank, case.config
    if config.backend == "inline":
        here = questions._gpus()
        if here < asked:
            return fail(f"resources.gpus_per_rank is {asked:g}, and torch sees {here} here", "set it to 0")
        return ok(f"{here} here, {asked:g} for the rank") if asked else skip("none is asked for")
    if case.spark is None:
        return skip("'spark' failed")
    if not asked:
        seen = [answer["gpus"] for answer in _answers(case, count_gpus=True)]
        if max(seen, default=0):
            return warn(
                f"executors see {max(seen)} and trials take none",
                "resources.gpus_per_rank: 1, once Spark hands them out (docs/cluster.md)",
            )
        return ok("none is asked for, and none is there")
    tasks = case.cluster.num_task_slots(gpu_profile(case.cluster, asked))
    if tasks < config.resources.world_size:
        return fail(
            f"resources.gpus_per_rank is {asked:g}, and {tasks} such tasks run at once",
            "more GPUs or cores for executors, or fewer ranks",
        )
    return ok(f"{asked:g} for each rank: {tasks} ranks at once")


def executors(case: Case) -> Verdict:
    """Whether executors have the driver's Python and packages, and reach the driver."""
    resources, reader = case.config.resources, case.config.data.reader if case.config.data else "arrow"
    with _listening(case) as driver:
        answers = _answers(case, driver=driver)
    here = questions.who_are_you(SHOWN, None, False)
    hosts = sorted({answer["host"] for answer in answers})
    some = ", ".join([*hosts[:5], *(["..."] if hosts[5:] else [])])
    says = f"{len(answers)} slots on {len(hosts)} machines ({some})"
    faults = list(differences(here, answers, reader=reader))
    lost = sorted({f"{a['host']}: {a['driver']}" for a in answers if a["driver"]})
    if lost and resources.world_size > 1 and resources.rendezvous != "spark":
        faults.append(
            (True, f"ranks do not reach the driver ({'; '.join(lost[:3])})", "resources.rendezvous: spark")
        )
    if not faults:
        reach = "the driver's Python and packages" + ("" if driver is None else ", and a way to the driver")
        return ok(f"{says}: {reach}")
    text = "; ".join(f"{what} ({cure})" for _, what, cure in faults)
    return fail(f"{says}: {text}") if any(grave for grave, *_ in faults) else warn(f"{says}: {text}")


def differences(
    here: dict[str, Any], answers: Sequence[dict[str, Any]], *, reader: str
) -> Iterator[tuple[bool, str, str]]:
    """Where executors differ from the driver: whether it is grave, what it is, the cure."""
    for host, python in sorted({(answer["host"], answer["python"]) for answer in answers}):
        if python.split(".")[:2] != here["python"].split(".")[:2]:
            yield True, f"{host} has Python {python}, the driver {here['python']}", "PYSPARK_PYTHON"
    for name, version in here["versions"].items():
        needed = name in ("torch", "pyarrow", "numpy") or (name == "petastorm" and reader != "arrow")
        if name in ("spark_hpo", "pyspark", "mlflow") or not needed:
            continue  # sent there, Spark's own, or the driver's alone
        for other in sorted({answer["versions"][name] for answer in answers} - {version, "?"}):
            if not other and version:
                grave = name != "petastorm" or reader == "petastorm"
                yield grave, f"executors lack {name} {version}", f"pip install {name}=={version} there"
            elif other and version:
                yield False, f"executors have {name} {other}, the driver {version}", "one version everywhere"


def storage(case: Case) -> Verdict:
    """Whether what an executor writes to the study directory is seen by the driver."""
    place = Storage(case.config.study_dir)
    name = f"doctor-{uuid.uuid4().hex[:12]}"
    try:
        [answer] = ask(
            case.cluster, partial(questions.leave_a_file, place, name), most=1, timeout_s=_ASK_LIMIT_S
        )
        seen = place.read(name)
    finally:
        place.delete(name)
    if seen is None:
        return fail(
            f"{answer['host']} has written to {place.url}, and the driver does not see it",
            "a study_dir that all machines share: an object store, HDFS, NFS (docs/cluster.md)",
        )
    if seen.decode() != answer["host"]:
        raise StorageError(f"{place.url}/{name}: is not what {answer['host']} has written")
    return ok(f"{answer['host']} writes to {place.url}, and the driver sees it")


def _answers(
    case: Case, *, driver: tuple[str, int] | None = None, count_gpus: bool = False
) -> list[dict[str, Any]]:
    question = partial(questions.who_are_you, SHOWN, driver, count_gpus)
    return ask(case.cluster, question, most=_MOST_EXECUTORS, timeout_s=_ASK_LIMIT_S)


@contextmanager
def _listening(case: Case) -> Iterator[tuple[str, int] | None]:
    """A port of the driver's, where ranks would meet; None: executors do not reach it, and need not."""
    host = case.cluster.driver_host
    if host is None:
        yield None
        return
    bind = case.cluster.driver_bind_address or host
    family = socket.getaddrinfo(bind, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((bind, 0), family=family, backlog=_MOST_EXECUTORS) as server:
        yield host, server.getsockname()[1]


def _pyspark_version() -> str:
    from importlib.metadata import version

    return version("pyspark")
