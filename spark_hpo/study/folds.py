"""Cross-validation: divides a slot into one assignment per fold, and merges the reports of the folds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from spark_hpo.backend.base import merge_usage
from spark_hpo.search.scheduler import Slot
from spark_hpo.trial import Measurement, Report


@dataclass(slots=True)
class _OpenSlot:
    slot: Slot
    begun: set[int] = field(default_factory=set)
    reports: dict[int, Report] = field(default_factory=dict)  # by fold

    @property
    def folds(self) -> range:
        return range(self.slot.resource_from + 1, self.slot.resource_to + 1)

    @property
    def is_broken(self) -> bool:
        """True if a fold has failed or was pruned, so that the other folds need not begin."""
        return any(report.failure or report.is_pruned for report in self.reports.values())

    @property
    def is_complete(self) -> bool:
        return self.reports.keys() == (self.begun if self.is_broken else set(self.folds))


class Folds:
    """The folds of the slots in flight. Fold r of a trial is its r-th unit of the resource.

    Folds are assignments of their own, which run side by side, while the search sees one slot and one report.
    No I/O: the same calls give the same reports.

    A trace: open(slot of trial 7, from 1 to 3) -> (2, 3); begin(7, 2); begin(7, 3); add(report of fold 3);
        merged(7) -> None; add(report of fold 2); merged(7) -> means over folds 1 to 3; close(7)
    """

    def __init__(self) -> None:
        self._open: dict[int, _OpenSlot] = {}  # by trial
        self._metrics: dict[int, list[Mapping[str, float]]] = {}  # of the folds of closed slots, by trial

    def __contains__(self, trial_id: int) -> bool:
        """Return True if a slot of the trial is open."""
        return trial_id in self._open

    def __iter__(self) -> Iterator[int]:
        """Iterate over the trials whose slots are open."""
        return iter(tuple(self._open))

    def open(self, slot: Slot) -> Sequence[int]:
        """Open a slot, and return its folds."""
        self._open[slot.trial_id] = _OpenSlot(slot)
        return self._open[slot.trial_id].folds

    def begin(self, trial_id: int, fold: int) -> None:
        """Note that the first attempt of a fold begins."""
        self._open[trial_id].begun.add(fold)

    def waiting(self, trial_id: int) -> Sequence[int]:
        """Return the folds that are to begin: none after a fold of the slot has failed or was pruned."""
        found = self._open[trial_id]
        return [] if found.is_broken else [fold for fold in found.folds if fold not in found.begun]

    def slot(self, trial_id: int) -> Slot:
        return self._open[trial_id].slot

    def add(self, report: Report) -> None:
        """Take the report of a fold that has ended for good."""
        assert report.fold is not None, "of a fold"
        self._open[report.trial_id].reports[report.fold] = report

    def merged(self, trial_id: int) -> Report | None:
        """Return the report of a slot: means over all folds of the trial. None: folds are missing."""
        found = self._open[trial_id]
        if not found.is_complete:
            return None
        reports = [found.reports[fold] for fold in sorted(found.reports)]
        failed = next((report for report in reports if report.failure is not None), None)
        merged = replace(
            failed or reports[-1],
            fold=None,
            attempt=max(report.attempt for report in reports),
            seconds=sum(report.seconds for report in reports),
            notes={name: note for report in reports for name, note in report.notes.items()},
            curve=(),
            usage=merge_usage(use for report in reports for use in report.usage),
        )
        if failed is not None and failed.failure is not None:
            message = f"fold {failed.fold}: {failed.failure.message}"
            failure = replace(failed.failure, message=message)
            return replace(merged, resource=found.slot.resource_from, metrics={}, failure=failure)
        if found.is_broken:
            return replace(merged, resource=found.slot.resource_from, metrics={}, is_pruned=True)
        scores = [*self._metrics.get(trial_id, ()), *(report.metrics for report in reports)]
        curve = [_measurement(report, mean_and_spread(scores[: report.fold])[0]) for report in reports]
        metrics, spread = mean_and_spread(scores)
        return replace(
            merged, resource=found.slot.resource_to, metrics=metrics, spread=spread, curve=tuple(curve)
        )

    def close(self, trial_id: int) -> None:
        """Forget a slot whose merged report is recorded, but not the metrics of its folds."""
        found = self._open.pop(trial_id)
        if not found.is_broken:
            self._metrics.setdefault(trial_id, []).extend(found.reports[fold].metrics for fold in found.folds)


def mean_and_spread(scores: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean and the standard deviation of each metric that all folds have.

    The deviation is that of the population, as in scikit-learn's `std_test_score`. One fold has none.
    """
    names = [name for name in scores[0] if all(name in score for score in scores)]
    values = {name: [score[name] for score in scores] for name in names}
    means = {name: statistics.fmean(each) for name, each in values.items()}
    if len(scores) == 1:
        return means, {}
    return means, {name: statistics.pstdev(each) for name, each in values.items()}


def _measurement(report: Report, metrics: Mapping[str, float]) -> Measurement:
    """The means over the folds up to this one, with the time and the rows of this fold."""
    return Measurement(
        resource=report.fold or 0,
        metrics=metrics,
        time=max((measured.time for measured in report.curve), default=0.0),
        seconds=report.seconds,
        rows=sum(measured.rows for measured in report.curve),
    )
