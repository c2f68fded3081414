import io
import logging

import pytest
from rich.console import Console

from spark_hpo.report.live_line import LiveStatus, ProgressLine, duration
from spark_hpo.trial import TrialState


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_line_writes_nothing_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with ProgressLine("digits", "accuracy", console=console) as line:
        line.update(LiveStatus(best=0.5))
    assert written(console) == ""


def test_progress_line_shows_states_best_slots_and_time_left() -> None:
    line = ProgressLine("digits", "accuracy", console=terminal(), clock=Clock())
    line.update(
        LiveStatus(
            states={TrialState.RUNNING: 2, TrialState.FAILED: 1},
            best=0.91234567,
            slots_busy=4,
            slots=8,
            spent=2,
            budget=100,
            seconds=10.0,
            seconds_left=30.0,
        )
    )
    assert (
        line.render().plain == "digits  2 running  1 failed  best accuracy 0.9123  4/8 slots  25%  30 s left"
    )


def test_progress_line_shows_a_phase_until_the_next_status() -> None:
    clock = Clock()
    line = ProgressLine("digits", "accuracy", console=terminal(), clock=clock)
    line.announce("preparing the table")
    clock.now = 12.0
    assert line.render().plain == "digits  preparing the table  12 s"
    line.update(LiveStatus(best=0.5))
    assert line.render().plain == "digits  best accuracy 0.5  "


def test_seconds_left_counts_down_between_events() -> None:
    clock = Clock()
    line = ProgressLine("s", "m", console=terminal(), clock=clock)
    line.update(LiveStatus(seconds=5.0, seconds_left=5.0))
    clock.now = 3.0
    assert line.seconds_left() == 2.0
    assert line.share() == 0.8
    clock.now = 80.0
    assert line.seconds_left() == 0.0


def test_share_is_that_of_the_budget_until_the_time_is_known() -> None:
    line = ProgressLine("s", "m", console=terminal(), clock=Clock())
    line.update(LiveStatus(spent=25, budget=100))
    assert line.render().plain == "s  25%  "


def test_seconds_left_is_none_without_a_budget() -> None:
    line = ProgressLine("s", "m", console=terminal())
    line.update(LiveStatus(spent=3))
    assert line.seconds_left() is None
    assert line.render().plain == "s  "


def test_progress_line_keeps_log_lines_and_restores_their_stream() -> None:
    console = terminal()
    handler = logging.StreamHandler(console.file)
    logger = logging.getLogger("spark_hpo")
    logger.addHandler(handler)
    try:
        with ProgressLine("digits", "accuracy", console=console) as line:
            line.update(LiveStatus(best=0.5))
            logger.warning("trial 3 failed")
            assert handler.stream is not console.file
        assert handler.stream is console.file
    finally:
        logger.removeHandler(handler)
    assert "trial 3 failed\n" in written(console)


def test_progress_line_does_not_use_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("digits", "accuracy", console=terminal()):
        print('{"study": "digits"}')
    assert capsys.readouterr().out == '{"study": "digits"}\n'


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3600, "1 h 0 min"), (273_600, "3 d 4 h")],
)
def test_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
