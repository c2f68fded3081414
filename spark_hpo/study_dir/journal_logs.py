"""The logs of a journal, one for each driver: the events in them that count, read whole or as they grow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from spark_hpo.errors import JournalError, located
from spark_hpo.study_dir.events import Event, EventKind
from spark_hpo.study_dir.storage import Storage

VERSION = 1

_CURE = "Restore the file, or use another study_dir"


def log_name(epoch: int) -> str:
    """The name of the log of a driver."""
    return f"journal/{epoch:06d}"


def log_files(storage: Storage) -> Iterator[tuple[int, str]]:
    """The epoch and the name of each log. Ignores other files that a file system leaves in the folder."""
    for name in storage.names("journal"):
        if name.removesuffix(".jsonl").isdecimal():
            yield int(name.removesuffix(".jsonl")), name


def read_logs(storage: Storage) -> dict[int, list[Event]]:
    """Read the events that count, by the epoch of their driver."""
    logs = {}
    for epoch, name in log_files(storage):
        with located(f"{storage.url}/journal/{name}", JournalError):
            logs[epoch] = list(parse(storage.log(log_name(epoch)).lines()))
    with located(f"{storage.url}/journal", JournalError):
        return valid_events(logs)


def parse(lines: list[bytes]) -> Iterator[Event]:
    """Yield the events of a log. The last line is skipped if a crash has torn it.

    Raises:
        JournalError: a line before is damaged, or was written by a newer version.
    """
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line has no end")
            record = json.loads(line)
            sequence, when, kind = record.pop("sequence"), record.pop("time"), record.pop("event")
            if type(trial_id := record.get("trial_id", 0)) is not int or trial_id < 0:
                raise ValueError(f"trial_id is {trial_id!r}")  # it becomes a part of paths
            if (type(sequence), type(version := record.get("version", VERSION))) != (int, int):
                raise ValueError("sequence and version must be integers")
            if not isinstance(when, int | float) or not isinstance(record.get("params", {}), dict):
                raise ValueError("time must be a number, and params a mapping")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            if number == len(lines):
                return  # torn by the crash that ended its driver, which has not acted on it
            raise JournalError(f"line {number} is damaged ({exc}). {_CURE}") from exc
        if version > VERSION or kind not in EventKind.__members__.values():
            raise JournalError(
                f"line {number} was written by a newer spark_hpo "
                f"(event {kind!r}, version {version}). Install that version to resume this study"
            )
        yield Event(sequence, when, EventKind(kind), record)


def valid_events(logs: Mapping[int, list[Event]]) -> dict[int, list[Event]]:
    """Drop the events of each log that were written after the next driver had read it."""
    newest = max((epoch for epoch, events in logs.items() if events), default=None)
    if newest is None:
        return {}
    try:
        seen = {int(epoch): int(count) for epoch, count in logs[newest][0].data["after"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise JournalError(
            f"{newest:06d}: line 1 is damaged (it has no numbers of older events). {_CURE}"
        ) from exc
    for epoch, count in seen.items():
        if len(logs.get(epoch, ())) < count:
            raise JournalError(
                f"{epoch:06d}: has {len(logs.get(epoch, ()))} records, but the next driver has read "
                f"{count}. {_CURE}"
            )
    return {epoch: logs.get(epoch, [])[:count] for epoch, count in seen.items()} | {newest: logs[newest]}


class Tail:
    """Follows the journal of a study that another process may be writing, without reading any line twice.

    A trace: read -> (40 events, False); read -> ([], False); the driver appends one: read -> (1 event, False)
        a driver takes over that has not seen the last 2 events of its predecessor: read -> (all again, True)
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._epoch = 0  # of the log that grows; 0: there is none yet
        self._position = 0  # in that log
        self._counts: dict[int, int] = {}  # events that were returned, by epoch

    def read(self) -> tuple[list[Event], bool]:
        """Return the events since the last call, and whether they replace those of all earlier calls.

        Raises:
            JournalError: a line before the last one is damaged, or was written by a newer version.
        """
        epochs = [epoch for epoch, _ in log_files(self._storage)]
        if not any(epoch > self._epoch and self._lines(epoch, 0) for epoch in epochs):
            return self._grown(), False
        lines = {epoch: self._lines(epoch, 0) for epoch in epochs}
        logs = {}
        for epoch, some in lines.items():
            logs[epoch] = self._parsed(epoch, some)
        with located(f"{self._storage.url}/journal", JournalError):
            logs = valid_events(logs)
        counts = {epoch: len(events) for epoch, events in logs.items()}
        is_new = any(count > counts.get(epoch, 0) for epoch, count in self._counts.items())
        known = {} if is_new else self._counts
        self._epoch, self._counts = max(logs), counts
        self._position = lines[self._epoch][counts[self._epoch] - 1][0]
        return [event for epoch in sorted(logs) for event in logs[epoch][known.get(epoch, 0) :]], is_new

    def _grown(self) -> list[Event]:
        """Return what was appended to the log of the last driver."""
        lines = self._lines(self._epoch, self._position) if self._epoch else []
        events = self._parsed(self._epoch, lines)
        if events:
            self._position = lines[len(events) - 1][0]
            self._counts[self._epoch] += len(events)
        return events

    def _parsed(self, epoch: int, lines: list[tuple[int, bytes]]) -> list[Event]:
        with located(f"{self._storage.url}/journal/{epoch:06d}", JournalError):
            return list(parse([line for _, line in lines]))

    def _lines(self, epoch: int, position: int) -> list[tuple[int, bytes]]:
        return self._storage.log(log_name(epoch)).lines_from(position)
