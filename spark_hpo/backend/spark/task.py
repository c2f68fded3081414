"""The code of a Spark task: runs one rank, and returns its report as a row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, MutableMapping, Sequence

import pyarrow as pa
from pyspark import BarrierTaskContext, TaskContext

from spark_hpo.backend.base import BarrierContext, RankFunction
from spark_hpo.backend.machine_gpus import Hand
from spark_hpo.trial import Assignment, Failure, FailureKind, Report


def run_task(
    run_rank: RankFunction,
    assignment: Assignment,
    world_size: int,
    take_gpus: Callable[[int], tuple[int, ...]],
    batches: Iterator[pa.RecordBatch],
    *,
    has_barrier: bool,
) -> Iterator[pa.RecordBatch]:
    """Run rank r, in the task of the partition of `range(world_size)` that holds the number r.

    Args:
        take_gpus: returns N of each `cuda:N` of a rank, and prepares the environment for CUDA.
        has_barrier: Spark starts the tasks of all ranks together.
    """
    ranks = [number for batch in batches for number in batch.column(0).to_pylist()]
    assert len(ranks) == 1, "one rank per task"
    rank = ranks[0]
    if _is_repeated():
        report = _lost(assignment)
    else:
        report = run_rank(
            assignment,
            rank=rank,
            world_size=world_size,
            gpus=take_gpus(rank),
            barrier=_barrier(rank) if has_barrier else None,
        )
    record = json.dumps({"rank": rank, "report": report.to_json()})
    yield pa.RecordBatch.from_pydict({"report": pa.array([record], pa.string())})


def _is_repeated() -> bool:
    """Return whether Spark itself has restarted this task.

    Spark does so, whatever spark.task.maxFailures is, when it does not blame the task: after an executor was
    decommissioned, or preempted by Kubernetes or YARN. It restarts barrier tasks as a stage, whose attempts
    count from 0 again; spark.stage.maxConsecutiveAttempts=1 forbids that.
    """
    context = TaskContext.get()
    return context is not None and context.attemptNumber() > 0


def _lost(assignment: Assignment) -> Report:
    # Only the study retries: it counts attempts, fences off earlier ones, and continues from a checkpoint.
    return Report.failed(
        assignment,
        Failure(
            kind=FailureKind.INFRASTRUCTURE, message="its executor was lost, and Spark restarted the task"
        ),
    )


def no_gpus(rank: int) -> tuple[int, ...]:
    """Of a rank that uses the CPU."""
    return ()


def gpus_of_spark(rank: int) -> tuple[int, ...]:
    """Those that Spark has assigned to this task."""
    return claim_gpus(_gpu_addresses(), os.environ)


def gpus_of_hand(hands: Sequence[Hand], rank: int) -> tuple[int, ...]:
    """Those that the driver has dealt to this rank, with local[N], where Spark assigns none."""
    os.environ.update(hands[rank].environment)
    return hands[rank].gpus


def claim_gpus(addresses: Sequence[str], environment: MutableMapping[str, str]) -> tuple[int, ...]:
    """Make CUDA number devices like the addresses that Spark assigned, and return N of each `cuda:N`.

    Spark's addresses number a machine's GPUs as nvidia-smi does. CUDA by default puts the fastest first, and
    counts only the devices in CUDA_VISIBLE_DEVICES, which may be left over from another process. CUDA reads
    the environment at its first call, so call this before.
    """
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if all(address.isdecimal() for address in addresses):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        return tuple(int(address) for address in addresses)
    # Names, such as those of MIG slices of a GPU, have no number.
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
