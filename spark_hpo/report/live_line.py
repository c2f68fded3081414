"""The live status line of a study on a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from spark_hpo.trial import TrialState

_STYLES = {
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "blue",
    TrialState.STOPPED: "bright_black",
    TrialState.COMPLETED: "green",
    TrialState.FAILED: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStatus:
    """The status that the line shows."""

    states: Mapping[TrialState, int] = field(default_factory=dict)
    best: float | None = None  # the metric, in the user's direction; None: none yet
    slots_busy: int = 0
    slots: int = 0
    spent: float = 0.0  # of the budget, in its unit: trials or epochs
    budget: float | None = None  # None: limited by time alone, or not at all
    deadline_s: float | None = None  # seconds until the budget of time is spent; None: no such budget


@dataclass(eq=False)
class ProgressLine(AbstractContextManager["ProgressLine"]):
    """A line at the bottom of the terminal that disappears when the study ends.

    It is written to standard error, if that is a terminal. Log lines of handlers that write there appear
    above it: `with ProgressLine("digits", "accuracy") as line: line.update(status)`.
    """

    study: str
    metric: str
    _: KW_ONLY
    console: Console = field(default_factory=lambda: Console(stderr=True))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._status = LiveStatus()
        self._first: tuple[float, float] | None = None  # time, and spent, of the first update
        self._updated_at = self.clock()
        self._live: Live | None = None
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def __enter__(self) -> ProgressLine:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self.render,
                console=self.console,
                refresh_per_second=2,
                transient=True,
                redirect_stdout=False,  # the last line of stdout is JSON
                redirect_stderr=False,
            )
            self._live.start()
            self._lift_logs()
        return self

    def __exit__(self, *error: object) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, status: LiveStatus) -> None:
        """Show a new status."""
        now = self.clock()
        if self._first is None:
            self._first = (now, status.spent)
        self._updated_at = now
        self._status = status

    def seconds_left(self) -> float | None:
        """Estimate the seconds until the budget is spent, at the rate since the first update; None: unknown.

        What earlier drivers have spent does not count for the rate.
        """
        now, status = self.clock(), self._status
        limits = []
        if status.deadline_s is not None:
            limits.append(status.deadline_s - (now - self._updated_at))
        if status.budget is not None and self._first is not None:
            began, spent_before = self._first
            spent, elapsed = status.spent - spent_before, self._updated_at - began
            if spent > 0 and elapsed > 0:
                remaining = (status.budget - status.spent) * elapsed / spent
                limits.append(remaining - (now - self._updated_at))
        return max(0.0, min(limits)) if limits else None

    def render(self) -> Text:
        status = self._status
        line = Text(f"{self.study}  ", no_wrap=True, overflow="ellipsis")
        for state in TrialState:
            if count := status.states.get(state, 0):
                line.append(f"{count} {state}  ", _STYLES[state])
        if status.best is not None:
            line.append(f"best {self.metric} {status.best:.4g}  ", "bold")
        if status.slots:
            line.append(f"{status.slots_busy}/{status.slots} slots  ")
        if status.budget:
            line.append(f"{min(1.0, status.spent / status.budget):.0%}  ")
        left = self.seconds_left()
        if left is not None:
            line.append(f"{duration(left)} left")
        return line

    def _lift_logs(self) -> None:
        """Redirect log lines to the console, which draws them above the status line."""
        for name in (None, "spark_hpo"):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is self.console.file:
                    self._streams.append((handler, handler.stream))
                    handler.setStream(FileProxy(self.console, handler.stream))


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `3 min 5 s`, `2 h 7 min`, `3 d 4 h`."""
    whole = round(seconds)
    for unit, size, next_unit, next_size in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // next_size} {next_unit}"
    return f"{whole} s"
