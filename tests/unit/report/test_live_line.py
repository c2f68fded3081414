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
    clock = Clock()
    line = ProgressLine("digits", "accuracy", console=terminal(), clock=clock)
    line.update(LiveStatus(spent=0, budget=100))
    clock.now = 10.0
    line.update(
        LiveStatus(
            states={TrialState.RUNNING: 2, TrialState.FAILED: 1},
            best=0.91234567,
            slots_busy=4,
            slots=8,
            spent=25,
            budget=100,
        )
    )
    assert (
        line.render().plain == "digits  2 running  1 failed  best accuracy 0.9123  4/8 slots  25%  30 s left"
    )


def test_seconds_left_counts_down_between_events() -> None:
    clock = Clock()
    line = ProgressLine("s", "m", console=terminal(), clock=clock)
    line.update(LiveStatus(spent=0, budget=10))
    clock.now = 5.0
    line.update(LiveStatus(spent=5, budget=10))
    clock.now = 8.0
    assert line.seconds_left() == 2.0
    clock.now = 80.0
    assert line.seconds_left() == 0.0


def test_seconds_left_ignores_what_was_spent_before_a_resume() -> None:
    clock = Clock()
    line = ProgressLine("s", "m", console=terminal(), clock=clock)
    line.update(LiveStatus(spent=80, budget=100))
    assert line.seconds_left() is None
    clock.now = 10.0
    line.update(LiveStatus(spent=90, budget=100))
    assert line.seconds_left() == 10.0


def test_seconds_left_follows_the_nearer_of_two_budgets() -> None:
    clock = Clock()
    line = ProgressLine("s", "m", console=terminal(), clock=clock)
    line.update(LiveStatus(spent=0, budget=100, deadline_s=60))
    assert line.seconds_left() == 60.0
    clock.now = 10.0
    line.update(LiveStatus(spent=50, budget=100, deadline_s=50))
    assert line.seconds_left() == 10.0


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
