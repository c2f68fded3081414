"""The public API: listed once, known to type checkers, and all that the documentation imports."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import spark_hpo
from tests.support.documents import PAGES, ROOT, blocks

INIT = ROOT / "spark_hpo/__init__.py"
PUBLIC_MODULES = set(
    re.findall(r"`(spark_hpo(?:\.\w+)+)`", (ROOT / "docs/api.md").read_text().split("##")[0])
)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def imports(code: str) -> Iterator[str]:
    """Yield the modules of the package, or names in it, that Python code imports: `spark_hpo.tune`."""
    for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", code, flags=re.MULTILINE))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("spark_hpo."))
        elif isinstance(node, ast.ImportFrom) and node.module == "spark_hpo":
            yield from (f"spark_hpo.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spark_hpo."):
            yield str(node.module)


def is_public(name: str) -> bool:
    return name in PUBLIC_MODULES or name.removeprefix("spark_hpo.") in spark_hpo.__all__


def test_type_checkers_see_the_names_of_all() -> None:
    [block] = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If)]
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, "`import x as x` makes a name public for type checkers"
            seen[alias.name] = str(node.module).removeprefix("spark_hpo.")
    assert seen == spark_hpo._MODULES


def test_public_names_can_be_imported_and_are_listed() -> None:
    assert set(spark_hpo.__all__) <= set(dir(spark_hpo))
    for name in spark_hpo.__all__:
        assert getattr(getattr(spark_hpo, name), "__name__", name) in (name, "Mapping")


def test_public_modules_are_those_of_the_api_page() -> None:
    names = (
        "callbacks",
        "errors",
        "integrations.lightning",
        "integrations.transformers",
        "prepare",
        "testing",
    )
    assert {f"spark_hpo.{name}" for name in names} == PUBLIC_MODULES


def test_importing_an_unknown_name_fails() -> None:
    with pytest.raises(ImportError):
        exec("from spark_hpo import no_such_name")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_documentation_imports_only_public_names(page: str) -> None:
    for block in blocks(page, "python"):
        for name in imports(block.text):
            assert is_public(name), f"{block}: {name} is not public"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_import_only_public_names(notebook: Path) -> None:
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        for name in imports("".join(cell["source"])):
            assert is_public(name), f"{notebook.name}: {name} is not public"


@pytest.mark.parametrize("file", sorted((ROOT / "tests/data/plugin_package").rglob("*.py")), ids=str)
def test_example_plugins_import_only_public_names(file: Path) -> None:
    for name in imports(file.read_text()):
        assert is_public(name), f"{file.name}: {name} is not public"
