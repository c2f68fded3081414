"""Spark Connect without a server: the number of slots from the plan of a range."""

from __future__ import annotations

from typing import Any

import pytest

from spark_hpo.backend.spark.connect import ConnectCluster
from spark_hpo.errors import BackendError


class Session:
    """Answers like a Connect session, with a given plan."""

    version = "9.9.9"

    def __init__(self, plan: str) -> None:
        self.plan = plan
        self.requests = 0
        self.conf = {"spark.task.cpus": "2"}

    def range(self, _: int) -> Any:
        return self

    def _explain_string(self) -> str:
        self.requests += 1
        return self.plan


@pytest.mark.parametrize(
    "plan",
    ["Range (0, 1, step=1, splits=Some(8))", "== Physical Plan ==\n*(1) Range (0, 1, step=1, splits=8)\n"],
)
def test_connect_counts_slots_in_either_form_of_the_plan(plan: str) -> None:
    assert ConnectCluster(Session(plan)).num_task_slots(None) == 4  # type: ignore[arg-type]


def test_connect_server_with_an_unknown_plan_is_an_error_that_shows_it() -> None:
    session = Session("LocalTableScan [id#0L]")
    with pytest.raises(BackendError) as caught:
        ConnectCluster(session).num_task_slots(None)  # type: ignore[arg-type]
    assert "LocalTableScan" in str(caught.value)
    assert session.version in str(caught.value)


def test_connect_counts_slots_again_only_after_some_seconds() -> None:
    now = 0.0
    session = Session("splits=Some(8)")
    cluster = ConnectCluster(session, clock=lambda: now)  # type: ignore[arg-type]
    for second in range(60):
        now = float(second)
        assert cluster.num_task_slots(None) == 4
    assert session.requests == 12
    session.plan, now = "splits=Some(16)", 65.0
    assert cluster.num_task_slots(None) == 8
