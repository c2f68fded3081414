"""What a rank uses: its processes, its GPUs, and the time that its steps wait for data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from spark_hpo.backend.base import merge_usage
from spark_hpo.train.usage import meter as usage_meter
from spark_hpo.train.usage.gpus import GpuMeter
from spark_hpo.train.usage.meter import UsageMeter
from spark_hpo.train.usage.processes import ProcessMeter
from spark_hpo.train.usage.series import MOST, Series
from spark_hpo.train.usage.waits import DataWaits
from spark_hpo.trial import RankUse, UseSample
from tests.support.fake_nvml import NvmlError, nvml

MIB = 2**20


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batches(clock: Clock, *seconds: float) -> Iterator[int]:
    for number, pause in enumerate(seconds):
        clock.now += pause
        yield number


def test_waits_and_steps_are_divided() -> None:
    clock = Clock()
    waits = DataWaits(clock=clock)
    for _ in waits.timed(batches(clock, 3, 1)):
        clock.now += 2
    clock.now += 100  # between two loops
    for _ in waits.timed(batches(clock, 1, 50)):
        clock.now += 5
        break
    clock.now += 100
    assert (waits.waited_s, waits.stepped_s) == (5, 9)


def test_waits_of_nested_iterators_count_once() -> None:
    clock = Clock()
    waits = DataWaits(clock=clock)
    inner = waits.timed(batches(clock, 3, 1))
    for _ in waits.timed(inner):
        clock.now += 2
    assert (waits.waited_s, waits.stepped_s) == (4, 4)


def test_waits_of_a_thread_that_reads_ahead_do_not_count() -> None:
    waits = DataWaits()
    thread = threading.Thread(target=lambda: list(waits.timed(range(3))))
    thread.start()
    thread.join()
    assert waits.batches == 0


def test_waits_do_not_count_while_the_gpu_is_at_work() -> None:
    clock, is_done = Clock(), [True, False]
    waits = DataWaits(lambda: lambda: is_done.pop(0) if is_done else True, clock)
    for _ in waits.timed(batches(clock, 3, 1)):
        clock.now += 2
    assert (waits.waited_s, waits.stepped_s) == (3, 5)


class Slow(Dataset[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise IndexError
        time.sleep(0.02)
        return index


def test_waits_of_data_loaders_are_measured_in_this_thread_alone() -> None:
    waits = DataWaits()
    other = threading.Thread(target=lambda: list(DataLoader(Slow())))
    with waits.of_data_loaders():
        other.start()
        list(DataLoader(Slow()))
        other.join()
    list(DataLoader(Slow()))
    assert waits.batches == 3
    assert waits.waited_s >= 0.06


def test_process_meter_sees_memory_that_was_released() -> None:
    code = (
        "from spark_hpo.train.usage.processes import ProcessMeter\n"
        "meter = ProcessMeter()\n"
        f"x = b'x' * {200 * MIB}; del x\n"
        "print(meter.values()['memory_bytes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 200 * MIB


CHILD = f"""
import sys, time
while time.process_time() < 0.3: pass
block = b"x" * {100 * MIB}
open(sys.argv[1], "rb").read()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("is_reaped", [True, False])
def test_process_meter_counts_children(tmp_path: Any, is_reaped: bool) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(10 * MIB))
    meter = ProcessMeter()
    own = meter.values()["memory_bytes"]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CHILD, file], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        meter.sample()
        live = meter.values()
        if is_reaped:
            child.communicate("")
        values = meter.values()
    assert 0.3 <= values["cpu_s"] < 5
    assert values["read_bytes"] >= 10 * MIB
    assert live["memory_bytes"] > own + 100 * MIB


def test_process_meter_counts_the_memory_of_a_fork_once() -> None:
    meter = ProcessMeter()
    before = meter.values()["memory_bytes"]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    meter.sample()
    assert len(meter._children) == 1
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)
    assert meter.values()["memory_bytes"] < 1.3 * before


def gpus(**failing: bool) -> Any:
    """A fake of pynvml, with two GPUs."""
    fake = nvml([None, None])

    def asked(name: str, answer: Any) -> Any:
        def ask(handle: int) -> Any:
            if failing.get(name):
                raise NvmlError("not supported")
            return answer(handle)

        return ask

    used = iter([30, 10, 20, 20])
    memory = asked("memory", lambda handle: SimpleNamespace(used=next(used), total=100))
    fake.nvmlDeviceGetMemoryInfo = memory
    fake.nvmlDeviceGetUtilizationRates = asked("rates", lambda handle: SimpleNamespace(gpu=(50, 100)[handle]))
    fake.nvmlDeviceGetPowerUsage = asked("power", lambda handle: 150_000)
    return fake


def test_gpu_meter_samples_the_gpus_of_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", gpus())
    meter = GpuMeter([0, 1], {})
    meter.sample()
    meter.sample()
    assert meter.values() == {
        "gpu": 0.75,
        "gpu_memory_bytes": 30,
        "gpu_memory_total_bytes": 100,
        "gpu_power_w": 300.0,
    }


def test_gpu_meter_omits_what_nvml_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", gpus(rates=True))
    meter = GpuMeter([1], {})
    meter.sample()
    assert meter.values() == {
        "gpu": None,
        "gpu_memory_bytes": 30,
        "gpu_memory_total_bytes": 100,
        "gpu_power_w": 150.0,
    }


def test_gpu_meter_without_nvml_has_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = GpuMeter([0])
    meter.sample()
    assert set(meter.values().values()) == {None}


@pytest.mark.medium
def test_usage_meter_takes_at_most_a_hundredth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine where each sample takes long."""
    sample = ProcessMeter.sample
    costs: list[float] = []

    def expensive(self: ProcessMeter) -> None:
        began = time.thread_time()
        sample(self)
        while time.thread_time() - began < 0.002:
            pass
        costs.append(time.thread_time() - began)

    monkeypatch.setattr(ProcessMeter, "sample", expensive)
    monkeypatch.setattr(usage_meter, "INTERVAL_S", 0.05)
    began = time.monotonic()
    with UsageMeter(0, (), DataWaits()) as meter:
        while len(costs) < 2 and time.monotonic() - began < 30:
            time.sleep(0.01)
    seconds = time.monotonic() - began
    assert len(costs) >= 2
    # The pause after the last sample is still to come.
    assert meter.sampling_s - costs[-1] <= 0.011 * seconds


def test_usage_meter_of_a_short_rank_has_its_process() -> None:
    waits = DataWaits()
    with UsageMeter(3, (), waits) as meter:
        sum(waits.timed(iter(range(10))))
    use = meter.use()
    assert use.rank == 3
    assert use.memory_bytes is not None
    assert use.memory_bytes > 20 * MIB
    assert use.cores == len(os.sched_getaffinity(0))
    assert use.waited_s is not None
    assert use.gpu is None


def test_usage_meter_without_loops_does_not_know_waits() -> None:
    with UsageMeter(0, (), DataWaits()) as meter:
        torch.ones(1)
    assert meter.use().waited_s is None
    assert meter.use().wait_share is None


def test_usage_in_the_journal_is_bounded() -> None:
    some: dict[str, Any] = {
        "seconds": 12345.678,
        "waited_s": 1234.5678,
        "stepped_s": 1234.5678,
        "cpu_s": 123456.123,
        "cores": 128,
        "memory_bytes": 2**40,
        "memory_limit_bytes": 2**40,
        "read_bytes": 2**50,
        "disk_bytes": 2**50,
        "gpu": 0.1234,
        "gpu_memory_bytes": 2**40,
        "gpu_memory_total_bytes": 2**40,
        "gpu_power_w": 1234.5,
    }
    samples = (UseSample(12345.6, 0.123, 1234567.0, 0.123, 0.123, 1234567.0),) * (MOST + 1)
    some["samples"] = samples
    ranks = [RankUse(**{**some, "rank": rank, "memory_bytes": rank * MIB}) for rank in range(1000)]
    kept = merge_usage(ranks)
    assert {use.rank for use in kept} == {*range(8), *range(992, 1000)}
    assert len(json.dumps([use.to_json() for use in kept])) < 7500
    assert [use.samples for use in kept] == [samples, *[()] * 15]
    assert [use.rank for use in merge_usage(ranks[:5])] == [0, 1, 2, 3, 4]


def test_series_keeps_a_bounded_number_of_samples_of_a_time_of_any_length() -> None:
    series = Series()
    for second in range(1, 1001):
        series.add(UseSample(float(second), cpu=0.5 if second <= 500 else 1.0, memory_bytes=second))
        assert len(series.samples()) <= MOST + 1
    samples = series.samples()
    times = [sample.at_s for sample in samples]
    assert times == sorted(set(times))
    assert times[-1] == 1000
    assert (samples[0].cpu, samples[-1].cpu, samples[-1].gpu) == (0.5, 1.0, None)
    use = RankUse(rank=0, seconds=1000.0, samples=samples)
    assert RankUse.from_json(json.loads(json.dumps(use.to_json()))) == use


def test_usage_meter_samples_shares_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_meter, "INTERVAL_S", 0.1)
    began = time.monotonic()
    with UsageMeter(0, (), DataWaits()) as meter:
        while len(meter.use().samples) < 3 and time.monotonic() - began < 30:
            sum(range(10_000))
    samples = meter.use().samples
    assert len(samples) >= 3
    assert all(sample.cpu is not None and 0 < sample.cpu <= 1.1 for sample in samples)
    assert all((sample.memory_bytes or 0) > 20 * MIB for sample in samples)
    assert all(sample.waited is None for sample in samples), "no loop over batches"
