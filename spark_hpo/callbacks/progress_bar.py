"""Progress of a study while it runs: a line in a terminal, a bar in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spark_hpo.report.live_line import LiveStatus, ProgressLine
from spark_hpo.report.notebook import in_notebook
from spark_hpo.study.callback import Callback
from spark_hpo.trial import Assignment, Report, Trial, TrialState

if TYPE_CHECKING:
    from spark_hpo.study.callback import RunningStudy


def progress_callback(study: str, metric: str, unit: str = "epochs") -> Callback:
    """Return the callback that shows progress here: a bar in a notebook, a line in a terminal.

    Without either it shows nothing; the log has a line for each event.
    """
    return NotebookBar(study, metric, unit) if in_notebook() else TerminalLine(ProgressLine(study, metric))


def live_status_of(study: RunningStudy) -> LiveStatus:
    """Return the present status of a study."""
    states, progress = study.states, study.progress
    budget, spent = study.budget.resource, float(progress.resource_spent)
    if study.budget.trials is not None:
        budget, spent = (
            study.budget.trials,
            float(sum(count for state, count in states.items() if state.is_out)),
        )
    return LiveStatus(
        states=Counter(states),
        best=None if study.best is None else study.objective.value(study.best.loss),
        slots_busy=len(progress.running),
        slots=progress.slots,
        spent=spent,
        budget=budget,
        seconds=progress.seconds,
        seconds_left=study.seconds_left,
    )


class _Display(Callback, ABC):
    """Shows the study after each event."""

    @abstractmethod
    def show(self, study: RunningStudy) -> None: ...

    def on_assigned(self, study: RunningStudy, assignment: Assignment) -> None:
        self.show(study)

    def on_report(self, study: RunningStudy, trial: Trial, report: Report) -> None:
        self.show(study)


@dataclass(eq=False)
class TerminalLine(_Display):
    """Shows the live line during the search."""

    line: ProgressLine

    def on_study_start(self, study: RunningStudy) -> None:
        self.line.__enter__()
        self.show(study)

    def on_study_end(self, study: RunningStudy) -> None:
        self.line.__exit__(None, None, None)

    def show(self, study: RunningStudy) -> None:
        self.line.update(live_status_of(study))


class NotebookBar(_Display):
    """A tqdm bar of the trials or the resource in the budget, with the best value and the slots.

    In a resumed study the bar begins at what was spent. It remains visible at the end.
    """

    def __init__(self, study: str, metric: str, unit: str = "epochs") -> None:
        self._name = study
        self._unit = unit.removesuffix("s")
        self._metric = metric
        self._bar: Any = None

    def on_study_start(self, study: RunningStudy) -> None:
        from tqdm.auto import tqdm

        status = live_status_of(study)
        unit = "trial" if study.budget.trials is not None else self._unit
        self._bar = tqdm(desc=self._name, total=status.budget, initial=int(status.spent), unit=unit)

    def on_study_end(self, study: RunningStudy) -> None:
        self.show(study)
        self._bar.close()

    def show(self, study: RunningStudy) -> None:
        status = live_status_of(study)
        parts = [] if status.best is None else [f"best {self._metric} {status.best:.4g}"]
        if failed := status.states.get(TrialState.FAILED, 0):
            parts.append(f"{failed} failed")
        if status.slots:
            parts.append(f"{status.slots_busy}/{status.slots} slots")
        # Assignments that run when the budget is spent are finished, and may exceed it.
        self._bar.n = int(min(status.spent, status.budget or status.spent))
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.refresh()
