"""What the ranks of a study used, and what to change."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.report.page import html_of
from spark_hpo.report.usage import usage_advice, usage_of, usage_table
from spark_hpo.report.view import Plots
from spark_hpo.trial import RankUse
from tests.support.written_studies import StudyWriter

GIB = 2**30
DATA = {"path": "table", "shuffle_window": 100_000}
CPU: dict[str, Any] = {
    "seconds": 100.0,
    "cpu_s": 150.0,
    "cores": 4,
    "memory_bytes": GIB,
    "read_bytes": 3 * GIB,
    "disk_bytes": GIB,
}
GPU: dict[str, Any] = {
    **CPU,
    "gpu": 0.5,
    "gpu_memory_bytes": 3 * GIB,
    "gpu_memory_total_bytes": 10 * GIB,
    "gpu_power_w": 200.0,
}


def study(*ranks: RankUse, **config: Any) -> StudyWriter:
    """A study of one trial with these ranks."""
    return StudyWriter(**config).at(0).start(0).at(10).end(0, usage=ranks)


def advice(*ranks: RankUse, **config: Any) -> str:
    return " ".join(usage_advice(study(*ranks, **config).record()))


def test_usage_sums_up_ranks() -> None:
    first = RankUse(**GPU, rank=0, waited_s=10.0, stepped_s=90.0)
    second = RankUse(**{**GPU, "memory_bytes": 3 * GIB, "cpu_s": 50.0}, rank=1, waited_s=30.0, stepped_s=70.0)
    used = usage_of(study(first, second).record())
    assert used is not None
    assert (used.ranks, used.seconds) == (2, 200)
    assert used.wait_share == pytest.approx(0.2)
    assert (used.cpu_cores, used.most_cpu_cores) == (1.0, 1.5)
    assert (used.memory_bytes, used.most_memory_bytes) == (2 * GIB, 3 * GIB)
    assert (used.read_bytes, used.disk_bytes) == (6 * GIB, 2 * GIB)
    assert (used.gpu, used.gpu_memory_share, used.gpu_power_w) == (0.5, 0.3, 200)


def test_usage_of_lost_attempts_and_folds_counts_once() -> None:
    use = RankUse(**CPU, rank=0)
    writer = StudyWriter().at(0).start(0).at(1).lose(0, usage=(use,))
    writer.at(2).start(0, attempt=2).at(3).end(0, attempt=2, usage=(use,))
    used = usage_of(writer.record())
    assert used is not None
    assert used.ranks == 2


def test_usage_is_none_in_a_journal_without_it() -> None:
    record = study().record()
    assert usage_of(record) is None
    assert usage_advice(record) == ()
    assert usage_table(record).empty
    assert "was not measured" in html_of(record)


def test_advice_about_waits_for_a_table() -> None:
    text = advice(RankUse(**CPU, rank=0, waited_s=40.0, stepped_s=60.0), data=DATA)
    assert "40%" in text
    assert "data.cache.folder" in text
    assert "data.shuffle_window: 20000" in text


def test_advice_about_waits_has_no_window_that_is_small_already() -> None:
    small = {**DATA, "shuffle_window": 20_000}
    text = advice(RankUse(**CPU, rank=0, waited_s=40.0, stepped_s=60.0), data=small)
    assert "data.cache.folder" in text
    assert "shuffle_window" not in text


def test_advice_about_waits_for_an_own_reader() -> None:
    assert "num_workers" in advice(RankUse(**CPU, rank=0, waited_s=40.0, stepped_s=60.0))


@pytest.mark.parametrize(("waited", "stepped"), [(10.0, 90.0), (1.0, 0.5), (None, None)])
def test_no_advice_about_rare_or_short_waits(waited: float | None, stepped: float | None) -> None:
    assert not advice(RankUse(**CPU, rank=0, waited_s=waited, stepped_s=stepped), data=DATA)


@pytest.mark.parametrize(
    ("changes", "gpus_per_rank", "setting"),
    [
        ({}, 1, "gpus_per_rank: 0.33"),
        ({"gpu_memory_bytes": 4 * GIB}, 1, "gpus_per_rank: 0.5"),
        ({"gpu_memory_bytes": 5 * GIB}, 1, None),
        ({"gpu": 0.9}, 1, None),
        ({}, 0.5, None),
        ({}, 2, None),
    ],
)
def test_advice_about_gpus(changes: dict[str, Any], gpus_per_rank: float, setting: str | None) -> None:
    text = advice(RankUse(**{**GPU, **changes}, rank=0), resources={"gpus_per_rank": gpus_per_rank})
    assert (setting in text) if setting else not text


@pytest.mark.parametrize(
    ("limit", "says"), [(4 * GIB, "half"), (16 * GIB, "three quarters"), (1.6 * GIB, ""), (GIB, "kill")]
)
def test_advice_about_memory_overhead(limit: float, says: str) -> None:
    text = advice(RankUse(**CPU, rank=0, memory_limit_bytes=int(limit)))
    assert (says in text) if says else not text


def test_report_shows_use_and_advice() -> None:
    record = study(
        RankUse(**GPU, rank=0, waited_s=40.0, stepped_s=60.0, memory_limit_bytes=4 * GIB),
        data=DATA,
        resources={"gpus_per_rank": 1},
    ).record()
    page = html_of(record)
    assert all(text.replace("&", "&amp;") in page for text in usage_advice(record))
    assert len(usage_advice(record)) == 3
    for figure in ("40%", "1.5", "1 GiB", "25%", "50%", "30% (3 GiB)", "200 W"):
        assert figure in page
    assert {trace.name for trace in Plots(record).usage().data} == {
        "waiting for data",
        "GPU utilization",
        "GPU memory",
    }
    row = usage_table(record).iloc[0]
    assert (row["trial"], row["rank"], row["wait_share"], row["cpu_cores"]) == (0, 0, 0.4, 1.5)
