import json
import logging
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spark_hpo.errors import ConfigError, JournalError
from spark_hpo.objective import Mode, Objective
from spark_hpo.report.page import FILE, html_of, write_report
from spark_hpo.report.pictures.front import front
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.lease import is_held
from spark_hpo.study_dir.storage import Storage
from spark_hpo.trial import Failure, FailureKind, TrialState
from tests.benchmarks.replay.memory import MemoryStorage
from tests.support.virtual_studies import Killed, write_study
from tests.support.written_studies import TEST, StudyWriter

JOURNALS = sorted((Path(__file__).parents[2] / "data/journals").glob("*/*-*"))
DOCS = Path(__file__).parents[3] / "docs/report.md"
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would make of a page: its elements with attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.text += data

    def all(self, tag: str, **attributes: str) -> Iterator[dict[str, str | None]]:
        for name, found in self.elements:
            if name == tag and attributes.items() <= found.items():
                yield found


@pytest.fixture(scope="module")
def html(storage: Storage) -> str:
    return html_of(StudyRecord.read(storage))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_page_has_every_section_and_the_answer_first(page: Page) -> None:
    sections = [found["id"] for found in page.all("section")]
    assert sections == [
        "answer",
        "search",
        "parameters",
        "slots-section",
        "usage-section",
        "failures",
        "cost",
        "again",
    ]
    for words in (
        "accuracy on validation",
        "accuracy on test",
        "gain over your starting configuration",
        "finished: all trials of the budget have run",
        "Early stopping saved",
        "cost at 2.5 per slot hour",
        "spark-submit jobs/tune.py --config study.yaml",
        "0123abc",
        "its code raised",
        "No driver ran for 1 h",
    ):
        assert words in page.text, words


def test_page_has_a_caption_for_every_figure(html: str, page: Page) -> None:
    plots = list(page.all("div", **{"class": "plot"}))
    names = [plot["id"] for plot in plots]
    assert names[:3] == ["history", "history_by_resource", "curves"]
    assert {"rungs", "importance", "parallel", "slots", "parameter_0"} <= set(names)
    assert len(set(names)) == len(names)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert len(captions) == len(plots)
    for plot in plots:
        assert plot["role"] == "group"
        assert len(plot["aria-label"] or "") > 20


def test_page_loads_nothing_and_contains_plotly_once(html: str, page: Page) -> None:
    assert not [e for e in page.elements if "src" in e[1] or e[0] in ("iframe", "object", "embed")]
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert html.count("plotly.js v") == 1
    assert 4e6 < len(html) < 6e6
    [policy] = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.split(" ", 1) for rule in (policy["content"] or "").split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    assert rules["script-src"].count("sha256-") == 2


def test_page_has_a_table_of_the_best_trials(page: Page, storage: Storage) -> None:
    best = StudyRecord.read(storage)
    first = min(best.trials.values(), key=lambda trial: trial.loss)
    cells = [cell for cell in page.all("td", **{"data-label": "trial"})]
    assert len(cells) == 10
    assert f"{first.loss * -1:.4g}" in page.text


def test_page_has_the_best_parameters_as_yaml(html: str, storage: Storage) -> None:
    import yaml

    blocks = re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)
    record = StudyRecord.read(storage)
    best = min(record.trials.values(), key=lambda trial: trial.loss)
    assert yaml.safe_load(blocks[-1]) == best.params


def test_page_shows_other_metrics_of_the_test() -> None:
    pen = StudyWriter().start(0).end(0, 1, 0.5).start(0, 1, 1, **TEST)
    metrics = {"accuracy": 0.4375, "loss": 1.25, "f1": 0.375}
    text = Page(html_of(StudyRecord.read(pen.end(0, 1, None, metrics=metrics, **TEST).close().storage))).text
    assert "0.4375" in text
    assert "; f1 0.375; loss 1.25" in text
    pen = StudyWriter().start(0).end(0, 1, 0.5).start(0, 1, 1, **TEST).end(0, 1, None, metrics={}, **TEST)
    assert "the test reported no accuracy" in Page(html_of(StudyRecord.read(pen.close().storage))).text


def test_page_escapes_names_of_the_user() -> None:
    space = {
        ATTACK: {"type": "choice", "options": [ATTACK, "b", "c", "d"]},
        "x": {"type": "uniform", "low": 0, "high": 1},
    }
    broken = Failure(kind=FailureKind.TRIAL, message=ATTACK, traceback=f"Traceback\n{ATTACK}")
    pen = StudyWriter(Objective(metric=ATTACK, mode=Mode.MAX), space=space, name=ATTACK).slots(1)
    for i in range(12):
        pen.start(i, params={ATTACK: (ATTACK, "b", "c", "d")[i % 4], "x": i / 12}).end(i, 1, i / 100)
    pen.start(12, params={ATTACK: "b", "x": 0.5}).end(12, 0, None, failure=broken)
    pen.settle(TrialState.STOPPED, *range(12))
    html = html_of(StudyRecord.read(pen.close(ATTACK).storage))
    page = Page(html)
    assert not list(page.all("img"))
    assert len(list(page.all("script"))) == 3, "the figures, plotly.js and ours"
    assert "alert(1)" in page.text
    assert "<script>alert" not in html.lower()


def test_page_of_a_running_study() -> None:
    pen = StudyWriter().slots(2).start(0).end(0, 1, 0.5).start(1)
    text = Page(html_of(StudyRecord.read(pen.storage))).text
    assert is_held(pen.storage)
    assert "running" in text
    assert "not tested yet" in text
    pen.die()
    assert not is_held(pen.storage)
    assert "killed, or ended by an error" in Page(html_of(StudyRecord.read(pen.storage))).text


def test_page_of_a_study_without_trials() -> None:
    text = Page(html_of(StudyRecord.read(StudyWriter().storage))).text
    assert "No trial has succeeded" in text
    assert "No failures" in text
    pen = StudyWriter().close("interrupted")
    assert "interrupted; rerun the same command" in Page(html_of(StudyRecord.read(pen.storage))).text


def test_page_explains_how_to_add_the_present_configuration() -> None:
    pen = StudyWriter().start(0).end(0).start(1).end(1, 1, 0.7).close()
    text = Page(html_of(StudyRecord.read(pen.storage))).text
    assert "add it to search.enqueue" in text
    assert "gain over the first trial" in text


@pytest.mark.parametrize("folder", JOURNALS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_page_of_studies_of_earlier_versions(folder: Path) -> None:
    text = Page(html_of(StudyRecord.read(Storage(folder)))).text
    if folder.parent.name == "0.1":  # later versions have recorded both
        assert "has no numbers of slots" in text
        assert "The command is not recorded" in text


def test_report_of_several_objectives_has_the_front() -> None:
    pen = StudyWriter(
        Objective(metric="accuracy", mode=Mode.MAX, extra_objectives=(("latency_ms", Mode.MIN),))
    )
    pen.start(0, 0, 9).end(0, 9, 0.9, metrics={"accuracy": 0.9, "latency_ms": 7.0})
    record = StudyRecord.read(pen.settle(TrialState.COMPLETED, 0).close().storage)
    assert front(record).figure.data[1].name == "Pareto front"
    assert list(Page(html_of(record)).all("div", id="pareto_front"))


def test_page_limits_what_it_shows_of_thousands_of_trials() -> None:
    storage = write_study(
        MemoryStorage(),
        trials=3_500,
        slots=64,
        search={"sampler": "random", "scheduler": "asha", "max_resource": 27},
    )
    html = html_of(StudyRecord.read(storage))
    assert len(html) < 6e6, "as of 10,000: all that is drawn has a limit"
    assert "of them are not shown; the best ones are" in html
    assert "other reports are not shown" in html


def test_report_page_example_writes_report_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path / "studies/quickstart", trials=4)
    [example] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(example, names)
    assert (tmp_path / "history.html").exists()
    assert "accuracy on validation" in Page(Path(names["page"]).read_text()).text


def test_write_report_writes_into_the_study_directory(tmp_path: Path) -> None:
    storage = write_study(tmp_path / "study", trials=4, stop_after=(2, Killed))
    written = write_report(storage)
    assert written is not None
    record, text = written
    assert len(record.trials) == 4
    assert (tmp_path / "study" / FILE).read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "damage",
    [
        {"objective": {"metric": 3, "mode": "max"}},
        {"objective": None},
        {"search": {}},
        {"space": {}},
        {"space": {"root": {"node": "constant", "value": 1}, "single": None, "tuples": False}},
        {"stopping": {"target": "much"}},
    ],
    ids=str,
)
def test_report_of_a_damaged_definition_is_an_error(damage: dict[str, object]) -> None:
    storage = StudyWriter().storage
    record = json.loads(storage.read("study.json") or b"")
    record["config"] |= damage
    storage.write("study.json", json.dumps(record).encode())
    with pytest.raises(JournalError, match=r"study\.json is damaged or of another version"):
        StudyRecord.read(storage)


def test_report_of_a_folder_without_a_study_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="there is no study here"):
        StudyRecord.read(Storage(tmp_path))
    with caplog.at_level(logging.WARNING, "spark_hpo"):
        assert write_report(Storage(tmp_path)) is None
    assert "cannot write" in caplog.text
