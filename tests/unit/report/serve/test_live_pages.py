"""The live pages over HTTP: what they show, how they follow a study, and that they leave it alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from spark_hpo.report.serve.catalog import Catalog, studies_below
from spark_hpo.report.serve.server import Server, serve
from spark_hpo.report.study_reader import StudyReader
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.definition import Definition
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.requests import Inbox
from spark_hpo.study_dir.storage import Storage
from spark_hpo.study_dir.tracking_place import TrackingPlace
from spark_hpo.tracking import projection
from spark_hpo.trial import Failure, FailureKind, RankUse, TrialState
from tests.support.documents import blocks
from tests.support.study_bench import SPACE, StudyRunner
from tests.support.written_studies import StudyWriter

DOCS = "docs/live-page.md"
ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
LIMIT_S = 20.0
PATHS = ["", "study?id={}&fresh=1", "trials?id={}", "trial?id={}&trial=2", "compare?id={}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Path:
    """A directory with three studies: one with everything, one with malicious names, one damaged."""
    root: Path = tmp_path_factory.mktemp("served")
    shutil.copytree(storage.url, root / "nightly/everything")
    space = {ATTACK: {"type": "choice", "options": [ATTACK, "b"]}}
    pen = StudyWriter(storage=Storage(root / "hostile"), name=ATTACK, space=space)
    params = {ATTACK: ATTACK}
    pen.slots(2).start(1, params=params).end(1, value=0.8, notes={ATTACK: ATTACK}, checkpoint=f"x/{ATTACK}")
    pen.start(2, params=params).lose(2, ATTACK).start(2, params=params, attempt=2).end(2, value=0.9).close()
    TrackingPlace(tracking_uri="http://mlflow:5000/x", experiment_id="7", run_id="abc").write(pen.storage)
    StudyWriter(storage=Storage(root / "damaged")).die()
    (root / "damaged/study.json").write_text("{")
    StudyWriter(storage=Storage(root / "foreign")).die()
    with (root / "foreign/journal/000001.jsonl").open("a") as file:
        file.write(
            '{"sequence":2,"time":1.0,"event":"assigned"}\n{"sequence":3,"time":1.0,"event":"slots"}\n'
        )
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def ids(server: Server) -> dict[str, str]:
    """The ids of the studies by the last part of their directories."""
    page = get(server, "")
    found = re.findall(r'study\?id=(\w+)">[^\n]*?<small>([^<]+)<', page)
    return {url.rpartition("/")[2]: study_id for study_id, url in found}


def get(server: Server, path: str, status: int = 200) -> str:
    answer = requests.get(server.address + path, timeout=LIMIT_S)
    assert answer.status_code == status, answer.text
    return answer.text


def test_list_has_every_study_and_what_is_wrong_with_one(server: Server, ids: dict[str, str]) -> None:
    page = get(server, "")
    assert set(ids) == {"everything", "hostile", "damaged", "foreign"}
    assert "it cannot be read: KeyError" in page
    assert page.index("everything") < page.index("damaged"), "by the last event"
    assert "study.json is damaged" in page
    row = page[page.index(f'id="study-{ids["everything"]}"') :].partition("</tr>")[0]
    for part in ("finished", "accuracy", "polyline", "100% of the budget"):
        assert part in row, part


@pytest.mark.parametrize(
    "path", ["", "study?id={}&fresh=1", "trials?id={}", "trial?id={}&trial=2", "compare?id={}"]
)
def test_texts_of_a_study_are_escaped(server: Server, ids: dict[str, str], path: str) -> None:
    page = get(server, path.format(ids["hostile"]))
    assert "window.attacked" in page
    assert "<script>window.attacked" not in page
    assert "<img src=x" not in page
    policy = requests.get(server.address, timeout=LIMIT_S).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy


@pytest.mark.parametrize(
    "path", ["", "study?id={}&fresh=1", "trials?id={}", "trial?id={}&trial=2", "compare?id={}"]
)
def test_addresses_in_a_page_are_relative(server: Server, ids: dict[str, str], path: str) -> None:
    page = get(server, path.format(ids["everything"]))
    addresses = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert len(addresses) > 4
    for address in addresses:
        assert re.match(r"(\./|#|data:,|[a-z]+\.(css|js)$|(study|trials|trial|compare)(\?|$))", address), (
            address
        )
    script = get(server, "serve.js")
    assert not re.findall(r"""fetch\(["']/|EventSource\(["']/""", script)


def test_study_page_is_quick_first_and_then_the_whole_report(folder: Path) -> None:
    with serve(folder / "nightly", port=0) as server:
        study_id = re.findall(r"study\?id=(\w+)", get(server, ""))[0]
        first = get(server, f"study?id={study_id}")
        assert 'id="history"' not in first
        assert "best accuracy" in first
        whole = get(server, f"study?id={study_id}&fresh=1")
        sections = re.findall(r'<section id="([\w-]+)"', whole)
        assert {"answer", "search", "parameters", "slots-section", "failures", "cost"} <= set(sections)
        assert f'href="trial?id={study_id}&amp;trial=' in whole
        assert get(server, f"study?id={study_id}") == whole


def test_trial_page_has_everything_of_the_trial(server: Server, ids: dict[str, str]) -> None:
    page = get(server, f"trial?id={ids['hostile']}&trial=2")
    for part in (
        "0.9",
        "attempt 1 was retried",
        "2 attempts",
        "no longer needs it",
        "attempt 1 was lost",
    ):
        assert part in page, part
    assert "http://mlflow:5000/x/#/experiments/7/runs?searchFilter=" in page
    other = get(server, f"trial?id={ids['hostile']}&trial=1")
    assert "x/&lt;/script&gt;" in other
    get(server, f"trial?id={ids['hostile']}&trial=99", 404)
    get(server, "trial?id=unknown&trial=1", 404)


def test_running_study_shows_each_of_its_figures_and_a_trial_each_of_its_facts(tmp_path: Path) -> None:
    folder = tmp_path / "live"
    prices = {"price_per_slot_hour": 3600.0, "cost": 1e6}  # 1 for each second of a slot
    pen = StudyWriter(storage=Storage(folder), name="live", budget={"trials": 8}, stopping=prices)
    TrackingPlace(tracking_uri="http://mlflow:5000", experiment_id="7", run_id="abc").write(pen.storage)
    pen.now = time.time() - 100
    use = RankUse(rank=0, seconds=9.0, waited_s=4.0, stepped_s=4.0, cpu_s=4.5, cores=1, memory_bytes=2**29)
    Forecast(time=time.time(), seconds_left=90.0).write(pen.storage)
    pen.slots(4).start(0, params={"x": 0.375})
    pen.now += 50
    pen.lose(0).start(0, params={"x": 0.375}, attempt=2)
    pen.end(0, value=0.625, attempt=2, checkpoint="checkpoints/trial-000000/000001-2.pt", usage=(use,))
    pen.settle(TrialState.COMPLETED, 0).start(1)
    failure = Failure(kind=FailureKind.TRIAL, message="out of ideas", traceback="Traceback: line 7")
    pen.end(1, value=None, failure=failure).start(2).start(3)
    with serve(tmp_path, port=0) as server:
        page = get(server, "")
        row = page[page.index('id="study-') :].partition("</tr>")[0]
        cells = dict(re.findall(r'<td data-label="([^"]*)" class="[^"]*">(.*?)</td>', row))
        shown = {name: re.sub("<[^>]*>", " ", cell).split() for name, cell in cells.items()}
        assert shown.pop("time left")[-1] in ("s", "min")
        assert shown == {
            "best accuracy": ["0.625", "accuracy"],
            "trials": ["4"],
            "slots": ["2", "of", "4"],
            "cost": ["3.00", "3", "s"],
        }
        assert "25% of the budget" in cells["trials"]
        assert ">running<" in row
        study_id = re.findall(r"study\?id=(\w+)", page)[0]
        trial = get(server, f"trial?id={study_id}&trial=0")
        for fact in (
            "0.375",  # its parameter
            "0.625",  # its value
            "executor 3 was lost",  # its log
            "000001-2.pt",  # its checkpoint
            "50%",  # its use: waiting for data
            "512 MiB",
            "http://mlflow:5000/#/experiments/7/runs",
        ):
            assert fact in trial, fact
        assert json.loads(trial.partition('id="figures">')[2].partition("</script>")[0])["curve"]["data"]
        failed = get(server, f"trial?id={study_id}&trial=1")
        assert "out of ideas" in failed
        assert "Traceback: line 7" in failed
    pen.die()


def test_trials_are_listed_by_state_and_page(server: Server, ids: dict[str, str]) -> None:
    page = get(server, f"trials?id={ids['everything']}")
    assert page.count('<td data-label="trial">') == 40
    failed = get(server, f"trials?id={ids['everything']}&state=failed&page=99")
    assert 0 < failed.count('<td data-label="trial">') < 40
    assert failed.count('class="state failed"') == failed.count('<td data-label="trial">')


def test_comparison_draws_studies_with_equal_metrics(server: Server, ids: dict[str, str]) -> None:
    page = get(server, f"compare?id={ids['everything']}&id={ids['hostile']}&id=unknown")
    figures = json.loads(page.partition('id="figures">')[2].partition("</script>")[0])
    assert [len(figures[name]["data"]) for name in ("over_time", "over_resource")] == [2, 2]
    assert "Choose studies" in get(server, "compare")


class Page:
    """The page of the only study."""

    def __init__(self, server: Server) -> None:
        text = get(server, "")
        self.study_id = re.findall(r"study\?id=(\w+)", text)[0]
        self._csrf = text.partition('name="csrf" content="')[2].partition('"')[0]
        self._address = f"{server.address}steer?id={self.study_id}"

    def press(self, verb: str, text: str = "") -> requests.Response:
        """Press a button."""
        headers, body = {"x-spark-hpo": self._csrf}, {"verb": verb, "text": text}
        return requests.post(self._address, json=body, headers=headers, timeout=2 * LIMIT_S)


class Events:
    """The stream of events of a page."""

    def __init__(self, server: Server, follow: str) -> None:
        address = f"{server.address}events?follow={follow}"
        self._answer = requests.get(address, stream=True, timeout=LIMIT_S)
        self._lines = self._answer.iter_lines(chunk_size=None, decode_unicode=True)  # type: ignore[arg-type]

    def next(self) -> dict[str, Any]:
        """Return the next event; one without parts if there is none for a quarter of a minute."""
        line = next(line for line in self._lines if line.startswith(("data: ", ": ")))
        return dict(json.loads(line.removeprefix("data: "))) if line.startswith("data") else {"parts": {}}

    def until(self, text: str) -> dict[str, Any]:
        """Return the first event with this text in one of its parts."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if text in "".join((news := self.next())["parts"].values()):
                return news
        raise AssertionError(f"no event with {text}")

    def close(self) -> None:
        self._answer.close()


def test_events_follow_a_running_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_hpo.report.serve.catalog._DISCOVERY_S", 0.1)
    pen = StudyWriter(storage=Storage(tmp_path / "study")).slots(4).start(1)
    with serve(tmp_path, port=0) as server:
        study_id = re.findall(r"study\?id=(\w+)", get(server, ""))[0]
        events, rows = Events(server, study_id), Events(server, "all")
        first = events.next()
        assert "1 of 4" in first["parts"]["top"]
        assert "running" in rows.next()["parts"][f"study-{study_id}"]
        pen.end(1, value=0.75).start(2).start(3)
        assert events.until("0.75")["version"] > first["version"]
        pen.close()
        events.until("finished")
        StudyWriter(storage=Storage(tmp_path / "later/study"), name="later").start(1)
        rows.until("later")
        events.close()
        rows.close()


def test_looking_changes_nothing_in_the_directory(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study")).start(1).end(1)
    holder = json.loads((tmp_path / "study/lease.json").read_text())
    (tmp_path / "study/lease.json").write_text(
        json.dumps({**holder, "machine": "another", "host": "elsewhere"})
    )
    before = {file: file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]}
    folders = [file for file in before if file.is_dir()]
    for found in folders:
        found.chmod(0o500)
    try:
        with serve(tmp_path, port=0) as server:
            study_id = re.findall(r"study\?id=(\w+)", get(server, ""))[0]
            page = get(server, f"study?id={study_id}&fresh=1")
            get(server, f"trial?id={study_id}&trial=1")
            assert "elsewhere is running it" in page
        assert {file: file.stat().st_mtime_ns for file in [tmp_path, *tmp_path.rglob("*")]} == before
    finally:
        for found in folders:
            found.chmod(0o700)
    pen.die()


def test_button_puts_a_request_into_the_directory(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study")).start(1).close()
    with serve(tmp_path, port=0) as server:
        press = Page(server).press
        assert press("pause").status_code == 409, "no driver runs"
        assert press("extend", "trials=+5").status_code == 202
        assert press("add", "x=1e-3").status_code == 202
        assert press("narrow", "x=[1e-4,1e-2]").status_code == 202
        for verb, text in (("drop", "one"), ("extend", "trials"), ("narrow", "x=[0.1"), ("dance", "")):
            assert press(verb, text).status_code == 400, verb
        assert [(asked.verb, asked.arguments) for asked in Inbox(pen.storage).waiting()] == [
            ("extend", {"budget": {"trials": "+5"}}),
            ("add", {"params": {"x": 0.001}, "like": None}),
            ("narrow", {"space": {"x": [0.0001, 0.01]}}),
        ]


@pytest.mark.medium
def test_buttons_pause_and_resume_a_running_driver(tmp_path: Path) -> None:
    runner = StudyRunner(tmp_path / "study")
    config = {"objective": {"metric": "loss", "mode": "min"}, "search": {"max_resource": 9}}
    config |= {"budget": {"trials": 300}}
    Definition.create({**config, "name": "steered", "space": SPACE.to_json()}).write(runner.storage)
    is_steered = threading.Event()  # until then, the study takes half a minute at the least

    def train_slowly(_: object) -> None:
        is_steered.wait(0.1)

    runner.training.fail = train_slowly
    study = runner.study(trials=300)
    driver = threading.Thread(target=study.run, daemon=True)
    with serve(tmp_path, port=0) as server:
        driver.start()
        page = Page(server)
        events = Events(server, page.study_id)
        paused = page.press("pause")
        assert paused.status_code == 200, paused.text
        assert "its slots are free" in events.until(">paused<")["parts"]["top"]
        before = len(runner.journal.trials) if runner.journal else 0
        extended = page.press("extend", "trials=+7")
        assert (extended.status_code, driver.is_alive()) == (200, True), extended.text
        is_steered.set()
        assert page.press("resume").status_code == 200
        driver.join(LIMIT_S)
        assert not driver.is_alive()
        assert runner.journal is not None
        assert len(runner.journal.trials) == 300 > before
        events.until("300 of 307 trials")
        events.close()
        runner.journal.close()


def test_catalog_holds_few_studies_and_reads_no_line_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_hpo.report.serve.catalog._HELD_EVENTS", 10)
    pens = [StudyWriter(storage=Storage(tmp_path / name)) for name in "abc"]
    for pen in pens:
        pen.start(1).end(1).start(2)
    catalog = Catalog([str(tmp_path)])
    for entry in catalog.entries():
        with entry.drawing:
            assert len(catalog.record(entry).trials) == 2
    assert len(catalog._readers) == 2
    ranges: list[tuple[int, int]] = []
    read_range = Storage.read_range
    monkeypatch.setattr(
        Storage,
        "read_range",
        lambda self, name, start, stop: ranges.append((start, stop)) or read_range(self, name, start, stop),
    )
    pens[0].end(2)
    [entry] = [entry for entry in catalog.known() if entry.url.endswith("/a")]
    assert entry.refresh()
    assert not entry.refresh()
    assert [start > 0 for start, _ in ranges] == [True]


def test_reader_reads_on_where_it_stopped(tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study")).slots(2).start(1)
    reader = StudyReader(pen.storage, pen.objective)
    for step in (lambda: pen.end(1, curve={1: 0.4}), lambda: pen.start(2).lose(2), lambda: pen.die().open()):
        step()
        found, whole = reader.read(is_running=False), StudyRecord.read(pen.storage, is_running=False)
        assert found.trials == whole.trials
        assert list(found.attempts) == list(whole.attempts)
        assert found.drivers == whole.drivers
    pen.die()


def test_studies_are_found_below_folders_and_in_object_stores(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/a/b/study", f"{tmp_path}/study", f"memory://{tmp_path}/c/study"):
        StudyWriter(storage=Storage(url)).die()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(studies_below(str(tmp_path))) == 2
    assert [s.url for s in studies_below(f"memory://{tmp_path}")] == [f"memory://{tmp_path}/c/study"]
    assert len(studies_below(f"{tmp_path}/study")) == 1


def test_address_in_mlflow_finds_the_run_of_a_trial() -> None:
    place = TrackingPlace(tracking_uri="https://user:secret@host/a/", experiment_id="1", run_id="r")
    address = place.address(3)
    assert address is not None
    assert projection.TRIAL_ID in address
    assert "secret" not in address
    assert place.address() == "https://host/a/#/experiments/1/runs/r"
    assert TrackingPlace(tracking_uri="sqlite:///x.db", experiment_id="1", run_id="r").address() is None


def test_documented_call_serves_from_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir(tmp_path)
    [block] = blocks(DOCS, "python")
    names: dict[str, Any] = {}
    exec(block.text, names)
    page = names["page"]
    try:
        assert "There is no study" in get(page, "")
        assert page.address in page._repr_html_()
    finally:
        page.close()
    with pytest.raises(requests.ConnectionError):
        get(page, "")


def test_databricks_link_leads_through_its_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = "spark.databricks.clusterUsageTags"
    settings = {"spark.databricks.workspaceUrl": "adb-1.azuredatabricks.net", f"{tags}.orgId": "12"}

    class Session:
        conf: Mapping[str, str] = settings | {f"{tags}.clusterId": "0101-x"}
        getActiveSession = classmethod(lambda cls: cls)

    module = type(sys)("pyspark.sql")
    module.SparkSession = Session  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyspark.sql", module)
    monkeypatch.setitem(os.environ, "DATABRICKS_RUNTIME_VERSION", "17.3")
    monkeypatch.setattr("spark_hpo.report.serve.server.in_notebook", lambda: True)
    server = Server([tmp_path])
    try:
        assert server.host == "0.0.0.0"
        assert 3000 <= server.port <= 8000
        assert server.address == f"https://adb-1.azuredatabricks.net/driver-proxy/o/12/0101-x/{server.port}/"
        assert "?token=" in server.url
    finally:
        server.close()
