"""Reads a running study again and again, each time only what is new in its journal."""

from __future__ import annotations

from dataclasses import replace

from spark_hpo.objective import Objective
from spark_hpo.report.study_record import AttemptLog, StudyRecord
from spark_hpo.study_dir.journal import Journal
from spark_hpo.study_dir.journal_logs import Tail
from spark_hpo.study_dir.storage import Storage


class StudyReader:
    """Gives the content of a study directory at successive moments. Not for several threads at once.

    A trace: read -> the whole journal is read; the driver appends 3 lines; read -> these are read
    """

    def __init__(self, storage: Storage, objective: Objective) -> None:
        self._storage = storage
        self._objective = objective
        self._tail = Tail(storage)
        self._journal: Journal | None = None
        self._attempts = AttemptLog()

    def read(self, *, is_running: bool) -> StudyRecord:
        """Return the content as it is now.

        Raises:
            ConfigError: there is no study.
            JournalError: its files are damaged.
        """
        events, is_new = self._tail.read()
        if self._journal is None or is_new:
            self._journal = Journal(self._storage, self._objective, events=events)
            self._attempts = AttemptLog()
        else:
            self._journal.follow(events)
        self._attempts.add(events)
        record = StudyRecord.read(self._storage, is_running=is_running, journal=self._journal)
        return replace(record, known_attempts=tuple(self._attempts.attempts))
