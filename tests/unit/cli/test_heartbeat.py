from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from spark_hpo.cli.heartbeat import Heartbeat
from spark_hpo.report.live_line import LiveStatus, ProgressLine


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def line() -> ProgressLine:
    return ProgressLine("digits", "accuracy", console=Console(file=io.StringIO()), clock=Clock())


def beats_in(heartbeat: Heartbeat, clock: Clock, seconds: int, caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that are logged in a silence of this length."""
    caplog.clear()
    for _ in range(seconds):
        clock.now += 1
        heartbeat.beat()
    return [record.getMessage() for record in caplog.records]


def test_heartbeat_says_every_8_s_what_takes_long(
    line: ProgressLine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = line.clock
    assert isinstance(clock, Clock)
    line.announce("preparing the table")
    heartbeat = Heartbeat(line, clock)
    found = beats_in(heartbeat, clock, 20, caplog)
    assert found == ["digits  preparing the table  8 s", "digits  preparing the table  16 s"]
    with heartbeat:
        clock.now += 1
        logging.getLogger("spark_hpo.data").warning("other words")
    assert beats_in(heartbeat, clock, 7, caplog) == [], "a line is no silence"


def test_heartbeat_of_a_search_waits_ever_longer(
    line: ProgressLine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = line.clock
    assert isinstance(clock, Clock)
    line.update(LiveStatus(best=0.5))
    heartbeat = Heartbeat(line, clock)
    assert len(beats_in(heartbeat, clock, 60, caplog)) == 3  # after 8, 24 and 56 s
    assert len(beats_in(heartbeat, clock, 86_400, caplog)) < 150


def test_heartbeat_is_silent_on_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    line = ProgressLine("digits", "accuracy", console=console)
    before = list(logging.getLogger("spark_hpo").handlers)
    with line, Heartbeat(line):
        assert logging.getLogger("spark_hpo").handlers == before
