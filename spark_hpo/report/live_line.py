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
    seconds: float = 0.0  # that drivers have worked
    seconds_left: float | None = None  # expected; None: not known


@dataclass(eq=False)
class ProgressLine(AbstractContextManager["ProgressLine"]):
    """A line at the bottom of the terminal that disappears when the study ends.

    It is written to standard error, if that is a terminal. Log lines of handlers that write there appear
    above it: `with ProgressLine("digits", "accuracy") as line: line.update(status)`. Before and after the
    search it shows a phase and for how long it has lasted: `line.announce("preparing the table")`.
    """

    study: str
    metric: str
    _: KW_ONLY
    console: Console = field(default_factory=lambda: Console(stderr=True))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._status = LiveStatus()
        self._phase: tuple[str, float] | None = None  # and when it began
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

    @property
    def is_shown(self) -> bool:
        """True between entering and leaving the context, on a terminal."""
        return self._live is not None

    @property
    def is_in_phase(self) -> bool:
        """True if the line shows a phase and not the status of a search."""
        return self._phase is not None

    def announce(self, phase: str) -> None:
        """Show what the study does instead of its status, until the next status."""
        self._phase = phase, self.clock()

    def update(self, status: LiveStatus) -> None:
        """Show a new status."""
        self._updated_at = self.clock()
        self._phase = None
        self._status = status

    def seconds_left(self) -> float | None:
        """Return the seconds that are left now, counted down since the last update; None: not known."""
        left = self._status.seconds_left
        return None if left is None else max(0.0, left - (self.clock() - self._updated_at))

    def share(self) -> float | None:
        """Return the share of the study that is done, of its time or else of its budget; None: not known."""
        status, left = self._status, self.seconds_left()
        if status.budget and status.spent >= status.budget:
            return 1.0
        worked = status.seconds + self.clock() - self._updated_at
        if left is not None and worked + left > 0:
            return worked / (worked + left)
        return min(1.0, status.spent / status.budget) if status.budget else None

    def render(self) -> Text:
        status = self._status
        line = Text(f"{self.study}  ", no_wrap=True, overflow="ellipsis")
        if self._phase is not None:
            phase, began = self._phase
            return line.append(f"{phase}  ").append(duration(self.clock() - began), "bright_black")
        for state in TrialState:
            if count := status.states.get(state, 0):
                line.append(f"{count} {state}  ", _STYLES[state])
        if status.best is not None:
            line.append(f"best {self.metric} {status.best:.4g}  ", "bold")
        if status.slots:
            line.append(f"{status.slots_busy}/{status.slots} slots  ")
        if (share := self.share()) is not None:
            line.append(f"{share:.0%}  ")
        left = self.seconds_left()
        if left is not None:
            line.append(left_in_words(left))
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


def left_in_words(seconds: float) -> str:
    """Return the expected time until the end of a study: `3 min 5 s left`."""
    return f"{duration(seconds)} left"
