"""Takes the pictures of the live page that the docs show, of studies on a virtual clock.

    python -m tests.live_screenshots docs/images

`make screenshots` does it too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from playwright.sync_api import Browser

from spark_hpo.report.serve.server import serve
from spark_hpo.study_dir.forecast_file import Forecast
from spark_hpo.study_dir.storage import Storage
from tests.support.browser import CURE, chromium
from tests.support.simulated import Disturbances
from tests.support.virtual_studies import TODAY, Killed, write_study

DESKTOP: dict[str, Any] = {"viewport": {"width": 1200, "height": 640}, "color_scheme": "light"}
TALL: dict[str, Any] = {**DESKTOP, "viewport": {"width": 1200, "height": 1720}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
HELD_S = 3600.0
SECONDS_LEFT = {"churn-wide": 275.0, "prices": 627.0}  # drivers on a virtual clock write no forecast


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        if browser is None:
            sys.exit(CURE)
        os.chdir(folder)
        write_studies(Path("studies"))
        with serve("studies") as page:
            text = requests.get(page.address, timeout=60).text
            study = text.split('">churn-wide<')[0][-12:]
            take(browser, page.address, target / "serve-list.png", **DESKTOP)
            take(browser, f"{page.address}study?id={study}", target / "serve-study.png", **TALL)
            take(browser, f"{page.address}study?id={study}", target / "serve-phone.png", scale=2, **PHONE)


def take(browser: Browser, address: str, file: Path, *, scale: int = 1, **options: Any) -> None:
    page = browser.new_page(device_scale_factor=scale, **options)
    page.goto(address)
    page.locator("#connection", has_text="Live").wait_for()
    if "study" in address:
        page.wait_for_selector("#history", state="attached")
        page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        page.locator("#history").scroll_into_view_if_needed()
        page.wait_for_selector("#history.drawn")
        page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=file)
    page.close()


def write_studies(root: Path) -> None:
    """Write four studies: two run, one has ended, one was interrupted."""
    priced = {"price_per_slot_hour": 2.5, "cost": 1e6}
    disturbed = Disturbances(loss_share=0.04, failure_share=0.04, launch_s=2.0)
    search = {"sampler": "tpe", "scheduler": "hyperband", "max_resource": 27, "enqueue": [TODAY]}
    common: dict[str, Any] = {"stopping": priced, "slots": 8, "search": search, "disturbances": disturbed}
    write_study(root / "churn/baseline", name="churn-baseline", trials=60, **common)
    common["search"] = {**search, "sampler": "random", "scheduler": "asha"}
    stopped: dict[str, Any] = {"trials": 80, "stop_after": (70, KeyboardInterrupt)}
    write_study(root / "churn/random", name="churn-random", **stopped, **common)
    for name, sampler, reports in (("churn-wide", "tpe", 120), ("prices", "random", 60)):
        common["search"] = {**search, "sampler": sampler}
        running: dict[str, Any] = {"trials": 120, "stop_after": (reports, Killed)}
        make_running(write_study(root / name, name=name, **running, **common), name)


def make_running(storage: Storage, name: str) -> None:
    """Move the events of a killed driver to the present, and let this process hold its lease."""
    [log] = (Path(storage.url) / "journal").glob("*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    shift = time.time() - events[-1]["time"]
    log.write_text("".join(json.dumps({**event, "time": event["time"] + shift}) + "\n" for event in events))
    Forecast(time=time.time(), seconds_left=SECONDS_LEFT[name]).write(storage)
    lease = Path(storage.url) / "lease.json"
    held = {"released": False, "expires_at": time.time() + HELD_S, "host": "driver-7", "pid": os.getpid()}
    lease.write_text(json.dumps({**json.loads(lease.read_text()), **held}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
