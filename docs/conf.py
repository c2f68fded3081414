"""Configures the documentation site (`make docs`), whose sources are the pages of the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import settings  # noqa: E402

import spark_hpo  # noqa: E402

project = "spark_hpo"
author = "spark_hpo contributors"
copyright = author
release = version = spark_hpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
# The repository is the root of the site, so links work as they do on a code host.
root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**.md"]
# The captions and pages of the table in README.md: tutorials, how-to guides, reference, explanation.
_table = (ROOT / "README.md").read_text().partition("\n## Documentation\n")[2].partition("\n\n")[0]
CONTENTS = {
    caption: re.findall(r"\]\(([^)#]+)\.md\)", links)
    for caption, links in re.findall(r"(?m)^\| (\w[^|]*) \| (.*) \|$", _table)
}
CONTENTS["Explanation"] += ["docs/benchmarks/*", "CONTRIBUTING"]
# Pages of docs/ that the table does not name go to the end of the guides.
_placed = [page for pages in CONTENTS.values() for page in pages]
_pages = sorted(f"docs/{file.stem}" for file in (ROOT / "docs").glob("*.md"))
CONTENTS["How-to guides"] += [page for page in _pages if page not in _placed]

html_theme = "furo"
html_title = f"spark_hpo {release}"
html_copy_source = False
smartquotes = False  # keeps the two hyphens of --option
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

linkcheck_timeout, linkcheck_retries, linkcheck_ignore = 15, 2, [r"http://localhost.*"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Add what only the site has: the table of contents, and the tables of settings."""
    if page == root_doc:
        for caption, pages in CONTENTS.items():
            lines = "\n".join(f"/{page}" for page in pages)
            source[0] += f"\n:::{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{lines}\n:::\n"
    if page == "docs/study-file":
        head, title, _ = source[0].partition("## All settings\n")
        source[0] = head + title + settings.tables()
    if page == "docs/api":
        rest = [name for name in spark_hpo.__all__ if not re.search(rf":: (spark_hpo\.)?{name}\n", source[0])]
        classes = [name for name in rest if isinstance(getattr(spark_hpo, name), type)]
        entries = "".join(f".. autofunction:: spark_hpo.{name}\n" for name in rest if name not in classes)
        entries += "".join(f".. autoclass:: spark_hpo.{name}\n   :members:\n" for name in classes)
        source[0] += f"\n## More\n\n```{{eval-rst}}\n{entries}```\n" if rest else ""


def to_rst(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Convert docstrings to reStructuredText: code is in single backticks, and indented lines are a trace."""
    done = (
        [""] if what == "property" else []
    )  # napoleon would take a first line that ends with a colon for a type
    before, is_section = "", False
    text = re.sub(r"\*(?=\w)(?![^*\n]*\w\*)", r"\\*", "\n".join(lines))  # *shape, but not *emphasis*
    for line in re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text).split("\n"):
        if line.startswith("    ") and not before.startswith((" ", "-")) and not is_section:
            done += ["", "::", ""]
        done.append(line)
        if line:
            is_section = line in ("Args:", "Raises:", "Returns:") or (is_section and line.startswith(" "))
            before = line
    lines[:] = done


def hide_constructor(app: Sphinx, what: str, *_: object) -> tuple[str, str] | None:
    """Hide the signatures of classes: readers do not construct them."""
    return ("", "") if what == "class" else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-process-docstring", to_rst, priority=400)  # before napoleon, which splits sections
