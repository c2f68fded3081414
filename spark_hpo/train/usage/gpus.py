"""Samples the use of a rank's GPUs through NVML."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spark_hpo.backend.machine_gpus import find_gpus
from spark_hpo.errors import CapacityError


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class GpuMeter:
    """Samples the GPUs of a rank. Without NVML, or where NVML does not know a value, there is none."""

    def __init__(self, gpus: Sequence[int], environment: Mapping[str, str] = os.environ) -> None:
        """
        Args:
            gpus: N of each `cuda:N`; empty: there is nothing to sample.
            environment: of this process; CUDA_VISIBLE_DEVICES is obeyed.
        """
        self._nvml: Any = None
        self._handles: list[Any] = []
        self._utilization, self._power = _Mean(), _Mean()
        self.last_utilization: float | None = None  # mean of the GPUs at the last sample, 0..1
        self.last_memory: int | None = None  # of the GPU with the most at the last sample, bytes
        self._most: Any = None  # memory of the GPU and the moment with the most used
        if not gpus:
            return
        with contextlib.suppress(ImportError, CapacityError):
            import pynvml

            names = find_gpus(environment)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._nvml = pynvml
                self._handles = [_handle(pynvml, names[gpu]) for gpu in gpus if gpu < len(names)]

    def sample(self) -> None:
        nvml, powers = self._nvml, []
        shares, used = [], []
        for handle in self._handles:
            memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)
            if memory is not None and (self._most is None or memory.used > self._most.used):
                self._most = memory
            if memory is not None:
                used.append(int(memory.used))
            # A MIG slice has no utilization of its own.
            if (rates := self._asked(nvml.nvmlDeviceGetUtilizationRates, handle)) is not None:
                self._utilization.add(rates.gpu / 100)
                shares.append(rates.gpu / 100)
            if (milliwatts := self._asked(nvml.nvmlDeviceGetPowerUsage, handle)) is not None:
                powers.append(milliwatts / 1000)
        if powers:
            self._power.add(sum(powers))
        self.last_utilization = sum(shares) / len(shares) if shares else None
        self.last_memory = max(used, default=None)

    def values(self) -> dict[str, Any]:
        """Return the fields of `RankUse` about GPUs."""
        utilization, power, most = self._utilization.value, self._power.value, self._most
        return {
            "gpu": utilization and round(utilization, 4),
            "gpu_memory_bytes": most and int(most.used),
            "gpu_memory_total_bytes": most and int(most.total),
            "gpu_power_w": power and round(power, 1),
        }

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
        self._nvml, self._handles = None, []

    def _asked(self, call: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return call(handle)
        except self._nvml.NVMLError:
            return None


def _handle(nvml: Any, name: str) -> Any:
    """Return NVML's handle of a GPU, by its number or its identifier."""
    if name.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)
