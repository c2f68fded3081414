"""The house as `docs/architecture.md` draws it: who may import whom, and which package stays where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "spark_hpo"

EVERYTHING = set(
    [
        "__main__",
        "app",
        "assembly",
        "backend",
        "callback",
        "callbacks",
        "cleanup",
        "cli",
        "config",
        "daemon",
        "data",
        "databricks",
        "definition",
        "dispatch",
        "doctor",
        "errors",
        "failures",
        "folders",
        "incumbents",
        "interrupt",
        "java",
        "journal",
        "layout",
        "lease",
        "orphans",
        "package",
        "parts",
        "plugins",
        "porting",
        "prepare",
        "provenance",
        "publish",
        "redact",
        "rehearsal",
        "replay",
        "report",
        "result",
        "retention",
        "search",
        "settings",
        "starter",
        "storage",
        "study",
        "study_file",
        "supervision",
        "sync",
        "tracking",
        "train",
        "trial",
        "tuning",
        "view",
        "wiring",
    ]
)
# What is started by users: nothing else may import it.
FRONTS = {"__main__", "cli", "daemon", "doctor", "porting", "replay", "starter", "tuning"}
# Left may import right, and itself.
ALLOWED = {
    "app": EVERYTHING - FRONTS - {"rehearsal"},
    "assembly": {"config", "errors", "journal", "search", "storage", "trial"},
    "callback": {"study", "trial"},  # the study in annotations only
    "callbacks": {"callback", "errors", "report", "study", "trial"},  # the study in annotations only
    "__main__": {"cli"},
    "cli": {
        *("app", "assembly", "backend", "callback", "callbacks", "cleanup", "config", "data", "definition"),
        *("doctor", "errors", "prepare", "provenance", "redact", "report", "result", "search", "settings"),
        *("starter", "storage", "study", "train", "trial"),
    },
    "cleanup": {"definition", "errors", "incumbents", "layout", "lease", "report", "storage", "trial"},
    "daemon": {"backend", "orphans", "train"},
    "doctor": {
        *("backend", "config", "data", "definition", "errors", "prepare", "redact", "rehearsal", "storage"),
        *("tracking", "trial"),
    },
    "starter": {"assembly", "config", "data", "errors", "redact", "search", "trial"},
    "orphans": set(),
    "package": set(),
    "parts": {
        *("assembly", "backend", "config", "data", "definition", "errors", "prepare", "provenance"),
        *("publish", "search", "settings", "storage", "tracking", "train", "trial", "wiring"),
    },
    "plugins": {"errors"},
    "porting": {
        *("app", "callback", "config", "definition", "errors", "layout", "result", "search", "storage"),
        *("study", "tracking", "train", "trial"),
    },
    "publish": {
        *("data", "errors", "incumbents", "journal", "package", "report", "storage", "tracking", "train"),
        "trial",
    },
    "result": {
        *("assembly", "config", "incumbents", "journal", "storage", "study", "tracking", "trial", "view"),
    },
    "study": {
        *("backend", "callback", "dispatch", "errors", "incumbents", "journal", "retention", "search"),
        *("storage", "tracking", "trial"),
    },
    "sync": {"incumbents", "journal", "lease", "publish", "storage", "tracking", "trial"},
    "dispatch": {
        *("backend", "failures", "journal", "layout", "retention", "storage", "supervision", "trial"),
    },
    "failures": {"errors", "trial"},
    "supervision": {"errors", "layout", "storage", "trial"},
    "interrupt": set(),
    "java": {"errors"},
    "layout": set(),
    "incumbents": {"retention", "search", "trial"},
    "retention": {"layout", "storage"},
    "journal": {"errors", "lease", "storage", "trial"},
    "replay": {"backend", "callback", "errors", "journal", "search", "storage", "study", "trial"},
    "definition": {"errors", "storage"},
    "lease": {"errors", "storage"},
    "storage": {"errors", "folders", "redact"},
    "folders": set(),
    "search": {"errors", "plugins", "trial"},
    "backend": {"databricks", "errors", "java", "package", "trial"},
    "tracking": {"errors", "redact", "trial"},
    "report": {
        *("assembly", "config", "definition", "errors", "incumbents", "journal", "lease", "redact"),
        *("search", "settings", "storage", "trial"),
    },
    "provenance": {"redact"},
    "rehearsal": {"config", "data", "errors", "parts", "storage", "train", "trial"},
    "train": {"data", "errors", "layout", "storage", "trial"},
    "prepare": {"data", "errors", "java", "trial"},
    "data": {"errors", "plugins", "redact", "trial"},
    "config": {"databricks", "errors", "redact", "study_file"},
    "databricks": set(),
    "settings": {"config", "errors", "redact", "storage", "study_file"},
    "study_file": {"errors", "redact"},
    "wiring": {"config", "data", "dispatch", "failures", "storage", "supervision", "train"},
    "trial": {"redact"},
    "tuning": {
        *("app", "backend", "callback", "callbacks", "config", "errors", "result", "tracking", "train"),
    },
    "view": {"callbacks", "errors", "report", "storage", "trial"},
    "errors": {"redact"},
    "redact": set(),
}
# The protocols of these rooms are all that the driver loop may know of them.
SEAMS = {
    "spark_hpo.backend.base",
    "spark_hpo.tracking.base",
    "spark_hpo.search.explorer",
    "spark_hpo.search.sampler",
    "spark_hpo.search.scheduler",
}
# A third-party package, and the rooms that may know it.
FENCES = {
    "pyspark": {
        "backend",
        "prepare",
        "app",
        "daemon",
        "doctor",
        "java",
        "parts",
        "porting",
        "rehearsal",
        "tuning",
    },
    "torch": {"train", "data", "daemon", "callbacks"},
    "petastorm": {"data", "daemon"},
    "pyarrow": {"data", "backend", "prepare"},
    "hyperopt": {"search", "porting"},
    "optuna": {"search", "porting"},
    "scipy": {"search", "replay"},
    "mlflow": {"tracking"},
    "click": {"cli"},
    "pydantic": {"config"},
    "sqlglot": {"data"},
    "plotly": {"report", "view"},
    "jinja2": {"report"},
    "onnxruntime": {"replay"},
    "matplotlib": {"replay"},
    "packaging": {"doctor"},
    "tensorboard": {"callbacks"},
    "tqdm": {"callbacks"},
    "IPython": {"callbacks", "view"},
}


def imports(file: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            assert node.module
            yield node.module


def room(file: Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        return
    for module in imports(file):
        parts = module.split(".")
        if parts[0] == "spark_hpo" and len(parts) > 1:
            assert parts[1] in ALLOWED[room(file)] | {room(file)}, f"{room(file)} must not import {module}"
        if room(file) in ("study", "dispatch") and len(parts) > 2:
            assert module in SEAMS, f"the driver loop knows protocols only, not {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_packages_stay_behind_their_fences(file: Path) -> None:
    for module in imports(file):
        rooms = FENCES.get(module.split(".")[0])
        assert rooms is None or room(file) in rooms, f"{module} belongs into {rooms}, not {room(file)}"


def test_every_room_is_on_the_map() -> None:
    rooms = {room(file) for file in FILES} - {"__init__"}
    assert rooms == EVERYTHING
    described = (ROOT / "docs/architecture.md").read_text()
    for name in rooms:
        assert f"`{name}`" in described or f"`{name}.py`" in described or f"`{name}/`" in described, name


def test_jobs_are_thin() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        for module in imports(file):
            if module.startswith("spark_hpo"):
                assert module.split(".")[1] in {"app", "cli", "config", "report", "prepare", "replay"}, module


@pytest.mark.parametrize("module", ["spark_hpo", "spark_hpo.search.registry", "spark_hpo.tracking.base"])
def test_importing_starts_nothing_and_loads_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, threading, {module};"
        "heavy = {'pyspark', 'torch', 'mlflow', 'petastorm'} & set(sys.modules);"
        "assert not heavy, heavy; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def test_the_training_half_runs_without_spark() -> None:
    program = "import sys, spark_hpo.train.worker; assert 'pyspark' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
