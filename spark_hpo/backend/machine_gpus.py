"""Finds the GPUs of this machine, and deals them out to ranks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

from spark_hpo.errors import CapacityError

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_KEY = "resources.gpus_per_rank"
_RETRY_S = 0.1


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs of this machine as CUDA names them: numbers, or identifiers as of MIG slices.

    Args:
        environment: of this process; CUDA_VISIBLE_DEVICES is obeyed.

    Raises:
        CapacityError: nvidia-ml-py, which finds them, is not installed.
    """
    if _VISIBLE in environment:
        names = [name.strip() for name in environment[_VISIBLE].split(",")]
        # CUDA ignores an invalid name and all names after it.
        end = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:end]
    try:
        import pynvml
    except ImportError as exc:
        raise CapacityError(
            "needs the package nvidia-ml-py on a single machine, to find its GPUs",
            key=_KEY,
            cure=f"Install spark_hpo[gpu], or set {_VISIBLE}",
        ) from exc
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, so no GPUs
        return []
    try:
        return [name for index in range(pynvml.nvmlDeviceGetCount()) for name in _names(pynvml, index)]
    finally:
        pynvml.nvmlShutdown()


def _names(nvml: Any, index: int) -> Iterator[str]:
    """Yield the name of a GPU, or those of its MIG slices."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        is_sliced = nvml.nvmlDeviceGetMigMode(gpu)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a GPU that cannot be sliced
        is_sliced = False
    if not is_sliced:
        yield str(index)
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            yield nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, number))
        except nvml.NVMLError:  # there are fewer slices than the most
            return


@dataclass(frozen=True, slots=True)
class Hand:
    """The GPUs that were dealt to one rank."""

    devices: tuple[int, ...]  # their positions among all
    gpus: tuple[int, ...]  # N of each `cuda:N` in the rank
    environment: Mapping[str, str]  # of the rank, to be added


class FreeGpus:
    """The free share of each GPU, 0..1, for all studies of this process. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._free = [Fraction(1)] * count
        self._lock = threading.Lock()

    def take(self, count: int, amount: Fraction) -> tuple[int, ...] | None:
        """Take an amount of each of `count` GPUs, those with most left. None: not enough of them have it."""
        with self._lock:
            order = sorted(range(len(self._free)), key=lambda device: -self._free[device])[:count]
            if len(order) < count or any(self._free[device] < amount for device in order):
                return None
            for device in order:
                self._free[device] -= amount
            return tuple(sorted(order))

    def give_back(self, devices: Iterable[int], amount: Fraction) -> None:
        with self._lock:
            for device in devices:
                self._free[device] += amount


@cache
def free_gpus(names: tuple[str, ...]) -> FreeGpus:
    """Return what is free of the GPUs of this machine, for all studies of this process."""
    return FreeGpus(len(names))


class GpuDealer:
    """Deals GPUs to the ranks of assignments: whole ones, or equal shares of one.

    A trace, of 2 GPUs in halves: num_slots(1) -> 4; deal(1) -> GPU 0; deal(1) -> GPU 1; deal(1) -> GPU 0
    """

    def __init__(self, names: list[str], gpus_per_rank: float, free: FreeGpus | None = None) -> None:
        """
        Args:
            names: as `find_gpus` returns them.
            gpus_per_rank: a whole number, or a fraction of at most 0.5; 0: ranks use the CPU.
            free: what is free of them, if other dealers use them too.

        Raises:
            CapacityError: a rank would need several MIG slices, which CUDA does not allow.
        """
        self._names = names
        self._gpus_per_rank = gpus_per_rank
        self._per_rank = max(1, int(gpus_per_rank)) if gpus_per_rank else 0
        shares = 1 if gpus_per_rank >= 1 or not gpus_per_rank else int(1 / gpus_per_rank)
        self._free = free or FreeGpus(len(names))
        self._amount = Fraction(1, shares)
        self._are_slices = any(name.startswith("MIG") for name in names)
        if self._are_slices and self._per_rank > 1:
            raise CapacityError(
                "must be at most 1, because CUDA gives a process one MIG slice only",
                key=_KEY,
                value=gpus_per_rank,
            )
        self._shares = shares

    def num_slots(self, world_size: int) -> int:
        """Return how many assignments of this many ranks fit at once. Ranks must use GPUs.

        Raises:
            CapacityError: not even one.
        """
        slots = len(self._names) * self._shares // (self._per_rank * world_size)
        if slots == 0:
            raise CapacityError(
                f"times resources.world_size, {world_size}, needs more GPUs than the {len(self._names)} of "
                "this machine",
                key=_KEY,
                value=self._gpus_per_rank,
                cure=f"Use fewer ranks or GPUs; {_VISIBLE} may hide some",
            )
        return slots

    def deal(self, world_size: int) -> list[Hand] | None:
        """Take GPUs for each rank of an assignment; None: not enough are free."""
        hands: list[Hand] = []
        for _ in range(world_size):
            devices = self._free.take(self._per_rank, self._amount)
            if devices is None:
                self.take_back(hands)
                return None
            hands.append(self._hand(devices))
        return hands

    def take_back(self, hands: list[Hand]) -> None:
        """Return the GPUs of ranks that have ended."""
        for hand in hands:
            self._free.give_back(hand.devices, self._amount)

    def _hand(self, devices: tuple[int, ...]) -> Hand:
        if self._are_slices:
            visible = {_VISIBLE: ",".join(self._names[device] for device in devices)}
            return Hand(devices, tuple(range(len(devices))), visible)
        # NVML counts in this order; CUDA by default puts the fastest first.
        order = {} if _VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return Hand(devices, devices, order if devices else {})


class WaitingDealer:
    """A dealer for several threads: each waits until there are enough GPUs for its assignment."""

    def __init__(self, dealer: GpuDealer) -> None:
        self._dealer = dealer
        self._returned = threading.Condition()

    def num_slots(self, world_size: int) -> int:
        """Return how many assignments fit at once; errors as of `GpuDealer.num_slots`."""
        return self._dealer.num_slots(world_size)

    @contextmanager
    def dealt(self, world_size: int) -> Iterator[list[Hand]]:
        """Hold GPUs for each rank of an assignment. Waits only for one that was cancelled and still ends."""
        with self._returned:
            while (hands := self._dealer.deal(world_size)) is None:
                self._returned.wait(_RETRY_S)  # another study may give them back
        try:
            yield hands
        finally:
            with self._returned:
                self._dealer.take_back(hands)
                self._returned.notify_all()
