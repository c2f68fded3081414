"""A headless Chromium for tests of HTML pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
LIMIT_MS = 60_000
ATTACK = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 2'>"
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
