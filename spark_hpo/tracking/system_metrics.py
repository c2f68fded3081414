"""What the ranks of a trial used, under the names of MLflow's system metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spark_hpo.trial import RankUse, UseSample

_PREFIX = "system/"  # MLflow shows what begins with it on a page of its own


def system_metrics(ranks: Sequence[RankUse]) -> dict[str, float]:
    """Return the metrics of an assignment. GPU i is that of rank i; of all else there is one value.

    A trace: two ranks on the CPU -> system/cpu_utilization_percentage (their mean),
        system/system_memory_usage_megabytes (the larger one), ...
    """
    return {f"{_PREFIX}{name}": round(value, 3) for name, value in _metrics(ranks)}


def system_series(ranks: Sequence[RankUse]) -> Iterator[tuple[float, dict[str, float]]]:
    """Yield the metrics of the first rank over its time, each with the seconds until the rank ended."""
    for use in ranks[:1]:
        for sample in use.samples:
            yield (
                use.seconds - sample.at_s,
                {f"{_PREFIX}{name}": round(value, 3) for name, value in _of_sample(sample, use.rank)},
            )


def _of_sample(sample: UseSample, rank: int) -> Iterator[tuple[str, float]]:
    scaled = (
        ("cpu_utilization_percentage", sample.cpu, 100.0),
        ("system_memory_usage_megabytes", sample.memory_bytes, 1e-6),
        ("data_wait_percentage", sample.waited, 100.0),
        (f"gpu_{rank}_utilization_percentage", sample.gpu, 100.0),
        (f"gpu_{rank}_memory_usage_megabytes", sample.gpu_memory_bytes, 1e-6),
    )
    yield from ((name, value * scale) for name, value, scale in scaled if value is not None)


def _metrics(ranks: Sequence[RankUse]) -> Iterator[tuple[str, float]]:
    shares = [use.wait_share for use in ranks if use.wait_share is not None]
    if shares:
        yield "data_wait_percentage", 100 * sum(shares) / len(shares)
    busy = [
        use.cpu_s / use.seconds / use.cores
        for use in ranks
        if use.cpu_s is not None and use.cores and use.seconds > 0
    ]
    if busy:
        yield "cpu_utilization_percentage", 100 * sum(busy) / len(busy)
    memory = [use.memory_bytes for use in ranks if use.memory_bytes is not None]
    if memory:
        yield "system_memory_usage_megabytes", max(memory) / 1e6
    read = [use.disk_bytes for use in ranks if use.disk_bytes is not None]
    if read:
        yield "disk_read_megabytes", sum(read) / 1e6
    for use in ranks:
        yield from _of_gpu(use)


def _of_gpu(use: RankUse) -> Iterator[tuple[str, float]]:
    gpu = f"gpu_{use.rank}_"
    if use.gpu is not None:
        yield f"{gpu}utilization_percentage", 100 * use.gpu
    if use.gpu_memory_bytes is not None:
        yield f"{gpu}memory_usage_megabytes", use.gpu_memory_bytes / 1e6
        if use.gpu_memory_total_bytes:
            share = use.gpu_memory_bytes / use.gpu_memory_total_bytes
            yield f"{gpu}memory_usage_percentage", 100 * share
    if use.gpu_power_w is not None:
        yield f"{gpu}power_usage_watts", use.gpu_power_w
