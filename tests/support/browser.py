"""A headless Chromium for tests of HTML pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LIMIT_MS = 60_000
ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CURE = "no browser: apt-get install chromium, or playwright install chromium, or set CHROMIUM to one"


@contextmanager
def chromium() -> Iterator[Browser | None]:
    """Yield the Chromium of the machine or of Playwright; None if there is neither."""
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
        executable = found or playwright.chromium.executable_path
        if not Path(executable).exists():
            yield None
            return
        # Containers have no user namespaces, and /dev/shm of 64 MB there: neither matters for our own pages.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


def luminance(colour: str) -> float:
    """Return the relative luminance (WCAG) of `rgb(1, 2, 3)`."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = ((p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4) for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def accessibility_problems(page: Page) -> list[str]:
    """Return what axe-core finds: breaches of WCAG 2.2 AA and of its good practice, an element each."""
    page.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", _RULES)
    assert len(found["passes"]) > 20, "axe has looked at the page"
    return [
        f"{rule['id']}: {element['html'][:200]}: {element['failureSummary']}"
        for rule in found["violations"]
        for element in rule["nodes"]
    ]
