"""The report in a real browser: without a network, on a phone, in dark mode, without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from spark_hpo.report.page import FILE, html_of, write_report
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from tests.support.browser import (
    ATTACK,
    DESKTOP,
    LIMIT_MS,
    PHONE,
    accessibility_problems,
    contrast,
    luminance,
)
from tests.support.simulated import Disturbances
from tests.support.virtual_studies import SPACE, TODAY, Killed, write_study

LONG = "a_parameter_with_a_name_that_is_much_longer_than_a_telephone_is_wide"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study that was killed and resumed, with lost attempts, failures and malicious names."""
    folder = tmp_path_factory.mktemp("report") / "study"
    common: dict[str, Any] = {
        "disturbances": Disturbances(loss_share=0.06, failure_share=0.06, launch_s=2.0),
        "search": {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 27},
    }
    write_study(folder, stop_after=(25, Killed), **common)
    write_report(write_study(folder, begin=4000.0, **common))
    return folder / FILE


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "study"
    options = [ATTACK, "b", LONG * 3]
    space = {
        **SPACE,
        ATTACK: {"type": "choice", "options": options},
        LONG: {"type": "uniform", "low": 0, "high": 1},
    }
    storage = write_study(folder, name="study." * 12, trials=13, space=space)
    write_report(storage)
    return folder / FILE


class Opened:
    """A page with its console messages and requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))

    def style(self, selector: str, name: str) -> str:
        program = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
        return str(self.page.evaluate(program, [selector, name]))


@contextmanager
def opened(browser: Browser, file: Path, **options: Any) -> Iterator[Opened]:
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    try:
        shown = Opened(context.new_page())
        shown.page.goto(file.as_uri())
        if options.get("java_script_enabled", True):
            shown.page.wait_for_selector("html.drawn", timeout=LIMIT_MS)
        yield shown
    finally:
        context.close()


@pytest.mark.parametrize("name", ["report", "hostile"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_plots_are_drawn_without_errors_within_the_window(
    browser: Browser, name: str, viewport: dict[str, int], request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(name)
    with opened(browser, file, viewport=viewport, has_touch=viewport is PHONE) as shown:
        page = shown.page
        assert shown.said == []
        assert shown.requests == [file.as_uri()]
        assert page.evaluate("window.attacked") is None
        plots = page.locator(".plot")
        assert plots.count() >= 11
        drawn = page.evaluate(
            """() => Array.from(document.querySelectorAll(".plot")).map(plot => {
                const box = plot.querySelector("svg.main-svg").getBoundingClientRect();
                const marks = plot.querySelectorAll(".trace path, .bars path, .points path").length;
                return [plot.id, box.width, box.height, box.right, marks];
            })"""
        )
        for plot, width, height, right, marks in drawn:
            assert width > 0.6 * min(viewport["width"], 420), plot
            assert height >= 160, plot
            assert right <= viewport["width"], plot
            assert marks > 0, plot
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        boxes = page.evaluate(
            """() => Array.from(document.querySelectorAll("#parallel .annotation-text")).map(text => {
                const {left, right, top, bottom} = text.getBoundingClientRect();
                return {left, right, top, bottom, text: text.textContent};
            })"""
        )
        assert len(boxes) > 15, "names and ticks"
        for one, other in combinations(boxes, 2):
            beside = one["right"] <= other["left"] or other["right"] <= one["left"]
            assert beside or one["bottom"] <= other["top"] or other["bottom"] <= one["top"], (one, other)
        assert all(box["left"] >= 0 and box["right"] <= viewport["width"] for box in boxes)


def test_names_of_users_are_shown_as_text(browser: Browser, hostile: Path) -> None:
    with opened(browser, hostile) as shown:
        assert ATTACK in shown.page.inner_text("#parameters")
        ticks = shown.page.evaluate(
            "Array.from(document.querySelectorAll('#importance .ytick text')).map(tick => tick.textContent)"
        )
        assert ATTACK in ticks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_accessible_in_light_and_dark(browser: Browser, report: Path, scheme: Any) -> None:
    with opened(browser, report, color_scheme=scheme) as shown:
        card = shown.style("section", "backgroundColor")
        assert (luminance(card) > 0.5) == (scheme == "light")
        assert accessibility_problems(shown.page) == []
        for name in ("history", "rungs", "slots"):
            assert contrast(card, shown.style(f"#{name} .xtick text", "fill")) >= 4.5, name
            assert contrast(card, shown.style(f"#{name} .legendtext", "fill")) >= 4.5, name
        assert contrast(card, shown.style("#parallel .annotation-text", "fill")) >= 4.5
        assert shown.style("#parallel .annotation .bg", "fill") == card, "labels cover the lines"
        assert shown.style("#history .main-svg", "backgroundColor") == "rgba(0, 0, 0, 0)"


def test_plots_follow_a_change_of_the_colour_scheme(browser: Browser, report: Path) -> None:
    with opened(browser, report, color_scheme="light") as shown:
        before = shown.style("#history .xtick text", "fill")
        shown.page.emulate_media(color_scheme="dark")
        shown.page.wait_for_function(
            "before => getComputedStyle(document.querySelector('#history .xtick text')).fill !== before",
            arg=before,
            timeout=LIMIT_MS,
        )
        card = shown.style("section", "backgroundColor")
        assert contrast(card, shown.style("#history .xtick text", "fill")) >= 4.5


def test_page_without_scripts_has_the_answer_and_all_text(browser: Browser, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as shown:
        text = shown.page.inner_text("body")
        assert "scripts are turned off" in text
        assert "accuracy on validation" in text
        assert "learning curves: " in text
        assert "of the slot time was used" in text
        assert shown.said == []


def test_injected_script_does_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    file = tmp_path / "changed.html"
    file.write_text(report.read_text().replace("</main>", "<script>window.attacked = 1</script></main>"))
    with opened(browser, file) as shown:
        assert shown.page.evaluate("window.attacked") is None
        assert any("Content Security Policy" in line for line in shown.said)


def test_sections_are_reachable_by_keyboard_and_links(browser: Browser, report: Path) -> None:
    with opened(browser, report) as shown:
        links = shown.page.evaluate("Array.from(document.querySelectorAll('nav a')).map(a => a.hash)")
        assert len(links) == 8
        for link in links:
            assert shown.page.locator(link).count() == 1, link
        shown.page.keyboard.press("Tab")
        assert shown.page.evaluate("document.activeElement.textContent") == "Answer"


def test_page_of_a_running_study_has_plots(browser: Browser, tmp_path: Path) -> None:
    storage = write_study(
        tmp_path / "study",
        stop_after=(6, Killed),
        search={"sampler": "random", "scheduler": "full", "max_resource": 5, "enqueue": [TODAY]},
    )
    file = tmp_path / "running.html"
    file.write_text(html_of(StudyRecord.read(Storage(storage.url), is_running=True)))
    with opened(browser, file) as shown:
        assert shown.said == []
        assert "running" in shown.page.inner_text(".badge.live")
        assert shown.page.locator("#history .trace").count() > 0
