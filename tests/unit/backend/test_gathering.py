from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from spark_hpo.backend.spark.gathering import Gathering, Superseded, TooFewRanks
from tests.support.ranks import assignment

WAIT_S = 20.0
RANKS = 2
_applications = itertools.count()


class Cores:
    """Task slots without a barrier: each rank takes one as soon as there is one, and keeps it."""

    def __init__(self, cores: int) -> None:
        self._free = threading.Semaphore(cores)
        self._application = f"test-{next(_applications)}"
        self._lock = threading.Lock()
        self.met: dict[int, threading.Event] = {}
        self.cancelled: dict[str, threading.Event] = {}

    def setting(self, key: str, default: str = "") -> str:
        return self._application

    def cancel(self, tag: str) -> None:
        self.cancelled[tag].set()

    def has_met(self, of: Any) -> bool:
        return self.met[of.trial_id].is_set()

    def job(self, trial_id: int) -> Callable[[], str]:
        met, cancelled = threading.Event(), threading.Event()
        self.met[trial_id], self.cancelled[f"tag-{trial_id}"] = met, cancelled

        def run() -> str:
            held = 0
            try:
                while held < RANKS:
                    if cancelled.is_set():
                        raise RuntimeError("cancelled")
                    held += self._free.acquire(timeout=0.01)
                met.set()
                time.sleep(0.02)
                return "trained"
            finally:
                for _ in range(held):
                    self._free.release()

        return run

    def run(self, trial_id: int, *, limit_s: float, is_current: Callable[[], bool] = lambda: True) -> str:
        return Gathering(has_met=self.has_met, limit_s=limit_s).run(
            self.job(trial_id),
            assignment(trial_id),
            cluster=self,  # type: ignore[arg-type]
            tag=f"tag-{trial_id}",
            is_current=is_current,
        )


@pytest.mark.parametrize("cores", [2, 3, 5])
def test_gathering_jobs_never_hold_a_part_of_each_others_slots(cores: int) -> None:
    cluster, ends = Cores(cores), []
    threads = [
        threading.Thread(target=lambda i=i: ends.append(cluster.run(i, limit_s=WAIT_S))) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert ends == ["trained"] * 12


def test_gathering_cancels_a_job_whose_ranks_find_too_few_slots() -> None:
    cluster = Cores(1)
    with pytest.raises(TooFewRanks):
        cluster.run(0, limit_s=0.1)
    assert cluster._free.acquire(blocking=False), "its slot is free again"
    cluster._free.release(2)
    assert cluster.run(1, limit_s=WAIT_S) == "trained", "and so is the gate"


def test_gathering_passes_on_the_error_of_a_job() -> None:
    cluster = Cores(1)
    with pytest.raises(RuntimeError, match="executor lost"):
        Gathering(has_met=lambda _: False, limit_s=WAIT_S).run(
            lambda: exec("raise RuntimeError('executor lost')"),
            assignment(0),
            cluster=cluster,  # type: ignore[arg-type]
            tag="tag",
            is_current=lambda: True,
        )


def test_gathering_does_not_start_a_job_that_was_cancelled_before() -> None:
    cluster = Cores(1)

    def first() -> None:
        with pytest.raises(TooFewRanks):
            cluster.run(0, limit_s=0.3)

    thread = threading.Thread(target=first)
    thread.start()
    while cluster._free.acquire(blocking=False):  # until the job holds the slot, and with it the gate
        cluster._free.release()
        time.sleep(0.001)
    with pytest.raises(Superseded):
        cluster.run(1, limit_s=WAIT_S, is_current=lambda: False)
    thread.join(WAIT_S)
