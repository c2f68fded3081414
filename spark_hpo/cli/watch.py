"""`spark-hpo watch`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import click
from rich.live import Live

from spark_hpo.cli.command import Command, study_argument
from spark_hpo.cli.console import answers, say, say_json
from spark_hpo.errors import StorageError, StudyInterrupted
from spark_hpo.report.board import board, state_in_words
from spark_hpo.report.events import line_of
from spark_hpo.report.status import StudyStatus
from spark_hpo.study_dir.storage import Storage

_PAUSE_FACTOR = 4  # at least this multiple of the reading time, which is seconds for a long study
_MAX_FAILURES = 5  # consecutive readings: a store may be unavailable for a moment


@click.command(
    "watch",
    cls=Command,
    examples=[
        "spark-hpo watch studies/quickstart",
        "spark-hpo watch s3://bucket/studies/adult --interval 30 >> adult.log",
        "spark-hpo watch studies/quickstart --limit 3600 && spark-hpo report studies/quickstart",
    ],
)
@study_argument
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two readings of the directory.",
)
@click.option("--limit", type=click.FloatRange(min=0), help="Stop watching after this many seconds.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print events as JSON lines, as in the journal, and at the end the line of status --json.",
)
def command(study: str, interval: float, limit: float | None, as_json: bool) -> int:
    """Follow a running study from another terminal.

    DIR is the study directory, a path or URL. The command ends with the study, and with its exit code; with 1
    if the driver died, or if the study is still running after --limit. Without a terminal it prints one line
    per event.
    """
    storage = Storage(study)
    deadline = None if limit is None else time.monotonic() + limit
    try:
        statuses = _statuses(storage, interval, deadline)
        status = (
            _draw(statuses)
            if answers().is_terminal and not as_json
            else _print_events(statuses, as_json=as_json)
        )
    except KeyboardInterrupt:  # of the watch only
        return StudyInterrupted.exit_code
    if as_json:
        say_json(status.to_json())
        return status.exit_code
    say(f"{status.record.name}: {status.state}: {state_in_words(status)}")
    if status.record.is_running:
        say(f"it is still running after the --limit of {limit:g} s")
    return status.exit_code


def _draw(statuses: Iterable[StudyStatus]) -> StudyStatus:
    """Redraw one board."""
    with Live(console=answers(), auto_refresh=False) as live:
        for status in statuses:
            live.update(board(status, events=True), refresh=True)
    return status


def _print_events(statuses: Iterable[StudyStatus], *, as_json: bool) -> StudyStatus:
    """Print a line per event, including earlier ones."""
    printed = 0
    for status in statuses:
        for driver in status.record.drivers:
            for event in driver.events:
                if event.sequence <= printed:
                    continue
                printed = event.sequence
                if as_json:
                    say_json(event.to_json())
                else:
                    say(line_of(event, status.record))
    return status


def _statuses(storage: Storage, interval: float, deadline: float | None) -> Iterator[StudyStatus]:
    """Yield the status at intervals: at least once, and a last time when the study has ended.

    Raises:
        StorageError: the directory could not be read several times in a row.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            status = StudyStatus.read(storage)
        except StorageError:
            failures += 1
            if failures == _MAX_FAILURES:
                raise
        else:
            failures = 0
            yield status
            if not status.record.is_running:
                return
        now = time.monotonic()
        pause = max(interval, _PAUSE_FACTOR * (now - began))
        if deadline is not None and now + pause > deadline:
            if now >= deadline:
                return
            pause = deadline - now
        time.sleep(pause)
