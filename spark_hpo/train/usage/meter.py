"""Samples what a rank uses, in a thread beside it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from spark_hpo.train.usage.gpus import GpuMeter
from spark_hpo.train.usage.series import Series
from spark_hpo.train.usage.waits import DataWaits
from spark_hpo.trial import RankUse, UseSample

with contextlib.suppress(ImportError):  # psutil is not installed on this executor
    from spark_hpo.train.usage.processes import ProcessMeter

INTERVAL_S = 1.0  # between two samples, at least
MAX_SHARE = 0.01  # of the time, for sampling
_END_LIMIT_S = 5.0
_CORES = len(os.sched_getaffinity(0))


class _Counters(NamedTuple):
    """Totals at the time of a sample."""

    at_s: float
    cpu_s: float | None
    waited_s: float


class UsageMeter:
    """Samples the processes and the GPUs of a rank while it is open. It never raises.

    A sample lists all processes of the machine to find child processes, and the more there are, the longer it
    takes. The pause until the next one grows with it, so that sampling takes at most 1 % of the time. A rank
    that ends within a second is not sampled: its use is that of its own process.

    A trace: samples of 0.5 ms after 1, 2, 3 s; one of 30 ms after 4 s; the next one after 7 s
    """

    def __init__(self, rank: int, gpus: Sequence[int], waits: DataWaits) -> None:
        self._rank = rank
        self._gpus = gpus
        self._waits = waits
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._processes: ProcessMeter | None = None
        self._gpu_meter: GpuMeter | None = None
        self._series = Series()
        self._last = _Counters(0.0, 0.0, 0.0)
        self._thread = threading.Thread(target=self._run, name="spark_hpo-usage", daemon=True)
        self.sampling_s = 0.0
        """Processor time that the samples have taken."""

    def __enter__(self) -> UsageMeter:
        with contextlib.suppress(Exception):
            self._processes = ProcessMeter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(_END_LIMIT_S)  # the driver of a broken GPU may never answer

    def use(self) -> RankUse:
        """Return what the rank has used until now."""
        waits = self._waits
        values: dict[str, Any] = {}
        for meter in (self._processes, self._gpu_meter):
            with contextlib.suppress(Exception):
                values |= {} if meter is None else meter.values()
        return RankUse(
            rank=self._rank,
            seconds=round(time.monotonic() - self._began, 3),
            samples=self._series.samples(),
            waited_s=round(waits.waited_s, 4) if waits.batches else None,
            stepped_s=round(waits.stepped_s, 4) if waits.batches else None,
            **values,
        )

    def _run(self) -> None:
        pause = INTERVAL_S
        while not self._ended.wait(pause):
            began = time.thread_time()
            with contextlib.suppress(Exception):
                self._sample()
            cost_s = time.thread_time() - began
            self.sampling_s += cost_s
            pause = max(INTERVAL_S, cost_s / MAX_SHARE)
        if self._gpu_meter is not None:
            self._gpu_meter.close()

    def _sample(self) -> None:
        if self._processes is not None:
            self._processes.sample()
        if self._gpu_meter is None:
            self._gpu_meter = GpuMeter(self._gpus)
        self._gpu_meter.sample()
        now, waited_s = time.monotonic() - self._began, self._waits.waited_s
        cpu_s, memory = (None, None) if self._processes is None else self._processes.now()
        before, self._last = self._last, _Counters(now, cpu_s, waited_s)
        seconds = now - before.at_s
        self._series.add(
            UseSample(
                at_s=now,
                cpu=None if cpu_s is None else (cpu_s - (before.cpu_s or 0.0)) / seconds / _CORES,
                memory_bytes=memory,
                waited=(waited_s - before.waited_s) / seconds if self._waits.batches else None,
                gpu=self._gpu_meter.last_utilization,
                gpu_memory_bytes=self._gpu_meter.last_memory,
            )
        )
