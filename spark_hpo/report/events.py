"""Events of the journal as text, one line each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from spark_hpo.objective import Objective
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.layout import parent_of
from spark_hpo.study_dir.requests import Reply
from spark_hpo.trial import Assignment, Split


class Terms(Protocol):
    """The terms of a study that a line about it needs."""

    @property
    def objective(self) -> Objective: ...

    def amount(self, resource: int) -> str:
        """Return a resource with its unit: `27 epochs`."""
        ...

    def described(self, assignment: Assignment) -> str:
        """Say what an assignment trains: `trial 17, epochs 2 to 3 of 27`."""
        ...


def line_of(event: Event, study: Terms) -> str:
    """Return `2026-11-21 14:03:07 trial 3: accuracy 0.93 after 3 epochs, 4.1 s`, in local time."""
    moment = datetime.fromtimestamp(event.time).isoformat(" ", "seconds")
    return f"{moment} {_words(event, study)}"


def share_in_words(slots: Mapping[str, Any]) -> str:
    """Return how the slots of a study are a share of all slots; "": no other study shares them.

    Args:
        slots: the data of an event SLOTS.
    """
    others = slots.get("shared_with", 0)
    if not others:
        return ""
    return f", a share of {slots['of']} with {others} other {'study' if others == 1 else 'studies'}"


def _words(event: Event, study: Terms) -> str:
    data = event.data
    match event.kind:
        case EventKind.OPENED:
            return f"driver {len(data.get('after', ())) + 1} opened the study"
        case EventKind.BUDGET:
            return f"budget: {'no limit of' if data['trials'] is None else data['trials']} trials"
        case EventKind.CONFIRMING:
            names = ", ".join(str(each["trial"]) for each in data["finalists"])
            return f"finalists: trials {names}, with {data['seeds']} other seeds each"
        case EventKind.RESERVE:
            trials = ", ".join(map(str, data["trials"]))
            amount = study.amount(data["resource"])
            return f"the search ended ({data['reason']}); reserve: {amount} for trial {trials}, to the end"
        case EventKind.SKIPPED:
            return f"trial {data['trial_id']}: promoted, but trained to the end already"
        case EventKind.SLOTS:
            return f"slots for trials: {data['slots']}{share_in_words(data)}"
        case EventKind.ASSIGNED:
            attempt = event.assignment.attempt
            parent = parent_of(event.assignment)
            origin = "" if parent is None else f" from the weights of trial {parent}"
            return f"{study.described(event.assignment)}: started{origin}" + (
                f", attempt {attempt}" if attempt > 1 else ""
            )
        case EventKind.REPORTED | EventKind.FOLD | EventKind.REPEATED | EventKind.LOST:
            return _report(event, study)
        case EventKind.SETTLED:
            trials = data["trials"]
            names = ", ".join(map(str, trials))
            return f"trial{'s' if len(trials) > 1 else ''} {names}: {data['state']}"
        case EventKind.STEERED:
            refused = "refused: " if data["reply"] == Reply.REFUSED else ""
            return f"{data['verb']} by {data['by']}: {refused}{data['message']}"
        case EventKind.CLOSED:
            message = event.ending.message
            return f"the driver ended: {data['reason']}" + (f": {message}" if message else "")


def _report(event: Event, study: Terms) -> str:
    report = event.report
    where = f"trial {report.trial_id}"
    if report.fold is not None:
        where += f", fold {report.fold}"
    if report.repeat is not None:
        where += f", seed {report.repeat}"
    if event.kind is EventKind.LOST:
        reason = report.failure.message if report.failure else "lost"
        return f"{where}: attempt {report.attempt} was lost: {reason}"
    if report.failure is not None:
        return f"{where}: failed: {report.failure.message}"
    metric = study.objective.metric
    value = f"{report.metrics[metric]:.4g}" if metric in report.metrics else "not reported"
    if report.split is Split.TEST:
        return f"trial {report.trial_id}: {metric} {value} on test"
    if report.split is Split.TRAIN:
        return f"trial {report.trial_id}: the final model is trained, {report.seconds:.1f} s"
    if report.fold is not None:
        return f"{where}: {metric} {value}, {report.seconds:.1f} s"
    if metric in report.spread:
        value += f" ± {report.spread[metric]:.2g}"
    return f"{where}: {metric} {value} after {study.amount(report.resource)}, {report.seconds:.1f} s"
