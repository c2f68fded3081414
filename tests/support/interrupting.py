"""A callback that interrupts its study."""

from __future__ import annotations

from typing import Any

from spark_hpo import Callback


class StopAfter(Callback):
    """Raises KeyboardInterrupt after a number of reports, as Ctrl-C would."""

    def __init__(self, reports: int) -> None:
        self._left = reports

    def on_report(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
