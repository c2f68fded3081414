"""The documentation site, built as `make docs` does: every warning is an error, and all pages are on it."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import spark_hpo
from tests.support.documents import PAGES, ROOT

pytest.importorskip("sphinx", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    recipe = re.search(r"(?m)^docs: .*\n\t(.*)\n", (ROOT / "Makefile").read_text())
    assert recipe
    words = [
        {"build/site": str(folder), "build/doctrees": f"{folder}/.doctrees"}.get(w, w)
        for w in recipe[1].split()
    ]
    assert words[1:4] == ["-m", "sphinx", "-q"]
    assert "-W" in words
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_site_has_every_page_in_its_contents(site: Path) -> None:
    contents = (site / "README.html").read_text()
    for page in PAGES:
        name = page.removesuffix(".md") + ".html"
        assert (site / name).is_file()
        assert f'href="{name}"' in contents or page == "README.md"


def test_site_has_no_broken_internal_links(site: Path) -> None:
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / unquote(target)).exists(), f"{page.relative_to(site)}: {target}"


def test_site_documents_every_public_name(site: Path) -> None:
    page = site / "docs/api.html"
    for name in spark_hpo.__all__:
        assert f'id="spark_hpo.{name}"' in page.read_text(), name
    for documented in (spark_hpo.run_study, spark_hpo.TrainTask.loss):
        first_line = (documented.__doc__ or "").split("\n")[0]
        assert first_line
        assert first_line in text_of(page)


def test_site_lists_every_setting_of_a_study_file(site: Path) -> None:
    rows = re.findall(r"<tr.*?</tr>", (site / "docs/study-file.html").read_text(), re.DOTALL)
    cells = {}
    for row in rows:
        first, *rest = (
            re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL) or [""]
        )
        cells[first.strip()] = [cell.strip() for cell in rest]
    value, default, meaning = cells["budget.trials"]
    assert (value, default) == ("integer, at least 1", "none")
    assert meaning
    assert cells["data.cache.enabled"][:2] == ["true or false", "true"]
    assert cells["training.precision"][0] == "auto, fp32, bf16, fp16"
    assert cells["study_dir"][1] == "", "it has no default"
    assert len(cells) > 60
    assert [name for name, rest in cells.items() if len(rest) == 3 and not rest[2]] == []
