"""Runs one rank of one assignment on an executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from spark_hpo.backend.base import BarrierContext, DriverContext
from spark_hpo.train.function_rank import FunctionRank
from spark_hpo.train.rank import RankSetup, RankSpec
from spark_hpo.train.rank_failure import failure_of
from spark_hpo.train.reference import find_trainable, is_task
from spark_hpo.train.rendezvous.world import init_group
from spark_hpo.train.step_coordinator import Stopped
from spark_hpo.train.task_rank import TaskRank
from spark_hpo.train.usage.meter import UsageMeter
from spark_hpo.train.usage.waits import DataWaits, gpu_work
from spark_hpo.train.watchdog import Watchdog
from spark_hpo.trial import Assignment, Failure, FailureKind, Report


def group_key(study_id: str, assignment: Assignment) -> str:
    """Return the key that identifies the ranks of an attempt to each other."""
    parts = (study_id, *assignment.key, assignment.rung, assignment.split, assignment.attempt)
    return "/".join(map(str, parts))


def run_rank(
    spec: RankSpec,
    assignment: Assignment,
    *,
    rank: int,
    world_size: int,
    gpus: Sequence[int] = (),
    barrier: BarrierContext | None = None,
    driver: DriverContext | None = None,
) -> Report:
    """Run one rank of an assignment, as a `RankFunction`. The model is on the first of `gpus`.

    Returns:
        The same metrics on every rank. Rank 0 has saved the checkpoint that the report names.
    """
    devices = [torch.device("cuda", gpu) for gpu in gpus] or [torch.device("cpu")]
    waits = DataWaits(gpu_work(devices[0]))

    def run() -> Report:
        return _run(
            spec,
            assignment,
            rank=rank,
            world_size=world_size,
            devices=devices,
            waits=waits,
            barrier=barrier,
            driver=driver,
        )

    if driver is not None:  # the trials of a driver share its process
        return run()
    with UsageMeter(rank, gpus, waits) as meter, waits.of_data_loaders():
        report = run()
    return replace(report, usage=(meter.use(),))


def _run(
    spec: RankSpec,
    assignment: Assignment,
    *,
    rank: int,
    world_size: int,
    devices: Sequence[torch.device],
    waits: DataWaits,
    barrier: BarrierContext | None,
    driver: DriverContext | None,
) -> Report:
    report = Report.started(assignment)
    key = group_key(spec.study_id, assignment)
    try:
        if devices[0].type == "cuda":
            torch.cuda.set_device(devices[0])
        with (
            Watchdog(spec.storage, assignment, rank=rank, limit_s=spec.rank_timeout_s) as watchdog,
            init_group(
                spec.rendezvous, barrier, key=key, rank=rank, size=world_size, device=devices[0]
            ) as world,
        ):
            setup = RankSetup(spec, assignment, world, devices, driver, waits)
            started = _rank(setup)
            watchdog.follow(lambda: started.progress)
            try:
                report = started.run(report)
                if report.failure is None:
                    setup.checkpoints.wait()
                return report
            except Stopped:
                setup.checkpoints.wait()
                raise
            finally:
                setup.checkpoints.close()
    except Stopped:
        return replace(
            report, failure=Failure(kind=FailureKind.INTERRUPTED, message="stopped because the driver asked")
        )
    except (Exception, SystemExit) as exc:  # the user's code may raise anything
        return replace(report, failure=failure_of(exc, world_size))


def _rank(setup: RankSetup) -> TaskRank | FunctionRank:
    trainable = find_trainable(setup.spec.trainable)
    if isinstance(trainable, type) and is_task(trainable):
        return TaskRank(setup, trainable)
    return FunctionRank(setup, trainable)
