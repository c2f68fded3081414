"""The layers that `docs/architecture.md` describes: which package may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "spark_hpo"

# Left may import right, and itself. The order is that of the layers, the lowest first.
ALLOWED: dict[str, set[str]] = {
    "objective": set(),
    "redact": set(),
    "timeout": set(),
    "errors": {"redact"},
    "trial": {"objective", "redact"},
    "config": {"errors", "objective", "redact"},
    "user_code": {"errors"},
    "tracking": {"errors", "objective", "redact", "timeout", "trial"},
    "backend": {"errors", "timeout", "trial"},
    "data": {"errors", "redact", "trial", "user_code"},
    "search": {"errors", "objective", "trial", "user_code"},
    "study_dir": {"config", "errors", "objective", "redact", "trial"},
    "pitfalls": {"data", "trial"},
    "prepare": {"backend", "config", "data", "errors", "trial"},
    "snapshots": {"data", "errors", "prepare", "study_dir"},
    "ranking": {"objective", "search", "trial"},
    "train": {"backend", "data", "errors", "objective", "study_dir", "trial", "user_code"},
    "daemon": {"backend", "train"},
    "integrations": {"errors", "study_dir", "train", "trial"},
    "report": {
        "config",
        "errors",
        "objective",
        "ranking",
        "redact",
        "search",
        "study_dir",
        "trial",
    },
    "study": {"backend", "errors", "objective", "ranking", "search", "study_dir", "tracking", "trial"},
    "callbacks": {"errors", "ranking", "redact", "report", "study", "tracking", "trial"},
    "driver": {
        "backend",
        "config",
        "data",
        "errors",
        "objective",
        "prepare",
        "ranking",
        "redact",
        "report",
        "search",
        "snapshots",
        "user_code",
        "study",
        "study_dir",
        "tracking",
        "train",
        "trial",
    },
    "doctor": {
        "backend",
        "config",
        "data",
        "driver",
        "errors",
        "pitfalls",
        "prepare",
        "redact",
        "report",
        "study",
        "study_dir",
        "timeout",
        "tracking",
        "trial",
    },
    "porting": {
        "config",
        "driver",
        "errors",
        "objective",
        "redact",
        "report",
        "search",
        "study",
        "study_dir",
        "tracking",
        "train",
        "trial",
    },
    "testing": {"backend", "data", "search", "trial"},
    "starter": {
        "config",
        "data",
        "driver",
        "errors",
        "pitfalls",
        "prepare",
        "redact",
        "search",
        "train",
        "trial",
    },
    "tuning": {
        "backend",
        "callbacks",
        "config",
        "driver",
        "errors",
        "report",
        "snapshots",
        "study",
        "tracking",
        "train",
    },
    "cli": {
        "backend",
        "callbacks",
        "config",
        "data",
        "doctor",
        "driver",
        "errors",
        "pitfalls",
        "porting",
        "prepare",
        "redact",
        "report",
        "search",
        "starter",
        "study",
        "study_dir",
        "train",
        "trial",
    },
    "__main__": {"cli"},
}
# The protocols of these packages are all that the driver loop may know of them.
SEAMS = {
    "spark_hpo.backend.base",
    "spark_hpo.tracking.tracker",
    "spark_hpo.search.explorer",
    "spark_hpo.search.sampler",
    "spark_hpo.search.scheduler",
    "spark_hpo.search.steerable",
    "spark_hpo.search.stopping",
}
# A third-party package, and the packages of ours that may import it. Annotations may name its types anywhere.
FENCES = {
    "pyspark": {"backend", "prepare", "daemon", "snapshots"},
    "py4j": {"backend", "prepare", "snapshots"},
    "torch": {"train", "data", "daemon", "integrations"},
    "transformers": {"integrations", "train"},
    "lightning": {"integrations"},
    "petastorm": {"data", "daemon"},
    "pyarrow": {"data", "backend", "pitfalls", "prepare", "snapshots", "testing"},
    "hyperopt": {"search", "porting"},
    "optuna": {"search", "porting"},
    "scipy": {"search"},
    "threadpoolctl": {"search"},
    "mlflow": {"integrations", "tracking"},
    "click": {"cli"},
    "pydantic": {"config"},
    "sqlglot": {"data"},
    "deltalake": {"data"},
    "pyiceberg": {"data"},
    "plotly": {"report"},
    "jinja2": {"report"},
    "fastapi": {"report"},
    "starlette": {"report"},
    "uvicorn": {"report"},
    "packaging": {"doctor"},
    "tensorboard": {"callbacks"},
    "wandb": {"callbacks"},
    "tqdm": {"callbacks"},
    "IPython": {"report"},
    "pytest": {"testing"},
    "hypothesis": {"testing"},
}
MOST_AT_THE_TOP, MOST_LAYERS = 30, 12


def statements(file: Path, *, annotations: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements at any level of a file, by default also those under TYPE_CHECKING."""
    tree = ast.parse(file.read_text())
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not annotations:
            skipped.update(node.body)
        elif isinstance(node, ast.Import | ast.ImportFrom) and node not in skipped:
            yield node


def imports(file: Path, *, annotations: bool = True) -> Iterator[str]:
    """The modules that a file imports."""
    for node in statements(file, annotations=annotations):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{file}: imports are absolute here"
            assert node.module
            yield node.module


def package(file: Path) -> str:
    """The package or module at the top that a file belongs to."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def layer(name: str) -> int:
    """0 for what imports nothing of ours, else one above the highest that it imports."""
    return 1 + max((layer(below) for below in ALLOWED[name]), default=-1)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        return
    for module in imports(file):
        parts = module.split(".")
        if parts[0] == "spark_hpo" and len(parts) > 1:
            assert parts[1] in ALLOWED[package(file)] | {package(file)}, f"{file} must not import {module}"
            if package(file) == "study" and parts[1] in ("backend", "tracking", "search"):
                assert module in SEAMS, f"the driver loop knows protocols only, not {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_packages_stay_behind_their_fences(file: Path) -> None:
    for module in imports(file, annotations=False):
        allowed = FENCES.get(module.split(".")[0])
        assert allowed is None or package(file) in allowed, f"{module} belongs into {allowed}, not {file}"


def test_allowed_imports_are_used_and_have_no_circle() -> None:
    used: dict[str, set[str]] = {name: set() for name in ALLOWED}
    for file in FILES:
        if file != PACKAGE / "__init__.py":
            modules = (module.split(".") for module in imports(file))
            used[package(file)] |= {m[1] for m in modules if m[0] == "spark_hpo" and len(m) > 1}
    assert {name: below - {name} for name, below in used.items()} == ALLOWED
    assert max(layer(name) for name in ALLOWED) < MOST_LAYERS  # a circle would not come back


def test_modules_have_no_import_circle() -> None:
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES}
    modules = {name.removesuffix(".__init__"): file for file, name in names.items()}
    below: dict[str, set[str]] = {}
    for name, file in modules.items():
        imported: set[str] = set()
        for node in statements(file):
            for alias in node.names:
                base = node.module if isinstance(node, ast.ImportFrom) else None
                whole = f"{base}.{alias.name}" if base else alias.name
                imported.add(whole if whole in modules else base or alias.name)
        below[name] = (imported & modules.keys()) - {name}
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_top_level_is_small_and_documented() -> None:
    top = {package(file) for file in FILES} - {"__init__"}
    assert top == set(ALLOWED)
    assert len(top) <= MOST_AT_THE_TOP
    described = (ROOT / "docs/architecture.md").read_text()
    for name in top:
        assert f"`{name}`" in described or f"`{name}.py`" in described or f"`{name}/`" in described, name


def test_repository_has_no_other_folders() -> None:
    """What a study, a test or an example writes into the checkout does not get into a commit."""
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not kept:
        pytest.skip("this is no checkout")
    folders = {file.split("/")[0] for file in kept if "/" in file}
    assert folders == {".ci", "conf", "docs", "jobs", "notebooks", "spark_hpo", "tests"}


def test_page_lists_the_same_fences() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    _, _, table = page.partition("| dependency | imported only by |")
    rows = re.findall(r"(?m)^\| (\w+) \| (.*) \|$", table.partition("\n\n")[0])
    assert {name: set(re.findall(r"`(\w+)`", packages)) for name, packages in rows} == FENCES


def test_page_orders_packages_by_layer() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    _, _, table = page.partition("| package or module | contents |")
    cells = re.findall(r"(?m)^\| (`.*?) \|", table.partition("\n\n")[0])
    row_of = {
        name.rstrip("/"): row for row, cell in enumerate(cells) for name in re.findall(r"`(.*?)`", cell)
    }
    assert row_of.keys() == ALLOWED.keys()
    for name, below in ALLOWED.items():
        assert all(row_of[name] <= row_of[lower] for lower in below), (name, below)


def test_jobs_are_thin() -> None:
    for file in (ROOT / "jobs").glob("*.py"):
        for module in imports(file):
            if module.startswith("spark_hpo"):
                assert module.split(".")[1] in {"cli", "config", "driver", "prepare", "report"}, module


@pytest.mark.parametrize("module", ["spark_hpo", "spark_hpo.search.registry", "spark_hpo.tracking.tracker"])
def test_importing_starts_nothing_and_loads_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, threading, {module};"
        "heavy = {'pyspark', 'torch', 'mlflow', 'petastorm'} & set(sys.modules);"
        "assert not heavy, heavy; assert threading.active_count() == 1"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


@pytest.mark.medium
def test_training_runs_without_spark() -> None:
    program = "import sys, spark_hpo.train.worker; assert 'pyspark' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
