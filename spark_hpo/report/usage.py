"""What the ranks of a study used of their machines, and what to change so that they use them better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_hpo.report.live_line import duration
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.trial import RankUse

if TYPE_CHECKING:
    import pandas as pd

WAIT_SHARE = 0.2  # from which waiting for data is worth a change
MIN_WAITED_S = 2.0  # over all ranks: the first batches of a short study always wait
_SMALLEST_WINDOW = 10_000  # rows
_FULL = 0.9  # of a GPU's memory, or of the memory overhead
_BUSY_GPU = 0.8  # from which a second trial on the GPU gains little
_MOST_TRIALS_PER_GPU = 4
_HALF = 0.5
_COLUMNS = (
    "memory_bytes",
    "memory_limit_bytes",
    "read_bytes",
    "disk_bytes",
    "gpu",
    "gpu_memory_bytes",
    "gpu_memory_total_bytes",
    "gpu_power_w",
)
_MARGIN = 1.3  # of memory, over what was used


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A summary over ranks. None: no rank has measured it."""

    ranks: int  # of all attempts that were measured
    seconds: float  # of all these ranks together
    waited_s: float | None  # in which steps waited for data
    stepped_s: float | None
    cpu_cores: float | None  # mean number of busy cores of a rank
    most_cpu_cores: float | None
    cores: int | None  # that a rank may use
    memory_bytes: float | None  # mean of the peaks
    most_memory_bytes: int | None
    memory_share: float | None  # most of the memory overhead that a rank used
    read_bytes: int | None
    disk_bytes: int | None
    gpu: float | None  # mean utilization, 0..1
    gpu_memory_share: float | None  # most of a GPU's memory
    most_gpu_memory_bytes: int | None
    gpu_power_w: float | None  # mean of a rank's GPUs together

    @property
    def wait_share(self) -> float | None:
        """The share of the time of all steps in which they waited for data, 0..1."""
        if self.waited_s is None or self.stepped_s is None or self.waited_s + self.stepped_s <= 0:
            return None
        return self.waited_s / (self.waited_s + self.stepped_s)


def usage_of(record: StudyRecord) -> Usage | None:
    """Return the use of all attempts so far. None: nothing was measured.

    Earlier versions did not measure it, and trials that run in the driver's threads have no process of their
    own that could be measured.
    """
    return summary([use for attempt in record.attempts if attempt.report for use in attempt.report.usage])


def summary(ranks: Sequence[RankUse]) -> Usage | None:
    """Return the summary of some ranks, such as those of one attempt. None: there are none."""
    if not ranks:
        return None
    cpu_cores = _known(ranks, _busy_cores)
    peaks = _known(ranks, lambda use: use.memory_bytes)
    return Usage(
        ranks=len(ranks),
        seconds=sum(use.seconds for use in ranks),
        waited_s=_sum(_known(ranks, lambda use: use.waited_s)),
        stepped_s=_sum(_known(ranks, lambda use: use.stepped_s)),
        cpu_cores=_mean(ranks, _busy_cores),
        most_cpu_cores=max(cpu_cores, default=None),
        cores=max(_known(ranks, lambda use: use.cores), default=None),
        memory_bytes=sum(peaks) / len(peaks) if peaks else None,
        most_memory_bytes=max(peaks, default=None),
        memory_share=max(_known(ranks, _memory_share), default=None),
        read_bytes=_sum(_known(ranks, lambda use: use.read_bytes)),
        disk_bytes=_sum(_known(ranks, lambda use: use.disk_bytes)),
        gpu=_mean(ranks, lambda use: use.gpu),
        gpu_memory_share=max(_known(ranks, _gpu_memory_share), default=None),
        most_gpu_memory_bytes=max(_known(ranks, lambda use: use.gpu_memory_bytes), default=None),
        gpu_power_w=_mean(ranks, lambda use: use.gpu_power_w),
    )


def usage_advice(record: StudyRecord) -> tuple[str, ...]:
    """Return what to change in the next study, in a sentence or two each; usually nothing."""
    usage = usage_of(record)
    if usage is None:
        return ()
    per_rank = record.definition.config.get("resources", {}).get("gpus_per_rank", 0)
    return tuple([*_about_waits(record, usage), *gpu_advice(usage, per_rank), *memory_advice(usage)])


def usage_table(record: StudyRecord) -> pd.DataFrame:
    """Return a row per measured rank: see `StudyFindings.usage`."""
    import pandas as pd

    rows = [
        {
            "trial": attempt.assignment.trial_id,
            "rung": attempt.assignment.rung,
            "fold": attempt.assignment.fold,
            "attempt": attempt.assignment.attempt,
            "rank": use.rank,
            "seconds": use.seconds,
            "wait_share": use.wait_share,
            "cpu_cores": _busy_cores(use),
            **{name: getattr(use, name) for name in _COLUMNS},
        }
        for attempt in record.attempts
        for use in (attempt.report.usage if attempt.report else ())
    ]
    names = ["trial", "rung", "fold", "attempt", "rank", "seconds", "wait_share", "cpu_cores", *_COLUMNS]
    return pd.DataFrame(rows, columns=names)


def in_bytes(size: float) -> str:
    """Format a number of bytes: `420 MiB`, `12.3 GiB`."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.3g} {unit}"
    return f"{size / 1024:.3g} KiB"


def _about_waits(record: StudyRecord, usage: Usage) -> Iterator[str]:
    share, waited_s = usage.wait_share, usage.waited_s or 0.0
    if share is None or share < WAIT_SHARE or waited_s < MIN_WAITED_S:
        return
    found = f"Ranks wait for data {share:.0%} of the time of their steps ({duration(waited_s)} in all)"
    data = record.definition.config.get("data")
    if data is None:
        yield f"{found}: read ahead in other processes, for example with num_workers of the DataLoader."
        return
    window = _smaller_window(record, data)
    smaller = f", or set data.shuffle_window: {window} in the next study" if window else ""
    yield f"{found}: give data.cache.folder a faster disk{smaller}."


def _smaller_window(record: StudyRecord, data: dict[str, Any]) -> int | None:
    """Return a window that is full sooner than the present one. None: that is small already."""
    window = int(data.get("shuffle_window", 100_000))
    rows = (record.definition.source or {}).get("rows", {}).get("train")
    if isinstance(rows, int):
        window = min(window, rows)
    smaller = window // 4
    if smaller < _SMALLEST_WINDOW:
        return None
    digits = len(str(smaller)) - 1
    return int(smaller // 10**digits * 10**digits)


def gpu_advice(usage: Usage, gpus_per_rank: float) -> Iterator[str]:
    """Yield a sentence if several trials fit on one GPU."""
    share = usage.gpu_memory_share
    if share is None or gpus_per_rank != 1 or (usage.gpu or 0.0) >= _BUSY_GPU:
        return
    trials = min(_MOST_TRIALS_PER_GPU, math.floor(_FULL / share)) if share > 0 else _MOST_TRIALS_PER_GPU
    if trials < 2:
        return
    busy = "" if usage.gpu is None else f", and its mean utilization is {usage.gpu:.0%}"
    number = {2: "two", 3: "three", 4: "four"}[trials]
    yield (
        f"GPU memory peaks at {share:.0%}{busy}: {number} trials fit on one GPU. In the next study, set "
        f"resources.gpus_per_rank: {math.floor(100 / trials) / 100:g}."
    )


def memory_advice(usage: Usage) -> Iterator[str]:
    """Yield a sentence if the executors' memory overhead is much too large, or hardly enough."""
    share, most = usage.memory_share, usage.most_memory_bytes
    if share is None or most is None:
        return
    found = f"Ranks use at most {share:.0%} of their part of spark.executor.memoryOverhead ({in_bytes(most)})"
    if share < _HALF:
        half = "half" if share >= _HALF / 2 else "three quarters"
        yield f"{found}: {half} of it is never used. {_MARGIN * share:.0%} of the setting would be enough."
    elif share > _FULL:
        yield f"{found}: the cluster may kill executors. Raise it, or use a smaller model or batch."


def _busy_cores(use: RankUse) -> float | None:
    return None if use.cpu_s is None or use.seconds <= 0 else use.cpu_s / use.seconds


def _memory_share(use: RankUse) -> float | None:
    if use.memory_bytes is None or not use.memory_limit_bytes:
        return None
    return use.memory_bytes / use.memory_limit_bytes


def _gpu_memory_share(use: RankUse) -> float | None:
    if use.gpu_memory_bytes is None or not use.gpu_memory_total_bytes:
        return None
    return use.gpu_memory_bytes / use.gpu_memory_total_bytes


def _known(ranks: Sequence[RankUse], value: Callable[[RankUse], Any]) -> list[Any]:
    return [found for use in ranks if (found := value(use)) is not None]


def _sum(values: Sequence[Any]) -> Any:
    return sum(values) if values else None


def _mean(ranks: Sequence[RankUse], value: Callable[[RankUse], float | None]) -> float | None:
    """Return the mean over the time of the ranks."""
    known = [(found, use.seconds) for use in ranks if (found := value(use)) is not None]
    seconds = sum(weight for _, weight in known)
    return sum(found * weight for found, weight in known) / seconds if seconds > 0 else None
