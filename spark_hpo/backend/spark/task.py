"""What a Spark task does with a rank: which one it is, what it was given, where its report goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, MutableMapping, Sequence

import pyarrow as pa
from pyspark import BarrierTaskContext, TaskContext

from spark_hpo.backend.base import RankFunction
from spark_hpo.trial import Assignment, BarrierContext, Failure, FailureKind, Report


def run_task(
    run_rank: RankFunction,
    assignment: Assignment,
    world_size: int,
    with_gpus: bool,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """One Spark task: partition r of `range(world_size)` holds the number r, and is rank r."""
    ranks = [number for batch in batches for number in batch.column(0).to_pylist()]
    assert len(ranks) == 1, "one rank a task"
    rank = ranks[0]
    if _is_repeated():
        report = _lost(assignment)
    else:
        gpus = claim_gpus(_gpu_addresses(), os.environ) if with_gpus else ()
        report = run_rank(
            assignment,
            rank=rank,
            world_size=world_size,
            gpus=gpus,
            barrier=_barrier(rank) if world_size > 1 else None,
        )
    record = json.dumps({"rank": rank, "report": report.to_json()})
    yield pa.RecordBatch.from_pydict({"report": pa.array([record], pa.string())})


def _is_repeated() -> bool:
    """Whether Spark runs this task for a second time, behind the study's back.

    It does so where it excuses a loss, whatever spark.task.maxFailures is: that of an executor which was
    decommissioned, or taken away from its machine by Kubernetes or YARN. The tasks of a barrier it repeats as
    a stage, which counts from 0 again: spark.stage.maxConsecutiveAttempts=1 forbids that.
    """
    context = TaskContext.get()
    return context is not None and context.attemptNumber() > 0


def _lost(assignment: Assignment) -> Report:
    # A further attempt is the study's to make: it counts, puts up a fence and goes on from the checkpoint.
    return Report.failed(
        assignment,
        Failure(
            kind=FailureKind.INFRASTRUCTURE, message="its executor was lost, and Spark ran the task once more"
        ),
    )


def claim_gpus(addresses: Sequence[str], environment: MutableMapping[str, str]) -> tuple[int, ...]:
    """Make the addresses that Spark gave to this task hold, and say which `cuda:N` they are.

    Spark's addresses count a machine's GPUs as nvidia-smi does. CUDA would count what a
    CUDA_VISIBLE_DEVICES leaves that somebody has set for another process, and the fastest first. It reads
    its environment once, at its first call: this is for a process that has not called it yet.
    """
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if all(address.isdecimal() for address in addresses):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        return tuple(int(address) for address in addresses)
    # Names, such as those of the slices of a GPU (MIG), have no number of their own.
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(addresses)
    return tuple(range(len(addresses)))


def _gpu_addresses() -> list[str]:
    context = TaskContext.get()
    assert context is not None, "inside a task"
    return context.resources()["gpu"].addresses


def _barrier(rank: int) -> BarrierContext:
    context = BarrierTaskContext.get()
    host = context.getTaskInfos()[rank].address.rpartition(":")[0] or "127.0.0.1"
    return BarrierContext(host=host, gather=context.allGather)
