"""The report page: one self-contained HTML file, made from the study directory alone."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import plotly.io
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from spark_hpo.errors import count, number
from spark_hpo.report.advice import edges_of
from spark_hpo.report.answer import Answer, answer_of
from spark_hpo.report.causes import causes_of
from spark_hpo.report.confirmation import confirmation_in_words, confirmation_of
from spark_hpo.report.cost import cost_of
from spark_hpo.report.importance import importance_of
from spark_hpo.report.ladder import ladder_of
from spark_hpo.report.leaderboard import flat_params, value
from spark_hpo.report.lineage import lineage_in_words
from spark_hpo.report.live_line import duration
from spark_hpo.report.pictures.curves import curves
from spark_hpo.report.pictures.front import front
from spark_hpo.report.pictures.history import history, history_by_resource
from spark_hpo.report.pictures.parallel import parallel
from spark_hpo.report.pictures.parameters import importance, parameters
from spark_hpo.report.pictures.rungs import rungs
from spark_hpo.report.pictures.slots import COLOURS, slots
from spark_hpo.report.pictures.theme import Picture
from spark_hpo.report.pictures.usage import usage
from spark_hpo.report.reserve import reserve_in_words, reserve_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.report.timeline import timeline_of
from spark_hpo.report.usage import in_bytes, usage_advice, usage_of
from spark_hpo.study_dir.steered import Course
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Trial

logger = logging.getLogger(__name__)

FILE = "report.html"

_BEST_TRIALS = 10
_SHOWN_CAUSES = 20
_MAX_METRICS = 6  # of the test, besides the objective
_SHOWN_TRIALS = 12  # ids per cause

_ENDINGS = {
    "trials": "all trials of the budget have run",
    "resource": "the training budget is spent",
    "seconds": "the time budget is spent",
    "request": "somebody has stopped it",
    "search_space": "the whole search space has been tried",
    "target": "the target was reached",
    "no_improvement": "no improvement for a long time",
    "cost": "the cost limit was reached",
    "regret_bound": "more searching would gain too little",
}


_PICTURES: Mapping[str, Callable[[StudyRecord], Picture]] = {
    "history": history,
    "history_by_resource": history_by_resource,
    "rungs": rungs,
    "curves": curves,
    "parallel": parallel,
    "importance": importance,
    "slots": slots,
    "usage": usage,
}


def write_report(storage: Storage, *, is_running: bool | None = None) -> tuple[StudyRecord, str] | None:
    """Write the page into the study directory.

    Args:
        is_running: as for `StudyRecord.read`.

    Returns:
        What the page was made from, and its text. None if it could not be written, which is logged: a study
        does not fail because of its report.
    """
    try:
        record = StudyRecord.read(storage, is_running=is_running)
        text = html_of(record)
        storage.write(FILE, text.encode())
    except Exception as exc:  # a drawing library may raise anything
        logger.warning("cannot write %s/%s: %s", storage.url, FILE, exc, exc_info=True)
        return None
    return record, text


def html_of(record: StudyRecord) -> str:
    """Return the page. It contains plotly.js (5 MB), so it needs no network."""
    script = "".join(map(template_file, ("figures.js", "page.js")))
    plotly_js = get_plotlyjs()
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            **content_of(record),
            css=Markup(template_file("page.css")),
            script=Markup(script),
            plotly_js=Markup(plotly_js),
            # The browser runs only these two scripts, whatever a parameter or an error message contains.
            hashes=Markup(" ".join(f"'sha256-{_sha256(text)}'" for text in (plotly_js, script))),
        )
    )


def content_of(record: StudyRecord) -> dict[str, Any]:
    """Return the variables of the template that depend on the study."""
    pictures = {name: draw(record) for name, draw in _PICTURES.items()}
    if record.objective.extra_objectives:
        pictures["pareto_front"] = front(record)
    by_parameter = {f"parameter_{i}": picture for i, picture in enumerate(parameters(record))}
    answer, metric = answer_of(record), record.objective.metric
    tested = sorted((name, value) for name, value in (answer.test or {}).items() if name != metric)
    return {
        "record": record,
        "answer": answer,
        "status": _status(record),
        "tested": tested[:_MAX_METRICS],
        "edges": {} if answer.best is None else edges_of(record, answer.best),
        "best_trials": [_row(record, trial) for trial in record.ranking[:_BEST_TRIALS]],
        "pictures": pictures,
        "parameters": by_parameter,
        "figures": Markup(as_script_data({**pictures, **by_parameter})),
        "has_rungs": len(ladder_of(record)) > 1,
        "importance": importance_of(record),
        "lineage": None if answer.best is None else lineage_in_words(record, answer.best),
        "confirmation": confirmation_in_words(record),
        "finalists": confirmation_of(record),
        "reserve": reserve_in_words(record, reserve_of(record)),
        "timeline": timeline_of(record),
        "colours": COLOURS,
        "usage": usage_of(record),
        "usage_advice": usage_advice(record),
        "causes": causes_of(record),
        "shown_causes": _SHOWN_CAUSES,
        "cost": cost_of(record),
        "again": _again(record, answer),
        "written": datetime.now(UTC),
        "shown_trials": _SHOWN_TRIALS,
    }


@cache  # with it, the compiled template
def environment() -> jinja2.Environment:
    """Return the environment of the templates, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(template_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "count": count,
        "when": lambda moment: f"{moment:%Y-%m-%d %H:%M} UTC",
        "percent": lambda share: f"{share:.0%}",
        "bytes": in_bytes,
    }
    environment.globals |= {"flat_params": flat_params, "shown": in_words}
    return environment


@cache
def template_file(name: str) -> str:
    """Return the text of a file beside the template."""
    # Through importlib, because the package may be imported from a zip file.
    return files("spark_hpo.report").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_script_data(pictures: Mapping[str, Picture]) -> str:
    """Return the figures as JSON that cannot close the script element around it."""
    figures = {}
    for name, picture in pictures.items():
        figure = json.loads(plotly.io.to_json(picture.figure, validate=False))
        del figure["layout"]["title"]  # the page shows it as a heading
        figures[name] = figure
    text = json.dumps(figures, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _status(record: StudyRecord) -> str:
    if record.is_running:
        return "paused" if record.steered.course is Course.PAUSED else "running"
    if record.ending == "interrupted":
        return "interrupted; rerun the same command to resume"
    if record.ending is None:
        return "killed, or ended by an error; rerun the same command to resume"
    return f"finished: {_ENDINGS.get(record.ending, record.ending)}"


def _row(record: StudyRecord, trial: Trial) -> dict[str, Any]:
    found = value(trial, record.objective)
    return {
        "trial": trial,
        "value": None if math.isnan(found) else found,
        "spread": trial.spread.get(record.objective.metric),
        "params": [(name, in_words(item)) for name, item in flat_params(trial.params).items()],
    }


def in_words(item: Any) -> str:
    return number(item) if isinstance(item, float) else str(item)


def _again(record: StudyRecord, answer: Answer) -> dict[str, Any]:
    facts = record.drivers[-1].facts if record.drivers else {}
    commands = [driver.facts["command"] for driver in record.drivers if driver.facts.get("command")]
    params = None
    if answer.best is not None:
        params = yaml.safe_dump(json.loads(json.dumps(answer.best.params)), sort_keys=False)
    return {
        "command": commands[-1] if commands else None,
        "versions": facts.get("versions", {}),
        "git_commit": facts.get("git_commit"),
        "table": record.definition.source,
        "params": params,
    }
