"""The pages as HTML."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from spark_hpo.redact import redact
from spark_hpo.report.answer import answer_of
from spark_hpo.report.board import words_of_state
from spark_hpo.report.events import line_of
from spark_hpo.report.leaderboard import flat_params, ranked, value
from spark_hpo.report.page import as_script_data, content_of, environment, in_words, template_file
from spark_hpo.report.serve.catalog import Catalog, Entry
from spark_hpo.report.serve.pictures import Path, compared, curve, small_line
from spark_hpo.report.serve.tally import Look, Tally
from spark_hpo.report.status import StudyState
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.usage import summary
from spark_hpo.study_dir.events import EventKind, Outcome
from spark_hpo.study_dir.tracking_place import TrackingPlace
from spark_hpo.trial import TrialState

PAGE_SIZE = 100  # trials
_HELD_PAGES = 8
_MAX_COMPARED = 12  # studies
_BADGES = {"running": "live", "finished": "done", "failed": "bad", "dead": "bad"}


@dataclass(eq=False)
class Pages:
    """Renders pages. Those of a whole study are kept until the study changes."""

    catalog: Catalog
    csrf: str
    _held: OrderedDict[str, tuple[int, str]] = field(default_factory=OrderedDict)

    def studies(self) -> str:
        """Return the list of all studies."""
        entries = self.catalog.entries()
        return self._render(
            "studies.html.jinja",
            rows=[row_of(entry) for entry in entries],
            urls=self.catalog.urls,
            error=self.catalog.error,
            follow="all",
        )

    def row(self, entry: Entry) -> str:
        """Return the row of a study in the list, without its element."""
        module = _environment().get_template("parts.html.jinja").module
        return str(module.study_cells(row_of(entry)))  # type: ignore[attr-defined]

    def top(self, entry: Entry) -> str:
        """Return the changing part of the head of a study's page, without its element."""
        module = _environment().get_template("parts.html.jinja").module
        return str(module.top(row_of(entry)))  # type: ignore[attr-defined]

    def points(self, entry: Entry) -> list[list[Any]]:
        """Return the latest results of a study, for the picture of its history."""
        with entry.using:
            return [] if entry.tally is None else [list(astuple(point)) for point in entry.tally.points]

    def study(self, entry: Entry, *, fresh: bool) -> str:
        """Return the page of a study.

        Args:
            fresh: draw the pictures if the study has changed since they were drawn; otherwise return at once
                what there is.
        """
        held = self._held.get(entry.id)
        if held is not None and (held[0] == entry.version or not fresh):
            return held[1]
        if not fresh:
            return self._study(entry, None, 0)
        with entry.drawing:
            version = entry.version
            held = self._held.get(entry.id)
            if held is not None and held[0] == version:  # by another thread meanwhile
                return held[1]
            text = self._study(entry, self.catalog.record(entry), version)
            self._held[entry.id] = version, text
            self._held.move_to_end(entry.id)
            while len(self._held) > _HELD_PAGES:
                self._held.popitem(last=False)
        return text

    def _study(self, entry: Entry, record: StudyRecord | None, version: int) -> str:
        if record is None:
            content: dict[str, Any] = {"record": None, "figures": "{}"}
        else:
            with _without_collections():
                content = content_of(record)
        drawn = record.drivers[-1].events[-1].sequence if record is not None and record.drivers else 0
        return self._render_study("study.html.jinja", entry, version, **content, sequence=drawn)

    def trials(self, entry: Entry, *, page: int, state: str | None) -> str:
        """Return a list of trials, the best first."""
        version, record = self._read(entry)
        some = [
            trial for trial in ranked(record.at_best, record.best_id) if state in (None, str(trial.state))
        ]
        pages = max(1, -(-len(some) // PAGE_SIZE))
        page = min(max(page, 1), pages)
        rows = [
            {
                "trial": trial,
                "value": value(trial, record.objective),
                "params": [(name, in_words(item)) for name, item in flat_params(trial.params).items()],
            }
            for trial in some[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        ]
        return self._render_study(
            "trials.html.jinja",
            entry,
            version,
            record=record,
            trials=rows,
            page=page,
            pages=pages,
            state=state,
            states=[str(known) for known in TrialState],
            total=len(some),
            best_id=record.best_id,
        )

    def trial(self, entry: Entry, trial_id: int) -> str | None:
        """Return the page of a trial; None: the study has no such trial."""
        version, record = self._read(entry)
        trial = record.trials.get(trial_id)
        if trial is None:
            return None
        answer = answer_of(record)
        picture = curve(record, trial, answer.best)
        attempts = [one for one in record.attempts if one.assignment.trial_id == trial_id]
        return self._render_study(
            "trial.html.jinja",
            entry,
            version,
            record=record,
            trial=trial,
            answer=answer,
            picture=picture,
            at_best=next(one for one in record.at_best if one.trial_id == trial_id),
            attempts=attempts,
            failures=[one for one in attempts if one.report is not None and one.report.failure is not None],
            lines=[line_of(event, record) for event in _events_of(record, trial_id)],
            test=record.tests.get(trial_id),
            usage=summary([use for one in attempts if one.report for use in one.report.usage]),
            checkpoint=trial.checkpoint and f"{record.url}/{trial.checkpoint}",
            neighbours=_neighbours(record, trial_id),
            mlflow=mlflow_address(entry, trial_id),
            figures=Markup(as_script_data({"curve": picture})),
        )

    def comparison(self, entries: Sequence[Entry]) -> str:
        """Return the best values of several studies in one picture. Only equal metrics compare."""
        chosen = [entry for entry in entries[:_MAX_COMPARED] if entry.tally is not None]
        metric = chosen[0].tally.objective.metric if chosen and chosen[0].tally else ""
        same = [entry for entry in chosen if entry.tally and entry.tally.objective.metric == metric]
        paths = [_path(entry) for entry in same]
        unit = same[0].tally.search.unit if same and same[0].tally else "epochs"
        pictures = {
            "over_time": compared(paths, metric, unit, over_time=True),
            "over_resource": compared(paths, metric, unit, over_time=False),
        }
        return self._render(
            "compare.html.jinja",
            rows=[row_of(entry) for entry in same],
            others=[row_of(entry) for entry in chosen if entry not in same],
            metric=metric,
            unit=unit,
            pictures=pictures,
            figures=Markup(as_script_data(pictures)),
            follow=",".join(entry.id for entry in chosen) or "none",
            version=sum(entry.version for entry in chosen),
        )

    def problem(self, title: str, text: str) -> str:
        """Return a page that says what is wrong."""
        return self._render("problem.html.jinja", title=title, text=text, follow="none")

    def _read(self, entry: Entry) -> tuple[int, StudyRecord]:
        with entry.drawing:
            return entry.version, self.catalog.record(entry)

    def _render_study(self, template: str, entry: Entry, version: int, **variables: Any) -> str:
        """Render a page of one study, which follows its events from a version on."""
        shared = {"row": row_of(entry), "follow": entry.id, "study_id": entry.id, "version": version}
        return self._render(template, **shared, **variables)

    def _render(self, template: str, **variables: Any) -> str:
        defaults = {"version": 0, "csrf": self.csrf, "figures": "{}"}
        return _environment().get_template(template).render(**{**defaults, **variables})


def row_of(entry: Entry) -> dict[str, Any]:
    """Return what the list and the top of a page show of a study."""
    with entry.using:
        return _row_of(entry)


def _row_of(entry: Entry) -> dict[str, Any]:
    look, tally = entry.look, entry.tally
    row: dict[str, Any] = {"id": entry.id, "name": entry.name, "place": entry.place, "error": entry.error}
    row |= {"look": look, "tally": tally, "state": "unreadable", "badge": "bad", "words": ""}
    if not entry.is_read:
        return row | {"look": None, "state": "reading", "badge": "live", "words": "its journal is being read"}
    if look is None or tally is None:
        return row
    return row | {
        "state": "paused" if look.is_paused else str(look.state),
        "badge": "cut" if look.is_paused else _BADGES.get(look.state, "cut"),
        "words": _words(entry, tally, look),
        "line": small_line(tally.steps, look.seconds),
        "share": next(((s.spent / s.limit) for s in look.budget if s.limit > 0), None),
        "done": look.num_trials - look.trials.get("running", 0) - look.trials.get("unfinished", 0),
        "ago": max(0.0, time.time() - tally.latest[-1].time) if tally.latest else None,
        "lines": [line_of(event, tally) for event in reversed(tally.latest)],
    }


def _words(entry: Entry, tally: Tally, look: Look) -> str:
    if look.is_paused and tally.steered.since is not None:
        by = tally.steered.since.data["by"]
        return f"paused by {by}; its running trials are saved, and its slots are free for other studies"
    ending = tally.ending()
    has_failed = ending is not None and ending.outcome is Outcome.FAILED
    error = redact(f"{ending.reason}: {ending.message}") if ending is not None and has_failed else None
    is_over = look.state is not StudyState.RUNNING or tally.is_closed
    reason = ending.reason if ending is not None and is_over and not has_failed else None
    return words_of_state(look.state, entry.holder, entry.url, ending=reason, error=error)


def mlflow_address(entry: Entry, trial_id: int) -> str | None:
    """Return where MLflow shows a trial; None: there is no such page, or it is not known."""
    place = TrackingPlace.load(entry.storage)
    return None if place is None else place.address(trial_id)


def _events_of(record: StudyRecord, trial_id: int) -> list[Any]:
    events = [event for driver in record.drivers for event in driver.events]
    return [
        event
        for event in events
        if event.data.get("trial_id") == trial_id
        or (event.kind is EventKind.SETTLED and trial_id in event.data["trials"])
    ]


def _neighbours(record: StudyRecord, trial_id: int) -> tuple[int | None, int | None]:
    before = max((i for i in record.trials if i < trial_id), default=None)
    after = min((i for i in record.trials if i > trial_id), default=None)
    return before, after


def _path(entry: Entry) -> Path:
    with entry.using:
        tally, look = entry.tally, entry.look
        assert tally is not None
        assert look is not None
        return Path(name=entry.name, steps=list(tally.steps), seconds=look.seconds, resource=tally.resource)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Put off the search for garbage: with a large study in memory it takes a third of the time to draw."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _environment() -> jinja2.Environment:
    own = environment().overlay(
        loader=jinja2.ChoiceLoader([jinja2.FunctionLoader(asset), jinja2.FunctionLoader(template_file)])
    )
    return own


def asset(name: str) -> str | None:
    """Return the text of a file beside the templates of the page; None: there is no such file."""
    file = files("spark_hpo.report.serve").joinpath("assets", name)
    return file.read_text(encoding="utf-8") if file.is_file() else None
