"""The cost of each fault, printed after the tests and written to docs/benchmarks/faults.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.page import Page, machine

INTRODUCTION = """\
# What a fault costs

`make test-faults` injects each fault into a study on a real Spark, in processes of its own, and writes this
page; `tests/faults/README.md` describes how. After each fault, a checker reads the journal, MLflow and the
files.

- *results lost*: reports that were in the journal before the fault and are missing at the end.
- *work repeated*: training steps that ran more than once, summed over the tries.
- *time to recover*: from the fault to the next step of the process that it hit, the longest of the tries. It
  includes the time in which Spark starts another executor, and the limits that the test has set.

"""


@dataclass
class _Row:
    tries: int = 0
    lost: int = 0
    repeated_s: float = 0.0
    recovery_s: float | None = None


class CostTable:
    """The rows of one test session."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._machine = machine(["pyspark", "torch"])

    def add(
        self,
        fault: str,
        *,
        lost: int = 0,
        repeated_s: float = 0.0,
        recovery_s: float | None = None,
        tries: int = 1,
    ) -> None:
        """Record a try of a fault. `recovery_s` is None if there is nothing to recover."""
        row = self._rows.setdefault(fault, _Row())
        row.tries += tries
        row.lost += lost
        row.repeated_s += repeated_s
        if recovery_s is not None:
            row.recovery_s = max(recovery_s, row.recovery_s or 0.0)

    def show(self, path: Path | None) -> None:
        """Print the table, and write the page if there is a path."""
        page = Page(INTRODUCTION)
        page.say(self._machine)
        page.say()
        page.heading(
            "fault", "times tried", "results lost", "work repeated (seconds)", "time to recover (seconds)"
        )
        for fault, row in self._rows.items():
            recovery = "-" if row.recovery_s is None else f"{row.recovery_s:.1f}"
            page.row(fault, row.tries, row.lost, f"{row.repeated_s:.1f}", recovery)
        if path is not None:
            page.write(path)
