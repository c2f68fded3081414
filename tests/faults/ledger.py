"""What the faults cost: a row each, printed at the end and written to docs/benchmarks/faults.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.page import Page, machine

INTRODUCTION = """\
# What a fault costs

Each fault is done to a study on a real Spark, in processes of its own, by `make test-faults`, which makes
this page; `tests/faults/` says how. After each, a checker reads journal, MLflow and files.

- *results lost*: reports that were in the journal before the fault and are not in the end.
- *work repeated*: training steps that were made more than once, of the tries together.
- *time to recover*: from the fault to the next step of what it hit, the longest of the tries. It has the time
  in it that Spark takes to start another executor, and that of the limits which the test has set.

"""


@dataclass
class _Row:
    tries: int = 0
    lost: int = 0
    repeated_s: float = 0.0
    recovery_s: float | None = None


class Ledger:
    """The rows of one session of tests."""

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
        """One more try of a fault. `recovery_s`: None where nothing is to recover."""
        row = self._rows.setdefault(fault, _Row())
        row.tries += tries
        row.lost += lost
        row.repeated_s += repeated_s
        if recovery_s is not None:
            row.recovery_s = max(recovery_s, row.recovery_s or 0.0)

    def show(self, path: Path | None) -> None:
        """Print the table, and write the page where there is a path."""
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
