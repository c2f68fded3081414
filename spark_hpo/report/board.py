"""The status of a study for a terminal: the best trial, rungs, running trials, failures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spark_hpo.report.confirmation import confirmation_in_words
from spark_hpo.report.events import line_of
from spark_hpo.report.ladder import Fate, ladder_of
from spark_hpo.report.lineage import lineage_in_words
from spark_hpo.report.live_line import duration, left_in_words
from spark_hpo.report.reserve import reserve_in_words
from spark_hpo.report.status import Spent, StudyState, StudyStatus
from spark_hpo.study_dir.lease import Holder
from spark_hpo.trial import in_words

_MOST_RUNNING = 8  # lines
_MOST_CAUSES = 5
_LAST_EVENTS = 5
_BAR = 24  # columns
_STYLES = {
    StudyState.RUNNING: "bold cyan",
    StudyState.PAUSED: "bold yellow",
    StudyState.FINISHED: "bold green",
    StudyState.INTERRUPTED: "bold yellow",
    StudyState.FAILED: "bold red",
    StudyState.DEAD: "bold red",
}
_FATES = {
    Fate.RUNNING: "running",
    Fate.PAUSED: "waiting",
    Fate.PROMOTED: "promoted",
    Fate.COMPLETED: "completed",
    Fate.STOPPED: "stopped",
    Fate.FAILED: "failed",
}


def board(status: StudyStatus, *, events: bool = False) -> RenderableType:
    """Return the status of a study as text and tables.

    Args:
        events: append the last events of the journal.
    """
    title = Text(f"{status.record.name}  ", "bold").append(f"{status.state}  ", _STYLES[status.state])
    parts: list[RenderableType] = [title.append(state_in_words(status), "not bold"), _facts(status)]
    parts += _section("rungs", _rungs(status))
    parts += _section("running", _running(status))
    parts += _section("failures", _causes(status))
    if events and status.record.drivers:
        last = status.record.drivers[-1].events[-_LAST_EVENTS:]
        lines = [Text(line_of(event, status.record), overflow="ellipsis", no_wrap=True) for event in last]
        parts += _section("last events", Group(*lines))
    return Group(*parts)


def state_in_words(status: StudyStatus) -> str:
    """Return that the study runs, or how it has ended and what to do: in one line."""
    record = status.record
    return words_of_state(status.state, status.driver, record.url, ending=record.ending, error=record.error)


def words_of_state(
    state: StudyState, driver: Holder | None, url: str, *, ending: str | None, error: str | None
) -> str:
    """Return the same for a study of which only these facts are known.

    Args:
        ending, error: as of `StudyRecord`.
    """
    who = f"the driver with pid {driver.pid} on {driver.host}" if driver else "its driver"
    again = f"resume it with: spark-hpo resume {url}"
    match state:
        case StudyState.RUNNING if ending is not None:
            return f"the search has ended ({ending}); {who} is writing the results"
        case StudyState.RUNNING:
            return f"{who} is running it"
        case StudyState.PAUSED:
            return f"{who} waits, because somebody has paused the study; {again}"
        case StudyState.FINISHED:
            return f"the search has ended ({ending})"
        case StudyState.INTERRUPTED:
            return f"interrupted; {again}"
        case StudyState.FAILED:
            return f"{who} failed ({error or 'see its log'}); {again}"
        case StudyState.DEAD:
            return f"{who} died (killed, or its machine went down); {again}"


def _section(title: str, content: RenderableType | None) -> list[RenderableType]:
    return [] if content is None else [Text(f"\n{title}", "bold"), content]


def _facts(status: StudyStatus) -> Table:
    record, answer = status.record, status.answer
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    metric = record.objective.metric
    best = Text("no trial has succeeded yet" if answer.best is None else "")
    if answer.best is not None and answer.value is not None:
        best = Text(f"{metric} {answer.value:.4g}", "bold green")
        if answer.spread is not None:
            best.append(f" ± {answer.spread:.2g}", "not bold")
        best.append(f"  trial {answer.best.trial_id} after {record.amount(answer.best.resource)}", "not bold")
        if answer.peak is not None:
            best.append(
                f" (peak: {answer.peak.value:.4g} after {record.amount(answer.peak.resource)})", "not bold"
            )
        if answer.test and metric in answer.test:
            best.append(f", {answer.test[metric]:.4g} on test", "not bold")
    table.add_row("best", best)
    if answer.best is not None:
        table.add_row("parameters", Text(in_words(answer.best.params)))
        if (lineage := lineage_in_words(record, answer.best)) is not None:
            table.add_row("lineage", Text(lineage))
    for warning in answer.warnings:
        table.add_row("note", Text(warning, "yellow"))
    if answer.outlook is not None:
        table.add_row("outlook", Text(answer.outlook))
    trials = "  ".join(f"{count} {state}" for state, count in status.trials.items())
    table.add_row("trials", Text(trials or "none yet"))
    for spent in status.budget:
        table.add_row(f"budget: {spent.kind}", _bar(spent))
    if (confirmation := confirmation_in_words(record)) is not None:
        table.add_row("confirmation", Text(confirmation))
    if (reserve := reserve_in_words(record, status.reserve)) is not None:
        table.add_row("reserve", Text(reserve))
    if status.slots is not None and record.is_running:
        table.add_row("slots", Text(f"{len(status.running)} of {status.slots} busy{status.share}"))
    worked = f"ran for {duration(record.seconds)}"
    worked += f", {len(record.drivers)} drivers" if len(record.drivers) > 1 else ""
    worked += "" if status.seconds_left is None else f", about {left_in_words(status.seconds_left)}"
    table.add_row("time", Text(worked))
    if (event := status.last_event) is not None:
        ago = duration(max(0.0, status.now - event.time))
        table.add_row("last event", Text(f"{event.kind}, {ago} ago"))
    return table


def _bar(spent: Spent) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(width=_BAR)
    row.add_column()
    bar = ProgressBar(total=spent.limit, completed=min(spent.spent, spent.limit), width=_BAR)
    shown = f"{spent.spent:,.0f} of {spent.limit:,.0f}"
    if spent.kind == "seconds":
        shown = f"{duration(spent.spent)} of {duration(spent.limit)}"
    row.add_row(bar, Text(shown))
    return row


def _rungs(status: StudyStatus) -> Table | None:
    """Return one line per resource. Rungs of different brackets with the same resource are added up."""
    fates: dict[int, Counter[Fate]] = defaultdict(Counter)
    for rung in ladder_of(status.record):
        fates[rung.resource].update(rung.fates)
    if not fates:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right", style="bold")
    table.add_column()
    for resource, counts in sorted(fates.items()):
        shown = ", ".join(f"{counts[fate]} {word}" for fate, word in _FATES.items() if counts[fate])
        if not status.record.is_running:
            shown = shown.replace(_FATES[Fate.RUNNING], "unfinished")
        table.add_row(status.record.amount(resource), f"{counts.total():,}", Text(shown))
    return table


def _running(status: StudyStatus) -> Group | None:
    if not status.running:
        return None
    lines = [
        Text(
            f"{status.record.described(attempt.assignment)}, {duration(max(0.0, status.now - attempt.began))}"
        )
        for attempt in status.running[:_MOST_RUNNING]
    ]
    return Group(*lines, *_more(len(status.running) - _MOST_RUNNING))


def _causes(status: StudyStatus) -> Group | None:
    if not status.causes:
        return None
    lines = []
    for cause in status.causes[:_MOST_CAUSES]:
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"{cause.count} x {cause.kind}: ", "red")
        line.append(cause.message)
        lines.append(line)
    return Group(*lines, *_more(len(status.causes) - _MOST_CAUSES))


def _more(hidden: int) -> Iterator[Text]:
    if hidden > 0:
        yield Text(f"and {hidden} more", "bright_black")
