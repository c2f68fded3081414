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
from spark_hpo.report.status import StudyState, StudyStatus
from spark_hpo.study_dir.storage import Storage

_SHARE = 4  # of the time that reading takes: of a study of days, it takes seconds
_PATIENCE = 5  # failed readings in a row: a store may be out for a moment


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
    help="Seconds between two looks at the directory.",
)
@click.option("--limit", type=click.FloatRange(min=0), help="Stop watching after so many seconds.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="An event a line as JSON, as the journal has it; the last line is what status --json prints.",
)
def command(study: str, interval: float, limit: float | None, as_json: bool) -> int:
    """Follow a running study from another terminal.

    DIR is its directory, a path or URL; nothing else is needed, and its driver is not disturbed. It ends
    with the study, and with its exit code: 1 when its driver has died, or when the study runs still after
    --limit. Without a terminal it prints one line an event.
    """
    storage = Storage(study)
    deadline = None if limit is None else time.monotonic() + limit
    try:
        looks = _looks(storage, interval, deadline)
        status = _draw(looks) if answers().is_terminal and not as_json else _tell(looks, as_json=as_json)
    except KeyboardInterrupt:  # of the watch: the study goes on
        return StudyInterrupted.exit_code
    if as_json:
        say_json(status.to_json())
        return status.exit_code
    say(f"{status.record.name}: {status.state}: {state_in_words(status)}")
    if status.state is StudyState.RUNNING:
        say(f"it runs still after the --limit of {limit:g} s")
    return status.exit_code


def _draw(looks: Iterable[StudyStatus]) -> StudyStatus:
    """One board, drawn again and again."""
    with Live(console=answers(), auto_refresh=False) as live:
        for status in looks:
            live.update(board(status, events=True), refresh=True)
    return status


def _tell(looks: Iterable[StudyStatus], *, as_json: bool) -> StudyStatus:
    """A line an event, the earlier ones too."""
    told = 0
    for status in looks:
        for driver in status.record.drivers:
            for event in driver.events:
                if event.sequence <= told:
                    continue
                told = event.sequence
                if as_json:
                    say_json(event.to_json())
                else:
                    say(line_of(event, status.record))
    return status


def _looks(storage: Storage, interval: float, deadline: float | None) -> Iterator[StudyStatus]:
    """Where the study stands, now and then; at least once, and at last when it has ended.

    Raises:
        StorageError: the directory cannot be read, several times in a row.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            status = StudyStatus.read(storage)
        except StorageError:
            failures += 1
            if failures == _PATIENCE:
                raise
        else:
            failures = 0
            yield status
            if status.state is not StudyState.RUNNING:
                return
        now = time.monotonic()
        pause = max(interval, _SHARE * (now - began))
        if deadline is not None and now + pause > deadline:
            if now >= deadline:
                return
            pause = deadline - now
        time.sleep(pause)
