"""What the ranks of a trial used of their machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self


class UseSample(NamedTuple):
    """What a rank used over a part of its time. None: not measured."""

    at_s: float  # the end of the part, since the rank began
    cpu: float | None = None  # share of its cores, 0..1
    memory_bytes: float | None = None
    waited: float | None = None  # share of the time, 0..1
    gpu: float | None = None  # mean utilization of its GPUs, 0..1
    gpu_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankUse:
    """What one rank of an attempt used, with its child processes. None: not measured there."""

    rank: int
    seconds: float  # that were observed
    waited_s: float | None = None  # in which steps waited for data
    stepped_s: float | None = None  # in which they used it
    cpu_s: float | None = None  # of all cores
    cores: int | None = None  # that the rank may use
    memory_bytes: int | None = None  # most resident memory
    memory_limit_bytes: int | None = None  # its share of the executor's memory overhead
    read_bytes: int | None = None  # from files, including those in the page cache
    disk_bytes: int | None = None  # from disks
    gpu: float | None = None  # mean utilization of its GPUs, 0..1
    gpu_memory_bytes: int | None = None  # most used memory of a GPU, by all processes
    gpu_memory_total_bytes: int | None = None  # of that GPU
    gpu_power_w: float | None = None  # mean, of all its GPUs together
    samples: tuple[UseSample, ...] = ()  # in their order; in the journal, of the first rank only

    @property
    def wait_share(self) -> float | None:
        """The share of the time of its steps in which they waited for data, 0..1."""
        if self.waited_s is None or self.stepped_s is None or self.waited_s + self.stepped_s <= 0:
            return None
        return self.waited_s / (self.waited_s + self.stepped_s)

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{**record, "samples": tuple(UseSample(*one) for one in record.get("samples", ()))})
