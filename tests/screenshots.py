"""Takes the pictures of a report that the docs show.

    python -m tests.screenshots STUDY_DIR docs/images

`make screenshots` does it with the quickstart's study.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from spark_hpo.report.page import html_of
from spark_hpo.report.study_record import StudyRecord
from spark_hpo.study_dir.storage import Storage
from tests.support.browser import CURE, PHONE, chromium

WIDTH, HEIGHT = 1200, 1800  # the answer, how it was found, the learning curves


def main(study_dir: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        if browser is None:
            sys.exit(CURE)
        file = Path(folder) / "report.html"
        file.write_text(html_of(StudyRecord.read(Storage(study_dir), is_running=False)), encoding="utf-8")
        target.mkdir(parents=True, exist_ok=True)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(file.as_uri())
        page.wait_for_selector("html.drawn")
        page.screenshot(path=target / "report.png")
        phone = browser.new_page(viewport=PHONE, color_scheme="dark", device_scale_factor=2)
        phone.goto(file.as_uri())
        phone.wait_for_selector("html.drawn")
        phone.locator("figure", has=phone.locator("#parallel")).screenshot(path=target / "report-phone.png")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
