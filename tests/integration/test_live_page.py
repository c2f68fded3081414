"""The live page in a real browser: on a phone, in dark mode, by keyboard, behind a proxy."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Page

from spark_hpo.report.serve.server import Server, serve
from spark_hpo.study_dir.storage import Storage
from tests.support.browser import ATTACK, DESKTOP, LIMIT_MS, PHONE, accessibility_problems, luminance
from tests.support.simulated import Disturbances
from tests.support.virtual_studies import TODAY, Killed, write_study
from tests.support.written_studies import StudyWriter

PREFIX = "/driver-proxy/o/0/0101-cluster/7480"
TOKEN = "a-token-that-is-long-enough"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with lost attempts and failures, and one with malicious names."""
    root: Path = tmp_path_factory.mktemp("live")
    search = {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 27, "enqueue": [TODAY]}
    disturbed = Disturbances(loss_share=0.06, failure_share=0.06, launch_s=2.0)
    write_study(root / "study", stop_after=(25, Killed), search=search, disturbances=disturbed)
    write_study(root / "study", begin=4000.0, search=search, disturbances=disturbed)
    space = {ATTACK: {"type": "choice", "options": [ATTACK, "b"]}}
    pen = StudyWriter(storage=Storage(root / "hostile"), name=ATTACK, space=space)
    for trial in range(12):
        pen.at(trial).start(trial, params={ATTACK: [ATTACK, "b"][trial % 2]}).end(
            trial, value=0.5 + trial / 99
        )
    pen.start(12, params={ATTACK: "b"}).lose(12, ATTACK).close()
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serve(folder, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def paths(server: Server) -> dict[str, str]:
    """The addresses of the pages, relative to the server's."""
    text = requests.get(server.address, timeout=20).text
    found = {url.rpartition("/")[2]: i for i, url in re.findall(r'study\?id=(\w+)">.*?<small>(.+?)<', text)}
    study, hostile = found["study"], found["hostile"]
    return {
        "list": "",
        "study": f"study?id={study}",
        "hostile": f"study?id={hostile}",
        "trials": f"trials?id={hostile}",
        "trial": f"trial?id={hostile}&trial=12",
        "comparison": f"compare?id={study}&id={hostile}",
    }


class Opened:
    """A page with its console messages and the hosts that it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.origins: set[str] = set()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.origins.add(urlsplit(request.url).netloc))

    def wait_until_live(self) -> None:
        self.page.locator("#connection", has_text="Live").wait_for()

    def wait_for_plots(self) -> None:
        """Wait until all pictures of the page are drawn, which are drawn when they are scrolled to."""
        self.page.wait_for_selector(".plot", state="attached", timeout=LIMIT_MS)
        for plot in self.page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "() => !document.querySelector('.plot:not(.drawn)')",
            timeout=LIMIT_MS,
        )


@contextmanager
def opened(browser: Browser, address: str, **options: Any) -> Iterator[Opened]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    try:
        shown = Opened(context.new_page())
        shown.page.set_default_timeout(LIMIT_MS)
        shown.page.goto(address)
        if options.get("java_script_enabled", True):
            shown.wait_until_live()
        yield shown
    finally:
        context.close()


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_pages_fit_the_window_and_run_no_foreign_script(
    browser: Browser, server: Server, paths: dict[str, str], viewport: dict[str, int]
) -> None:
    chosen = paths if viewport is PHONE else {name: paths[name] for name in ("list", "hostile", "comparison")}
    for name, path in chosen.items():
        with opened(browser, server.address + path, viewport=viewport, has_touch=viewport is PHONE) as shown:
            if name in ("study", "hostile", "trial", "comparison"):
                shown.wait_for_plots()
            assert shown.said == [], name
            assert shown.origins == {f"127.0.0.1:{server.port}"}, name
            assert shown.page.evaluate("window.attacked") is None, name
            assert shown.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], name
            if name != "study":
                assert ATTACK in shown.page.inner_text("body"), name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible(browser: Browser, server: Server, paths: dict[str, str], scheme: Any) -> None:
    for name in ("list", "study", "trials", "trial", "comparison"):
        with opened(browser, server.address + paths[name], color_scheme=scheme) as shown:
            if name in ("study", "trial", "comparison"):
                shown.wait_for_plots()
            back = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (luminance(back) > 0.5) == (scheme == "light")
            assert accessibility_problems(shown.page) == [], name


def test_page_can_be_used_by_keyboard(browser: Browser, server: Server) -> None:
    with opened(browser, server.address) as shown:
        page = shown.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for box in page.locator("input[type=checkbox]").all():
            box.focus()
            page.keyboard.press("Space")
        page.locator("button", has_text="Compare").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/compare?id=*")
        shown.wait_for_plots()
        assert page.locator("#over_time .trace, #over_time .lines").count() > 0


def test_page_without_scripts_has_numbers_and_texts(
    browser: Browser, server: Server, paths: dict[str, str]
) -> None:
    with opened(browser, f"{server.address}{paths['study']}&fresh=1", java_script_enabled=False) as shown:
        text = shown.page.inner_text("body")
        assert "learning curves: " in text
        assert "best accuracy" in text


def test_page_follows_a_study_and_keeps_what_the_reader_does(browser: Browser, tmp_path: Path) -> None:
    pen = StudyWriter(storage=Storage(tmp_path / "study"), budget={"trials": 40}).slots(4)
    for trial in range(12):
        pen.at(trial).start(trial).end(trial, value=0.5)
    with serve(tmp_path, port=0) as server:
        text = requests.get(server.address, timeout=20).text
        study_id = re.findall(r"study\?id=(\w+)", text)[0]
        with opened(browser, f"{server.address}study?id={study_id}") as shown:
            page = shown.page
            shown.wait_for_plots()
            page.evaluate("Plotly.relayout('history', {'xaxis.range': [1, 5]})")
            page.evaluate("document.getElementById('latest').open = true")
            page.locator(".steer summary").focus()
            points = "document.getElementById('history').data.flatMap(trace => trace.x).length"
            before = page.evaluate(points)
            page.route("**/study?*fresh=1*", lambda route: route.abort())
            pen.at(20).start(20).end(20, value=0.75)
            page.locator("#top", has_text="0.75").wait_for()
            page.wait_for_function(f"() => {points} === {before + 2}")  # a dot, and the line of the best
            page.unroute("**/study?*fresh=1*")
            pen.at(21).start(21).end(21, value=0.875)
            page.locator("#top", has_text="0.875").wait_for()
            page.wait_for_function(f"() => {points} > {before}")
            page.locator("#answer", has_text="0.875").wait_for()
            assert page.evaluate("document.getElementById('history').layout.xaxis.range") == [1, 5]
            assert page.evaluate("document.getElementById('latest').open")
            assert page.evaluate("document.activeElement.textContent") == "Steer the study"
            page.keyboard.press("Enter")
            page.locator("form[data-verb=extend] input").fill("trials=0")
            page.keyboard.press("Enter")
            page.locator("#answered", has_text="above 0").wait_for()
            pen.close()
            page.locator("#top .badge", has_text="finished").wait_for()
            page.locator("form[data-verb=extend] input").fill("trials=+50")
            page.keyboard.press("Enter")
            page.locator("#answered", has_text="the next one takes").wait_for()
            expected = ("400", "ERR_FAILED")  # of the wrong request and of the page that was kept back
            assert [line for line in shown.said if not any(word in line for word in expected)] == []
        assert (tmp_path / "study/control/requests").is_dir()


class Proxy(BaseHTTPRequestHandler):
    """Forwards what is below a prefix, as Databricks' driver proxy does."""

    target: int

    def do_GET(self) -> None:
        assert self.path.startswith(f"{PREFIX}/"), f"the page asked for {self.path}"
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
        path = self.path.removeprefix(PREFIX)
        connection.request(self.command, path, body, headers=dict(self.headers.items()))
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "date"):
                self.send_header(name, value)
        self.end_headers()
        try:
            while data := answer.read1(65_536):
                self.wfile.write(data)
                self.wfile.flush()
        except OSError:
            pass  # the browser has closed the page
        finally:
            connection.close()

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


def test_page_works_behind_a_proxy_with_a_prefix_and_a_token(browser: Browser, folder: Path) -> None:
    with serve(folder, host="0.0.0.0", port=0, token=TOKEN) as server:
        handler = type("Handler", (Proxy,), {"target": server.port})
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{proxy.server_port}{PREFIX}/"
            with opened(browser, f"{address}?token={TOKEN}") as shown:
                page = shown.page
                assert page.url == address, "without the token"
                page.locator("a", has_text="virtual").first.click()
                shown.wait_until_live()
                shown.wait_for_plots()
                page.locator("summary", has_text="Steer the study").click()
                page.locator("form[data-verb=drop] input").fill("4000")
                page.keyboard.press("Enter")
                page.locator("#answered", has_text="there is no trial 4000").wait_for()
                page.locator("#answer a").first.click()
                page.wait_for_url("**/trial?id=*")
                shown.wait_for_plots()
                assert [line for line in shown.said if "409" not in line] == []  # the refusal
        finally:
            proxy.shutdown()
            proxy.server_close()
