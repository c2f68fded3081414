"""The report of a study: its pictures, and the page that shows them, from the study directory alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from spark_hpo.report import page
from spark_hpo.report.pictures.curves import curves
from spark_hpo.report.pictures.front import front
from spark_hpo.report.pictures.history import history, history_by_resource
from spark_hpo.report.pictures.importance import importance
from spark_hpo.report.pictures.parallel import parallel
from spark_hpo.report.pictures.parameters import parameters
from spark_hpo.report.pictures.rungs import rungs
from spark_hpo.report.pictures.slots import slots
from spark_hpo.report.pictures.theme import Picture
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage

logger = logging.getLogger(__name__)

FILE = "report.html"

_PICTURES: Mapping[str, Callable[[StudyRecord], Picture]] = {
    "history": history,
    "history_by_resource": history_by_resource,
    "rungs": rungs,
    "curves": curves,
    "parallel": parallel,
    "importance": importance,
    "slots": slots,
}


@dataclass(frozen=True, slots=True)
class StudyReport:
    """The report of a study at one moment.

    A trace: report_of(Storage("studies/digits")).figure("history").show()
    """

    record: StudyRecord

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the figures of the study. The page also has one for each parameter."""
        return (*_PICTURES, *(("pareto_front",) if self.record.objective.extra_objectives else ()))

    def picture(self, name: str) -> Picture:
        """Return a figure with the sentence that says what it shows."""
        return front(self.record) if name == "pareto_front" else _PICTURES[name](self.record)

    def figure(self, name: str) -> go.Figure:
        """Return one of `names` as a plotly figure."""
        return self.picture(name).figure

    def html(self) -> str:
        """Return the whole page. It contains plotly.js (5 MB), so it needs no network."""
        pictures = {name: self.picture(name) for name in self.names}
        return page.render(self.record, pictures, parameters(self.record))


def report_of(storage: Storage, *, is_running: bool | None = None) -> StudyReport:
    """Read the study in a directory, running or ended. Its driver is not disturbed.

    Args:
        is_running: whether a driver is running; None: read the lease.

    Raises:
        ConfigError: there is no study.
        JournalError: its files are damaged.
        StorageError: the directory cannot be read.
    """
    return StudyReport(StudyRecord.read(storage, is_running=is_running))


def write_report(storage: Storage, *, is_running: bool | None = None) -> tuple[StudyRecord, str] | None:
    """Write the page into the study directory.

    Returns:
        What the page was made from, and its text. None if it could not be written, which is logged: a study
        does not fail because of its report.
    """
    try:
        report = report_of(storage, is_running=is_running)
        text = report.html()
        storage.write(FILE, text.encode())
    except Exception as exc:  # a drawing library may raise anything
        logger.warning("cannot write %s/%s: %s", storage.url, FILE, exc, exc_info=True)
        return None
    return report.record, text
