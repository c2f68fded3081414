"""The parts of `make gpu-check` that compare no curves: groups, two trials, memory, and speed.

Each returns figures, and raises AssertionError with a sentence if something is wrong.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spark_hpo.data.loader import Loader
from spark_hpo.data.table import Table, open_table
from spark_hpo.objective import Mode, Objective
from spark_hpo.study_dir.storage import Storage
from spark_hpo.train.checked_task import CheckedTask
from spark_hpo.train.context import TrainContext
from spark_hpo.train.device_batches import on_device
from spark_hpo.train.loop import Trainer
from spark_hpo.train.rank import RankSpec
from spark_hpo.train.reference import Trainable, find_trainable
from spark_hpo.train.rendezvous.world import World
from spark_hpo.train.strategy import FullySharded, LossModule
from spark_hpo.train.task import Batch
from spark_hpo.train.tasks.tabular import TabularTask
from spark_hpo.train.training_settings import Precision, TrainingSettings
from spark_hpo.train.worker import run_rank
from spark_hpo.trial import Assignment, Report, Split

LIMIT_S = 240.0
ROOM_BYTES = 400 * 2**20  # that a process may use beyond what it has, when a batch must not fit
_HELD_BYTES = 2**30
ROW_NUMBERS = 2**20  # float32 numbers that a row of `Hungry` needs: 4 MB


class Hungry(TabularTask):
    """Needs 4 MB per row while it computes."""

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        outputs = super().forward(model, batch)
        torch.empty(len(outputs), ROW_NUMBERS, device=outputs.device)
        return outputs


def device_of(gpus: Sequence[int]) -> torch.device:
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")


def spec_of(task: str | Trainable, table: Path, study: str, **settings: Any) -> RankSpec:
    return RankSpec(
        study_id=f"gpu-check-{study}",
        storage=Storage(study),
        trainable=task,
        table=open_table(str(table)),
        objective=Objective(metric="accuracy", mode=Mode.MAX),
        settings=TrainingSettings(precision=Precision.FP32, **settings),
        max_resource=4,
        seed=0,
        reader="arrow",
        shuffle_window=100_000,
    )


def assignment(params: Mapping[str, Any], start: int, stop: int, checkpoint: str | None = None) -> Assignment:
    return Assignment(
        trial_id=0,
        attempt=1,
        params=params,
        bracket=0,
        rung=start,
        resource_from=start,
        resource_to=stop,
        checkpoint=checkpoint,
        seed=5,
    )


def completed(report: Report) -> Report:
    assert report.failure is None, report.failure.traceback
    return report


def resume(task: str, params: Mapping[str, Any], table: Path, gpus: Sequence[int]) -> dict[str, Any]:
    """A trial in two rungs ends as one that is trained at once."""
    with tempfile.TemporaryDirectory() as study:
        rungs, at_once = (
            spec_of(task, table, f"{study}/{name}", batch_size=256) for name in ("rungs", "once")
        )
        first = completed(run_rank(rungs, assignment(params, 0, 1), rank=0, world_size=1, gpus=gpus))
        second = assignment(params, 1, 2, first.checkpoint)
        resumed = completed(run_rank(rungs, second, rank=0, world_size=1, gpus=gpus)).metrics
        whole = completed(
            run_rank(at_once, assignment(params, 0, 2), rank=0, world_size=1, gpus=gpus)
        ).metrics
    # Kernels of a GPU may add in another order each time.
    difference = abs(resumed["loss"] - whole["loss"]) / whole["loss"]
    assert difference <= (1e-3 if gpus else 0.0), f"resumed, the loss differs by {difference:.2g}"
    return {"loss": round(whole["loss"], 4), "difference": difference}


def group_of_one(task: str, params: Mapping[str, Any], table: Path, gpus: Sequence[int]) -> dict[str, Any]:
    """NCCL (gloo on the CPU) with one rank: a collective operation, and FSDP beside the plain model."""
    device, opened = device_of(gpus), open_table(str(table))
    world = World(rank=0, size=1, device=device)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "nccl" if gpus else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            ones = torch.ones(3, device=device)
            dist.all_reduce(ones)
            assert ones.tolist() == [1.0, 1.0, 1.0], f"the sum over one rank is {ones.tolist()}"
            losses: dict[bool, list[float]] = {}
            for is_sharded in (False, True):
                torch.manual_seed(0)
                checked = CheckedTask(find_trainable(task)(params, opened.schema))  # type: ignore[call-arg, arg-type]
                module = LossModule(checked.build_model().to(device), checked)
                if is_sharded:
                    FullySharded(module, world)
                losses[is_sharded] = _few_steps(module, checked, batches(opened, device, batch_size=256))
        finally:
            dist.destroy_process_group()
    difference = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    assert difference <= 1e-4, f"FSDP's losses differ by {difference:.2g}"
    return {"steps": len(losses[True]), "difference": difference}


def _few_steps(module: LossModule, task: CheckedTask, rows: Iterable[Batch]) -> list[float]:
    optimizer = task.build_optimizer(module.model)
    losses = []
    for batch, _ in zip(rows, range(10), strict=False):
        _, loss = module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def two_trials(task: str, params: Mapping[str, Any], table: Path, gpus: Sequence[int]) -> dict[str, Any]:
    """Two trials that share a device end as one that has it alone."""
    with tempfile.TemporaryDirectory() as study, multiprocessing.get_context("spawn").Pool(2) as pool:
        pending = [
            pool.apply_async(_trial, (task, params, str(table), f"{study}/{number}", gpus))
            for number in range(2)
        ]
        losses = [trial.get(LIMIT_S) for trial in pending]
        alone = _trial(task, params, str(table), f"{study}/alone", gpus)
    difference = max(abs(loss - alone) / alone for loss in losses)
    assert difference <= 1e-3, f"two trials at a time differ from one alone by {difference:.2g}"
    return {"difference": difference}


def _trial(task: str, params: Mapping[str, Any], table: str, study: str, gpus: Sequence[int]) -> float:
    torch.set_num_threads(1)  # as many as in the process that the result is compared with
    spec = spec_of(task, Path(table), study, batch_size=256)
    report = completed(run_rank(spec, assignment(params, 0, 1), rank=0, world_size=1, gpus=gpus))
    return report.metrics["loss"]


def use(table: Path, gpus: Sequence[int]) -> dict[str, Any]:
    """A reader that is slower than the processor, and faster than the GPU, keeps no step waiting there."""
    with tempfile.TemporaryDirectory() as study:
        spec = replace(spec_of(_multiply, table, study), table=None)
        report = completed(run_rank(spec, assignment({}, 0, 1), rank=0, world_size=1, gpus=gpus))
    used = report.usage[0]
    assert used.wait_share is not None
    if gpus:
        assert used.wait_share < 0.2, (
            f"steps wait {used.wait_share:.2f} of their time, but the GPU is at work"
        )
    if used.gpu_memory_bytes is not None:  # NVML is installed
        assert used.gpu_memory_bytes > _HELD_BYTES
        assert used.gpu, "the GPU was at work"
    return {
        "wait_share": used.wait_share,
        "memory_bytes": used.memory_bytes,
        "gpu": used.gpu,
        "gpu_memory_bytes": used.gpu_memory_bytes,
        "gpu_power_w": used.gpu_power_w,
    }


def _multiply(ctx: TrainContext) -> dict[str, float]:
    """Hold memory of the device, and queue work of some 50 ms for each batch, for 4 s."""
    is_gpu = ctx.device.type == "cuda"
    held = torch.empty(_HELD_BYTES if is_gpu else 1, dtype=torch.uint8, device=ctx.device)
    matrix = torch.rand(4096 if is_gpu else 256, 4096 if is_gpu else 256, device=ctx.device)

    def read() -> Iterator[int]:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            time.sleep(0.01)
            yield 0

    for _ in ctx.timed(read()):
        for _ in range(20):
            matrix = (matrix @ matrix).clamp(0, 1)
    return {"accuracy": float(matrix.mean()) + len(held) * 0}


def halved(table: Path, gpus: Sequence[int]) -> dict[str, Any]:
    """A batch that really does not fit is halved until it does, in a process with little memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool, tempfile.TemporaryDirectory() as study:
        notes = pool.apply_async(_halved, (str(table), study, gpus)).get(LIMIT_S)
    assert notes.get("micro_batch", {}).get("halved", 0) > 0, "the batch fitted: nothing was halved"
    found: dict[str, Any] = notes["micro_batch"]
    return found


def _halved(table: str, study: str, gpus: Sequence[int]) -> Mapping[str, Any]:
    torch.set_num_threads(1)
    spec = spec_of(
        Hungry, Path(table), study, batch_size=10**9, evaluation_batch_size=256, micro_batch="auto"
    )
    few = replace(spec.settings, batch_size=8, evaluation_batch_size=8)
    small = replace(spec, storage=Storage(f"{study}/small"), settings=few)
    completed(run_rank(small, assignment({}, 0, 1), rank=0, world_size=1, gpus=gpus))  # loads the code
    if gpus:
        total = torch.cuda.get_device_properties(gpus[0]).total_memory
        share = (torch.cuda.memory_reserved(gpus[0]) + ROOM_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(share, gpus[0])
    else:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
    return completed(run_rank(spec, assignment({}, 0, 1), rank=0, world_size=1, gpus=gpus)).notes


def batches(table: Table, device: torch.device, *, batch_size: int, number: int = 0) -> Iterable[Batch]:
    """The batches of a pass on a device, as the training loop reads them."""
    return on_device(next(iter(_loader(table, batch_size).passes(number, number + 1))), device)


def _loader(table: Table, batch_size: int) -> Loader:
    return Loader(
        table,
        Split.TRAIN,
        rank=0,
        world_size=1,
        batch_size=batch_size,
        seed=0,
        reader="arrow",
        shuffle_window=100_000,
    )


def speed(task: str, params: Mapping[str, Any], table: Path, gpus: Sequence[int], batch_size: int) -> Any:
    """Rows per second of the training loop, beside the same steps on batches that are on the device."""
    device, opened = device_of(gpus), open_table(str(table))
    world = World(rank=0, size=1, device=device)
    settings = TrainingSettings(batch_size=batch_size)
    trainer = Trainer(
        find_trainable(task)(params, opened.schema),  # type: ignore[call-arg, arg-type]
        world,
        settings,
        seed=0,
        total_steps=10**6,
    )
    loader = _loader(opened, batch_size)
    rows = opened.manifest(Split.TRAIN).rows
    resident = list(on_device(next(iter(loader.passes(0, 1))), device))

    def timed(source: Iterable[Batch]) -> float:
        began = time.perf_counter()
        for batch in source:
            trainer._step(batch, global_rows=len(next(iter(batch.values()))))
        if gpus:
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    timed(resident)  # loads kernels
    loop_s, resident_s = [], []
    for _, one_pass in zip(range(9), loader.passes(0, 9), strict=False):
        loop_s.append(timed(on_device(one_pass, device)))
        resident_s.append(timed(resident))
    return {
        "rows_per_s": round(rows / min(loop_s)),
        "share": round(min(resident_s) / min(loop_s), 3),
        "busy": round(_busy_share(lambda: timed(on_device(next(iter(loader.passes(1, 2))), device))), 3)
        if gpus
        else None,
    }


def _busy_share(run: Any) -> float:
    """The share of a run in which the GPU computes."""
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        )
        seconds = run()
    busy_us = sum(event.self_device_time_total for event in profile.key_averages())
    return min(1.0, busy_us / 1e6 / seconds)
