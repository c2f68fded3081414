"""GPUs of one machine: found through NVML, and dealt to ranks."""

from __future__ import annotations

import sys
from contextlib import closing
from fractions import Fraction

import pytest

from spark_hpo.backend.local.backend import LocalBackend
from spark_hpo.backend.machine_gpus import FreeGpus, GpuDealer, find_gpus, free_gpus
from spark_hpo.errors import CapacityError
from tests.support.fake_nvml import NvmlError, nvml
from tests.support.ranks import assignment, train


def test_find_gpus_asks_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml([None, 0, 2]))
    assert find_gpus({}) == ["0", "1", "MIG-2-0", "MIG-2-1"]


def test_find_gpus_finds_none_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NvmlError("driver not loaded")

    fake = nvml([None])
    fake.nvmlInit = refuse
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert find_gpus({}) == []


@pytest.mark.parametrize(
    ("visible", "found"),
    [("0,2", ["0", "2"]), ("", []), ("-1", []), ("1, -1, 2", ["1"]), ("MIG-a,MIG-b", ["MIG-a", "MIG-b"])],
)
def test_find_gpus_obeys_cuda_visible_devices(visible: str, found: list[str]) -> None:
    assert find_gpus({"CUDA_VISIBLE_DEVICES": visible}) == found


def test_find_gpus_without_nvml_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(CapacityError, match=r"spark_hpo\[gpu\]"):
        find_gpus({})


def test_whole_gpus_go_to_one_rank_each() -> None:
    dealer = GpuDealer(["0", "1", "2"], 1)
    assert dealer.num_slots(world_size=2) == 1
    hands = dealer.deal(2)
    assert hands is not None
    assert [hand.gpus for hand in hands] == [(0,), (1,)]
    assert dealer.deal(2) is None, "one GPU is left"
    assert dealer.deal(1) is not None, "and was not lost by the refused request"
    dealer.take_back(hands)
    assert dealer.deal(2) is not None


def test_a_rank_may_have_several_gpus() -> None:
    dealer = GpuDealer(["0", "1", "2", "3", "4"], 2)
    assert dealer.num_slots(world_size=1) == 2
    first, second = dealer.deal(1), dealer.deal(1)
    assert first is not None
    assert second is not None
    assert set(first[0].gpus).isdisjoint(second[0].gpus)
    assert dealer.deal(1) is None


def test_assignments_share_a_gpu_only_when_all_have_one() -> None:
    dealer = GpuDealer(["0", "1"], 0.5)
    assert dealer.num_slots(world_size=1) == 4
    dealt = [dealer.deal(1) for _ in range(4)]
    assert [hands[0].gpus for hands in dealt if hands] == [(0,), (1,), (0,), (1,)]
    assert dealer.deal(1) is None


def test_dealers_of_several_studies_deal_no_gpu_twice() -> None:
    names, free = ["0", "1", "2"], FreeGpus(3)
    whole, halves = GpuDealer(names, 1, free), GpuDealer(names, 0.5, free)
    first, half = whole.deal(1), halves.deal(1)
    assert first is not None
    assert half is not None
    assert first[0].gpus != half[0].gpus
    assert whole.deal(2) is None, "half of a GPU is taken"
    halves.take_back(half)
    assert whole.deal(2) is not None


def test_local_backend_gives_back_its_gpus_when_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    free = free_gpus(("5", "6"))
    with closing(LocalBackend(train, gpus_per_rank=1)) as backend:
        backend.submit(assignment(0, seconds=60))
        assert free.take(2, Fraction(1)) is None
    devices = free.take(2, Fraction(1))
    assert devices is not None
    free.give_back(devices, Fraction(1))


def test_slices_are_dealt_by_name() -> None:
    dealer = GpuDealer(["MIG-a", "MIG-b"], 1)
    hands = dealer.deal(2)
    assert hands is not None
    assert [hand.environment for hand in hands] == [
        {"CUDA_VISIBLE_DEVICES": "MIG-a"},
        {"CUDA_VISIBLE_DEVICES": "MIG-b"},
    ]
    assert [hand.gpus for hand in hands] == [(0,), (0,)]


def test_several_slices_for_a_rank_are_refused() -> None:
    with pytest.raises(CapacityError, match="one MIG slice only"):
        GpuDealer(["MIG-a", "MIG-b"], 2)


def test_ranks_without_gpus_need_none() -> None:
    hands = GpuDealer([], 0).deal(3)
    assert hands is not None
    assert [hand.gpus for hand in hands] == [(), (), ()]
