"""Log lines that say what a study does when nothing else has been logged for a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from spark_hpo.report.live_line import ProgressLine

logger = logging.getLogger(__name__)

_SILENCE_S = 8.0
_LONGEST_SILENCE_S = 600.0  # during a search, whose trials may take hours
_TICK_S = 0.5


class Heartbeat(logging.Handler, AbstractContextManager["Heartbeat"]):
    """Logs the text of the live line after a silence, where no terminal shows the line.

    While a study starts or ends, a line follows each silence of 8 s. During the search, each silence may be
    twice as long as the one before, until a trial reports.
    """

    def __init__(self, line: ProgressLine, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self._line, self._clock = line, clock
        self._spoke_at, self._silence_s = clock(), _SILENCE_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if not self._line.is_shown:
            logging.getLogger("spark_hpo").addHandler(self)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("spark_hpo").removeHandler(self)
        self._ended.set()

    def emit(self, record: logging.LogRecord) -> None:
        self._spoke_at = self._clock()
        if record.name != __name__:
            self._silence_s = _SILENCE_S

    def beat(self) -> None:
        """Log a line if it is time for one."""
        if self._clock() - self._spoke_at < self._silence_s:
            return
        logger.info("%s", self._line.render().plain)
        self._spoke_at = self._clock()
        if not self._line.is_in_phase:
            self._silence_s = min(2 * self._silence_s, _LONGEST_SILENCE_S)

    def _run(self) -> None:
        while not self._ended.wait(_TICK_S):
            self.beat()
