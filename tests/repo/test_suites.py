"""The selections of `make test`, `make test-fast` and `make test-slow`, and the names of tests."""

from __future__ import annotations

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

ROOT = Path(__file__).parents[2]
MARKERS = ("slow", "medium", "spark", "cluster")
MARKER_SETS = [set(chosen) for n in range(5) for chosen in itertools.combinations(MARKERS, n)]
FILES = sorted((ROOT / "tests").rglob("test_*.py"))


def selects(target: str, markers: set[str]) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf'(?m)^{target}:.*\n\t\$\(PYTEST\) -m "(.*)"$', makefile)
    assert found
    return Expression.compile(found[1]).evaluate(lambda name, **_: name in markers)


@pytest.mark.parametrize("markers", MARKER_SETS, ids=lambda markers: "-".join(sorted(markers)))
def test_make_test_and_test_slow_run_each_test_once(markers: set[str]) -> None:
    assert selects("test", markers) != selects("test-slow", markers)
    assert selects("test", markers) or not selects("test-fast", markers)


def test_testpaths_have_all_files_of_the_main_suites() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    paths = [ROOT / path for path in settings["testpaths"]]
    assert all(path.exists() for path in paths)
    for folder in ("unit", "contract", "integration", "repo"):
        assert ROOT / "tests" / folder in paths


def test_modules_of_tests_do_not_import_each_other() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            assert not (module or "").rpartition(".")[2].startswith("test_"), f"{file}: {module}"


def test_names_of_tests_have_at_most_80_characters() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len(node.name) <= 80, f"{file.relative_to(ROOT)}: {node.name}"
