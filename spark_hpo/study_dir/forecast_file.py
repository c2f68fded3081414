"""The time that a running study still needs, as its driver has last estimated it, for other programs."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

from spark_hpo.study_dir.storage import Storage

_NAME = "forecast.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """An estimate, and when it was made."""

    time: float  # wall clock, seconds since 1970
    seconds_left: float | None  # from then on; None: nothing has been seen yet, or nothing limits the study

    @classmethod
    def load(cls, storage: Storage) -> Forecast | None:
        """Return the last one in a study directory. None: there is none, or it cannot be read."""
        data = storage.read(_NAME)
        try:
            record = {} if data is None else json.loads(data)
            left = record["seconds_left"]
            return cls(time=float(record["time"]), seconds_left=None if left is None else float(left))
        except (KeyError, ValueError, TypeError, RecursionError):
            return None

    def write(self, storage: Storage) -> None:
        storage.write(_NAME, json.dumps(asdict(self)).encode())

    def left_s(self, now: float | None = None) -> float | None:
        """Return the seconds that are left now; None: not known.

        Args:
            now: seconds since 1970; None: read the clock.
        """
        if self.seconds_left is None:
            return None
        return max(0.0, self.seconds_left - ((time.time() if now is None else now) - self.time))
