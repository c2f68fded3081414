"""The simulated backend: virtual time, and the faults of a cluster."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from spark_hpo.errors import ConfigError
from spark_hpo.trial import Assignment, FailureKind, Params, Report
from tests.support.simulated import Curve, Disturbances, SimulatedBackend

EPOCHS = 9


class Linear:
    """Takes `pace` seconds per epoch (default 1). The loss falls by 0.1 per epoch, until `diverges_at`."""

    def curve(self, trial_id: int, params: Params) -> Curve:
        epochs = np.arange(1, EPOCHS + 1)
        loss = 1.0 - epochs / 10
        if "diverges_at" in params:
            loss[params["diverges_at"] - 1 :] = np.nan
        return Curve(metrics={"loss": loss}, elapsed_s=epochs * params.get("pace", 1.0))


def assignment(trial_id: int, start: int = 0, end: int = 1, attempt: int = 1, **params: Any) -> Assignment:
    return Assignment(
        trial_id=trial_id,
        attempt=attempt,
        params=params,
        bracket=0,
        rung=0,
        resource_from=start,
        resource_to=end,
        checkpoint=None,
        seed=0,
    )


def backend(slots: int, **disturbances: Any) -> SimulatedBackend:
    return SimulatedBackend(Linear(), slots, Disturbances(**disturbances))


def next_report(backend: SimulatedBackend) -> Report:
    report = backend.wait(5.0)
    assert report is not None
    return report


def test_reports_come_in_the_order_of_their_ends() -> None:
    cluster = backend(3)
    for trial_id, pace in enumerate((3.0, 1.0, 2.0)):
        cluster.submit(assignment(trial_id, pace=pace))
    ends = [(next_report(cluster).trial_id, cluster.clock()) for _ in range(3)]
    assert ends == [(1, 1.0), (2, 2.0), (0, 3.0)]


def test_equal_ends_come_in_the_order_of_submission() -> None:
    cluster = backend(4)
    for trial_id in (3, 1, 2, 0):
        cluster.submit(assignment(trial_id))
    assert [next_report(cluster).trial_id for _ in range(4)] == [3, 1, 2, 0]


def test_promoted_trial_costs_only_the_added_epochs() -> None:
    cluster = backend(1)
    cluster.submit(assignment(0, 0, 3))
    assert next_report(cluster).seconds == 3.0
    cluster.submit(assignment(0, 3, 9))
    report = next_report(cluster)
    assert (report.seconds, report.resource, report.metrics) == (6.0, 9, {"loss": pytest.approx(0.1)})
    assert cluster.clock() == 9.0


def test_evaluation_takes_no_training_time() -> None:
    cluster = backend(1)
    cluster.submit(assignment(0, 3, 3))
    report = next_report(cluster)
    assert (report.seconds, report.metrics) == (0.0, {"loss": pytest.approx(0.7)})


def test_divergence_ends_the_assignment_in_its_epoch() -> None:
    cluster = backend(1)
    cluster.submit(assignment(0, 0, 9, diverges_at=4))
    report = next_report(cluster)
    assert report.failure is not None
    assert report.failure.kind is FailureKind.TRIAL
    assert (report.resource, report.seconds, report.metrics) == (3, 4.0, {})


def test_assignments_beyond_the_slots_wait() -> None:
    cluster = backend(1)
    for trial_id in range(3):
        cluster.submit(assignment(trial_id, 0, 2))
    assert [(next_report(cluster).trial_id, cluster.clock()) for _ in range(3)] == [(0, 2), (1, 4), (2, 6)]


def test_wait_advances_the_clock_while_nothing_runs() -> None:
    cluster = backend(1)
    assert cluster.wait(5.0) is None
    assert cluster.clock() == 5.0


def test_busy_counts_slot_time_up_to_a_moment() -> None:
    cluster = backend(2)
    cluster.submit(assignment(0, 0, 4))
    cluster.submit(assignment(1, 0, 2))
    next_report(cluster)
    next_report(cluster)
    assert cluster.busy(2.0) == 1.0
    assert cluster.busy(4.0) == pytest.approx(6 / 8)


def test_launch_time_is_added_to_every_assignment() -> None:
    cluster = backend(1, launch_s=10.0)
    cluster.submit(assignment(0, 0, 1))
    cluster.submit(assignment(0, 1, 2))
    for _ in range(2):
        assert 1.0 + 10.0 * np.exp(-0.2) <= next_report(cluster).seconds <= 1.0 + 10.0 * np.exp(0.2)


@pytest.mark.parametrize(
    ("share", "kind"),
    [("failure_share", FailureKind.TRIAL), ("loss_share", FailureKind.INFRASTRUCTURE)],
)
def test_disturbances_fail_a_share_of_the_assignments(share: str, kind: FailureKind) -> None:
    cluster = backend(2000, **{share: 0.2})
    for trial_id in range(2000):
        cluster.submit(assignment(trial_id, 0, 3))
    reports = [next_report(cluster) for _ in range(2000)]
    failed = [report for report in reports if report.failure is not None]
    # Five standard deviations of a binomial around 400.
    assert 310 < len(failed) < 490
    assert all(report.seconds < 3.0 and report.metrics == {} for report in failed)
    assert {report.failure.kind for report in failed if report.failure} == {kind}


def test_disturbances_slow_down_a_share_of_the_assignments() -> None:
    cluster = backend(1000, straggler_share=0.1, straggler_factor=4.0)
    for trial_id in range(1000):
        cluster.submit(assignment(trial_id, 0, 2))
    times = Counter(next_report(cluster).seconds for _ in range(1000))
    assert set(times) == {2.0, 8.0}
    assert 50 < times[8.0] < 150


def test_disturbances_do_not_depend_on_the_order_of_submission() -> None:
    def outcomes(order: list[int]) -> dict[int, tuple[float, bool]]:
        cluster = backend(100, failure_share=0.3, launch_s=1.0, straggler_share=0.3, seed=4)
        for trial_id in order:
            cluster.submit(assignment(trial_id))
        reports = [next_report(cluster) for _ in order]
        return {report.trial_id: (report.seconds, report.failure is None) for report in reports}

    assert outcomes(list(range(100))) == outcomes(list(reversed(range(100))))


def test_disturbances_of_a_retry_are_drawn_anew() -> None:
    cluster = backend(1, loss_share=0.5)
    lost = []
    for attempt in range(1, 51):
        cluster.submit(assignment(0, attempt=attempt))
        lost.append(next_report(cluster).failure is not None)
    assert set(lost) == {True, False}


def test_removed_slots_lose_the_latest_assignments() -> None:
    cluster = backend(3, slots_from=((2.0, 1), (6.0, 2)))
    for trial_id in range(3):
        cluster.submit(assignment(trial_id, 0, 5))
    lost = [next_report(cluster), next_report(cluster)]
    assert [report.trial_id for report in lost] == [2, 1]
    assert all(r.failure and r.failure.kind is FailureKind.INFRASTRUCTURE for r in lost)
    assert [report.seconds for report in lost] == [2.0, 2.0]
    assert (cluster.clock(), cluster.num_slots) == (2.0, 1)
    assert next_report(cluster).trial_id == 0
    assert cluster.wait(5.0) is None
    assert cluster.num_slots == 2
    # There were 3 slots for 2 s, 1 for 4 s, then 2. Used were 3 x 2 s and another 3 s.
    assert cluster.busy(8.0) == pytest.approx(9.0 / (6.0 + 4.0 + 4.0))


@pytest.mark.parametrize(
    ("key", "value"), [("loss_share", 1.5), ("failure_share", -0.1), ("slots_from", ((1.0, 0),))]
)
def test_disturbances_with_an_invalid_value_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Disturbances(**{key: value})
    assert (caught.value.key, caught.value.value) == (key, value)
