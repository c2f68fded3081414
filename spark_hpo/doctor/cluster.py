"""Checks of Spark: session, slots, GPUs and executors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from spark_hpo.backend.machine_gpus import GpuDealer, find_gpus
from spark_hpo.backend.ports import listen
from spark_hpo.backend.sharing import num_sharing
from spark_hpo.backend.spark.cluster import is_dynamic, is_local, slots_key
from spark_hpo.backend.spark.gpus import gpu_profile
from spark_hpo.backend.spark.probe import ask
from spark_hpo.backend.spark.session import (
    cluster_of,
    is_connect,
    needs_gathering,
    running_session,
    start_session,
)
from spark_hpo.config import StudyConfig
from spark_hpo.config.resources import ResourcesConfig
from spark_hpo.doctor import on_executor
from spark_hpo.doctor.context import Context
from spark_hpo.doctor.finding import Verdict, fail, ok, skip, warn
from spark_hpo.doctor.machine import SHOWN
from spark_hpo.errors import StorageError, count
from spark_hpo.study_dir.storage import Storage

_START_LIMIT_S = 150.0
_SLOTS_LIMIT_S = 60.0  # executors start one by one
_ASK_LIMIT_S = 90.0
_MOST_EXECUTORS = 256
_POLL_S = 0.5
_NO_RANKS = "trials run in the driver, and executors need only what their Spark jobs need"
_IDLE_S = 60  # with a shorter idle timeout, executors keep reloading torch


def session(context: Context) -> Verdict:
    """Start Spark as the study would, or use the running session."""
    config = context.config
    if not config.needs_spark:
        return skip(f"backend: {config.backend} does not use Spark")
    before = context.spark or running_session()
    spark = start_session(
        config.name,
        config.spark,
        timeout_s=_START_LIMIT_S,
        spark=context.spark,
        trains_on_executors=config.backend == "spark",
    )
    if before is None:
        context.cleanup.callback(spark.stop)
    context.spark, context.cluster = spark, cluster_of(spark)
    master = "Spark Connect" if is_connect(spark) else context.cluster.setting("spark.master")
    message = f"Spark {spark.version}, {master}{'' if before is None else ', in the running session'}"
    installed = _pyspark_version()
    if spark.version.split(".")[:2] != installed.split(".")[:2]:
        return fail(
            f"{message}, but pyspark is {installed}",
            f"pip install pyspark=={spark.version}, or unset SPARK_HOME",
        )
    return ok(message)


def allocation(context: Context) -> Verdict:
    """Check dynamic allocation."""
    cluster, resources = context.cluster, context.config.resources
    gathers = needs_gathering(cluster, world_size=resources.world_size, rendezvous=resources.rendezvous)
    if not is_dynamic(cluster):
        return ok("a fixed number of executors")
    idle = cluster.setting("spark.dynamicAllocation.executorIdleTimeout", "60s").rstrip("s")
    if idle.isdecimal() and int(idle) < _IDLE_S:
        return warn(
            f"dynamic, with an executorIdleTimeout of {idle} s, after which executors must load torch again",
            f"set spark.dynamicAllocation.executorIdleTimeout to {_IDLE_S}s or more",
        )
    message = "dynamic: executors start and stop with the trials"
    if gathers:
        message += f". The {resources.most_ranks} ranks of a trial start one by one and wait for each other"
    return ok(message)


def slots(context: Context) -> Verdict:
    """Count the trials that can run at once."""
    cluster, resources, budget = context.cluster, context.config.resources, context.config.budget
    waits = not (is_local(cluster) or cluster.can_grow())
    deadline = time.monotonic() + (_SLOTS_LIMIT_S if waits else 0)
    key, unit, needed = "world_size", "rank", resources.most_ranks
    if context.config.backend == "driver":
        key, unit, needed = "slots_per_trial", "slot", resources.slots_per_trial
    while (tasks := cluster.num_task_slots(None)) < needed and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    trials = tasks // needed
    message = f"{count(tasks, 'task')} at once: {count(trials, 'trial')} of {count(needed, unit)}"
    if others := num_sharing(slots_key(cluster)):
        message += f", shared with other running studies of this process: {others} (resources.share)"
    if not trials and cluster.can_grow():
        return ok(f"{message}; Spark starts executors when a trial waits")
    if not trials:
        return fail(
            f"{message}: resources.{key} is {needed}",
            f"use fewer {unit}s, more executors or cores, or a smaller spark.task.cpus",
        )
    at_once = min(trials, resources.max_concurrent or trials)
    if budget.trials is not None and at_once > max(1, budget.trials // 4):
        return warn(
            f"{message}, more than a quarter of budget.trials ({budget.trials}): proposals use few results",
            f"set resources.max_concurrent: {max(1, budget.trials // 4)}",
        )
    return ok(message)


def gpus(context: Context) -> Verdict:
    """Check that ranks get their GPUs, and that no GPU is idle."""
    asked, config = context.config.resources.gpus_per_rank, context.config
    if config.backend == "inline":
        here = on_executor.count_visible_gpus()
        if here < asked:
            return fail(f"resources.gpus_per_rank is {asked:g}, but torch finds {here} here", "set it to 0")
        return ok(f"{here} here, {asked:g} for the rank") if asked else skip("no GPUs requested")
    if config.backend == "local":
        if not asked:
            return skip("no GPUs requested")
        return _gpus_of_this_machine(config)
    if config.backend == "driver":
        return skip("trials run in the driver, and their Spark jobs get GPUs from Spark")
    if context.spark is None:
        return skip("'spark' failed")
    if asked and is_local(context.cluster):
        return _gpus_of_this_machine(config)
    if not asked:
        seen = [answer["gpus"] for answer in _answers(context, count_gpus=True)]
        if max(seen, default=0):
            return warn(
                f"executors have {max(seen)} GPUs, but trials use none",
                "set resources.gpus_per_rank: 1, after configuring Spark to assign GPUs (docs/cluster.md)",
            )
        return ok("no GPUs requested, none available")
    tasks = context.cluster.num_task_slots(gpu_profile(context.cluster, asked))
    if tasks < config.resources.most_ranks:
        return fail(
            f"resources.gpus_per_rank is {asked:g}, but only {tasks} such tasks fit at once",
            "use more GPUs or cores for executors, or fewer ranks",
        )
    return ok(f"{asked:g} for each rank: {tasks} ranks at once")


def _gpus_of_this_machine(config: StudyConfig) -> Verdict:
    found = find_gpus()
    slots = GpuDealer(found, config.resources.gpus_per_rank).num_slots(config.resources.most_ranks)
    return ok(f"{len(found)} on this machine, for {count(slots, 'trial')} at once")


def executors(context: Context) -> Verdict:
    """Check that executors have the driver's Python and packages, and can reach the driver."""
    if context.config.backend == "driver":
        return skip(_NO_RANKS)
    resources, reader = (
        context.config.resources,
        context.config.data.reader if context.config.data else "arrow",
    )
    with _listening(context) as driver:
        answers = _answers(context, driver=driver)
    here = on_executor.executor_info(SHOWN, None, False)
    hosts = sorted({answer["host"] for answer in answers})
    some = ", ".join([*hosts[:5], *(["..."] if hosts[5:] else [])])
    message = f"{len(answers)} slots on {len(hosts)} machines ({some})"
    faults = list(differences(here, answers, reader=reader))
    lost = sorted({f"{a['host']}: {a['driver']}" for a in answers if a["driver"]})
    if lost and resources.most_ranks > 1 and resources.rendezvous != "spark":
        faults.append(
            (
                True,
                f"ranks cannot reach the driver ({'; '.join(lost[:3])})",
                "set resources.rendezvous: spark",
            )
        )
    faults += other_ports(answers, resources)
    if not faults:
        reach = "the driver's Python and packages" + ("" if driver is None else ", and a way to the driver")
        return ok(f"{message}: {reach}")
    text = "; ".join(f"{what} ({cure})" for _, what, cure in faults)
    return fail(f"{message}: {text}") if any(grave for grave, *_ in faults) else warn(f"{message}: {text}")


def other_ports(
    answers: Sequence[dict[str, Any]], resources: ResourcesConfig
) -> Iterator[tuple[bool, str, str]]:
    """Yield where gloo or NCCL would listen on other ports than those of the study, as `differences`."""
    if resources.most_ranks == 1 or resources.ports is None:
        return
    ours = resources.listen_ports()
    for first, last in sorted({tuple(answer["ports"]) for answer in answers if answer["ports"]}):
        if first < ours[0] or last > ours[-1]:
            yield (
                False,
                f"gloo and NCCL listen on ports {first}-{last}, not only on resources.ports",
                f'run sysctl -w net.ipv4.ip_local_port_range="{ours[0]} {ours[-1]}" on executors',
            )


def differences(
    here: dict[str, Any], answers: Sequence[dict[str, Any]], *, reader: str
) -> Iterator[tuple[bool, str, str]]:
    """Yield differences between executors and the driver: whether it is serious, what it is, the fix."""
    for host, python in sorted({(answer["host"], answer["python"]) for answer in answers}):
        if python.split(".")[:2] != here["python"].split(".")[:2]:
            yield True, f"{host} has Python {python}, the driver {here['python']}", "set PYSPARK_PYTHON"
    for name, version in here["versions"].items():
        needed = name in ("torch", "pyarrow", "numpy") or (name == "petastorm" and reader != "arrow")
        if name in ("spark_hpo", "pyspark", "mlflow") or not needed:
            continue  # sent to executors, part of Spark, or only used by the driver
        for other in sorted({answer["versions"][name] for answer in answers} - {version, "?"}):
            if not other and version:
                grave = name != "petastorm" or reader == "petastorm"
                yield grave, f"executors lack {name} {version}", f"pip install {name}=={version} there"
            elif other and version:
                yield (
                    False,
                    f"executors have {name} {other}, the driver {version}",
                    "install the same version",
                )


def storage(context: Context) -> Verdict:
    """Check that the driver can read what an executor writes to the study directory."""
    if context.config.backend == "driver":
        return skip(_NO_RANKS)
    place = Storage(context.config.study_dir)
    name = f"doctor-{uuid.uuid4().hex[:12]}"
    try:
        [answer] = ask(
            context.cluster, partial(on_executor.write_file, place, name), most=1, timeout_s=_ASK_LIMIT_S
        )
        seen = place.read(name)
    finally:
        place.delete(name)
    if seen is None:
        return fail(
            f"{answer['host']} wrote to {place.url}, but the driver cannot see the file",
            "use a study_dir that all machines share: an object store, HDFS, NFS (docs/cluster.md)",
        )
    if seen.decode() != answer["host"]:
        raise StorageError(f"{place.url}/{name} differs from what {answer['host']} wrote")
    return ok(f"the driver can read what {answer['host']} writes to {place.url}")


def _answers(
    context: Context, *, driver: tuple[str, int] | None = None, count_gpus: bool = False
) -> list[dict[str, Any]]:
    function = partial(on_executor.executor_info, SHOWN, driver, count_gpus)
    return ask(context.cluster, function, most=_MOST_EXECUTORS, timeout_s=_ASK_LIMIT_S)


@contextmanager
def _listening(context: Context) -> Iterator[tuple[str, int] | None]:
    """Open a port as for a rendezvous of ranks. None: executors cannot reach the driver, and need not."""
    host = context.cluster.driver_host
    if host is None:
        yield None
        return
    bind = context.cluster.driver_bind_address or host
    with listen(bind, context.config.resources.listen_ports()) as server:
        yield host, server.getsockname()[1]


def _pyspark_version() -> str:
    from importlib.metadata import version

    return version("pyspark")
