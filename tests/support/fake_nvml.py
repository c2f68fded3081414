"""A fake of NVML, because machines that run the tests have no GPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NvmlError(Exception):
    """As NVML raises it."""


def nvml(slices: list[int | None]) -> Any:
    """A fake of the module pynvml: a machine with these GPUs, each in a number of MIG slices or whole."""

    def mig_mode(gpu: int) -> tuple[int, int]:
        if slices[gpu] is None:
            raise NvmlError("not supported")
        return (1, 1) if slices[gpu] else (0, 0)

    def slice_of(gpu: int, number: int) -> tuple[int, int]:
        if number >= (slices[gpu] or 0):
            raise NvmlError("not found")
        return gpu, number

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_DEVICE_MIG_ENABLE=1,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(slices),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMigMode=mig_mode,
        nvmlDeviceGetMaxMigDeviceCount=lambda gpu: 7,
        nvmlDeviceGetMigDeviceHandleByIndex=slice_of,
        nvmlDeviceGetUUID=lambda handle: "MIG-{}-{}".format(*handle),
    )
